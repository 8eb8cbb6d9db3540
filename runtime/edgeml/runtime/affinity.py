"""Which cores an engine's threads run on. On systems without affinity (macOS) every core is every thread's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgeml.wire.errors import ConfigError


def pin_process(cpus: Sequence[int]) -> None:
    """Keep this process, and the threads it starts from now on, on some cores; none given means all.

    Raises:
        ConfigError: this machine has no such core.
    """
    if not cpus or sys.platform != "linux":
        return
    try:
        os.sched_setaffinity(0, cpus)
    except (OSError, ValueError) as error:
        have = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise ConfigError("cores", expected=f"some of {have}", got=", ".join(map(str, cpus))) from error


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Threads that an engine starts within stay on these cores; the calling thread gets its own back afterwards.

    Raises:
        ConfigError: this machine has no such core.
    """
    if not cpus or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    pin_process(cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
