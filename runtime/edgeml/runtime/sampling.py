"""The process and its board, sampled once a window: memory, processor, temperature, throttling.

Reads the kernel's files alone, under a root that can be given; what is not there is not known. A Raspberry Pi shows its
throttle bits (the numbers that `vcgencmd get_throttled` prints), a Jetson and other boards what their cooling has capped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml.runtime.board import ROOT, firmware_bits, zones

FREQUENCY_CAPPED: Final = 1 << 1  # the bit of get_throttled that says so
_COOLING: Final = ("cpufreq", "thermal-cpufreq", "cpu", "devfreq", "thermal-devfreq", "gpu")  # not fans
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Vitals:
    """The process and the board; `None` where a figure cannot be read.

    `cpu_share` is of one core, over the time since the last sample: 2.0 kept two cores busy. `throttled` has the bits of a
    Raspberry Pi's get_throttled.
    """

    rss_bytes: int | None = None
    cpu_share: float | None = None
    cpu_celsius: float | None = None
    throttled: int | None = None


class Sampler:
    """Samples this process.

    Args:
        root: where `proc` and `sys` are.
        clock: seconds that only grow.
        cpu: seconds of processor that the process has used.
    """

    def __init__(
        self,
        root: Path = ROOT,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._root, self._clock, self._cpu = root, clock, cpu
        self._at, self._used = clock(), cpu()

    def read(self) -> Vitals:
        at, used = self._clock(), self._cpu()
        share = (used - self._used) / (at - self._at) if at > self._at else None
        self._at, self._used = at, used
        pages = _number(self._root / "proc/self/statm", field=1)
        return Vitals(
            rss_bytes=None if pages is None else pages * _PAGE_BYTES,
            cpu_share=None if share is None else round(share, 3),
            cpu_celsius=hottest_celsius(self._root),
            throttled=throttle_bits(self._root),
        )


def hottest_celsius(root: Path = ROOT) -> float | None:
    """The hottest of the board's sensors that say something sensible."""
    return max((zone.celsius for zone in zones(root)), default=None)


def throttle_bits(root: Path = ROOT) -> int | None:
    """A Raspberry Pi's own bits; elsewhere, whether a cooling device has capped a frequency now. `None`: nobody says."""
    bits = firmware_bits(root)
    if bits is not None:
        return bits
    states = []
    for folder in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        state = _number(folder / "cur_state")
        if state is not None and _text(folder / "type").lower().startswith(_COOLING):
            states.append(state)
    return (FREQUENCY_CAPPED if any(states) else 0) if states else None


def _number(path: Path, *, field: int = 0) -> int | None:
    try:
        return int(_text(path).split()[field])
    except (ValueError, IndexError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
