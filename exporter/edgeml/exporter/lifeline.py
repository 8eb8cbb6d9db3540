"""What a process holds so that others know it lives: its children die with it, its work folder is cleared after it.

A lifeline is a pipe on which nothing is ever written. The parent keeps one end; when it dies, however it dies, the kernel
closes that end and the child hears of it. A work folder holds a locked file; a lock ends with the process that took it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PREFIX: Final = "edgeml-export-"
LOCK: Final = "lock"
UNLOCKED_AGE_S: Final = 24 * 3600.0  # after which a folder without a lock is nobody's: its maker died before it had one
F_SETSIG: Final = 10  # Linux: which signal a descriptor's owner gets; the module fcntl does not name it


def die_with(lifeline: int) -> None:
    """End this process and its whole group as soon as nobody holds the other end of the pipe `lifeline`.

    On Linux the kernel does it at once, even inside native code that never comes back to Python; elsewhere a thread does.
    """
    threading.Thread(target=_watch, args=(lifeline,), daemon=True, name="lifeline").start()
    if sys.platform == "linux":
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for one export. Folders of exports that were killed are removed first."""
    place = Path(tempfile.gettempdir())
    sweep(place)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    descriptor = os.open(folder / f"{LOCK}.new", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        (folder / f"{LOCK}.new").rename(folder / LOCK)  # it never stands there unlocked while its maker lives
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep(place: Path) -> None:
    """Remove work folders in `place` whose makers are gone; those of other users, and of living processes, stay."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            about = folder.lstat()
            if about.st_uid == os.getuid() and not folder.is_symlink() and _abandoned(folder, about.st_mtime):
                shutil.rmtree(folder)
        except OSError:
            continue  # another process sweeps too, or it is no folder: not ours to clear


def _abandoned(folder: Path, changed_s: float) -> bool:
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return time.time() - changed_s > UNLOCKED_AGE_S
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
