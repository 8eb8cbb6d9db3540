"""Check a packed bundle byte for byte, before anything of it is believed, and hash the file as a whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeml.wire import packed
from edgeml.wire.errors import BundleError
from edgeml.wire.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Packed:
    """What a checked file is: its manifest, and its own digest and size."""

    manifest: Manifest
    sha256: str
    bytes: int


def check_packed(path: Path) -> Packed:
    """Read the whole file once.

    Raises:
        BundleError: it is not the canonical packing of what its manifest promises, or the manifest contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            hashed = _Hashed(file)
            found = packed.check_packed(hashed.read, size)
    except OSError as error:
        raise BundleError(f"cannot read bundle {str(path)!r}: {error.strerror}") from error
    return Packed(found.manifest, hashed.sha256.hexdigest(), size)


class _Hashed:
    """Reads forward and hashes all that passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data
