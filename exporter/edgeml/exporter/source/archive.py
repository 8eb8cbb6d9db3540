"""Zips that hold a model, looked at before anything opens them: what is in them, and that unpacking them is harmless."""

from __future__ import annotations

import stat
import struct
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Final

from edgeml.wire.errors import ModelError

UNPACKED_LIMIT_BYTES: Final = 4 * 1024**3  # what all files of one may take; a model for a device is far smaller
FILES_LIMIT: Final = 0xFFFE  # a count of 0xFFFF says that it stands elsewhere
DIRECTORY_LIMIT_BYTES: Final = 64 * 1024**2
TEXT_LIMIT_BYTES: Final = 64 * 1024**2  # of a JSON file in one, which is read whole

_END: Final = struct.Struct("<4s4xHHI")  # the end of central directory: signature, files on this disk, files, bytes
_END_AREA_BYTES: Final = 22 + 0xFFFF  # the record, and the longest comment behind it


def file_names(path: Path) -> list[str]:
    """The names in a zip.

    Raises:
        ModelError: damaged, or made to harm: paths outside it, links, one name twice, more than `UNPACKED_LIMIT_BYTES`.
    """
    what = f"{str(path)!r}"
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{what} is truncated or damaged: {error}", hint="fetch or save it again") from error
    for entry in entries:
        inside = PurePosixPath(entry.filename)
        if inside.is_absolute() or ".." in inside.parts or "\\" in entry.filename or not entry.filename:
            raise ModelError(f"{what} holds a path outside itself: {entry.filename!r}", hint="refused")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ModelError(f"{what} holds a link: {entry.filename!r}", hint="refused")
    names = [entry.filename for entry in entries]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ModelError(f"{what} holds {twice!r} twice: which one counts is not certain", hint="save it again")
    total = sum(entry.file_size for entry in entries)
    if total > UNPACKED_LIMIT_BYTES:
        raise ModelError(f"{what} unpacks to too much", expected=f"at most {UNPACKED_LIMIT_BYTES} bytes", got=str(total))
    return names


def read_text(archive: zipfile.ZipFile, name: str) -> bytes:
    """A small file of a zip, whole.

    Raises:
        ModelError: it says of itself that it is not small.
    """
    size = archive.getinfo(name).file_size
    if size > TEXT_LIMIT_BYTES:
        raise ModelError(f"{name!r} unpacks to too much", expected=f"at most {TEXT_LIMIT_BYTES} bytes", got=str(size))
    return archive.read(name)


def _check_directory(path: Path) -> None:
    """Refuse a list of files that would fill the memory before a name of it is seen."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_AREA_BYTES))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        return  # not a zip: zipfile says so
    _, _, count, directory = _END.unpack_from(tail, at)
    if count > FILES_LIMIT or directory > DIRECTORY_LIMIT_BYTES:
        raise ModelError(f"{str(path)!r} holds too many files", expected=f"at most {FILES_LIMIT}", got="more")
