"""Files that are either the old bytes or the new ones: temporary file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

Write = Callable[[int, memoryview], int]
"""`os.write`, or something in its place that fails as a full disk does."""

TEMPORARY_SUFFIX: Final = ".tmp"


def write_file(path: Path, data: bytes, *, write: Write = os.write) -> None:
    """Replace `path` by `data`.

    Raises:
        OSError: nothing changed; the temporary file is gone.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(descriptor, data, write=write)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        move(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):  # a file system that went read-only keeps it; the next write takes its place
            temporary.unlink(missing_ok=True)
        raise


def discard(path: Path) -> None:
    """Delete a file that is of no use, if there is one and the disk lets us: what stays is checked before it is used."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def is_full(error: OSError) -> bool:
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def is_unwritable(error: OSError) -> bool:
    """The disk is full, or its file system has gone read-only, as a worn SD card's does."""
    return is_full(error) or error.errno == errno.EROFS


def write_all(descriptor: int, data: bytes | memoryview, *, write: Write = os.write) -> None:
    """Write every byte; `os.write` may take fewer than it was given."""
    rest = memoryview(data)
    while rest:
        rest = rest[write(descriptor, rest) :]


def move(source: Path, destination: Path) -> None:
    """Rename within one file system, and make the rename itself survive a power cut."""
    source.replace(destination)
    sync_folder(destination.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
