"""Check a packed bundle byte for byte, before anything of it is believed.

Its manifest comes first and names everything else, so every header, size and offset is computed from it and compared; no
structure of a hostile zip is ever followed, and memory stays constant.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from edgeml.wire.canonical import ZipEntry, directory, header_size, local_header, sha256_hex, zip_size
from edgeml.wire.errors import BundleError
from edgeml.wire.manifest import MANIFEST_LIMIT_BYTES, Manifest, decode_manifest

_MANIFEST: Final = "manifest.json"
_DIGEST: Final = "manifest.sha256"
_BLOBS: Final = "blobs/sha256"
_CHUNK_BYTES: Final = 1 << 20
_CRC_AND_SIZE: Final = struct.Struct("<14xIII")  # where a zip's local header has them


@dataclass(frozen=True, slots=True)
class Packed:
    """What a checked file is: its manifest, and its own digest and size."""

    manifest: Manifest
    sha256: str
    bytes: int


def check_packed(path: Path) -> Packed:
    """Read the whole file once.

    Raises:
        BundleError: it is not the canonical packing of what its manifest promises.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _check(_Hashed(file), size)
    except OSError as error:
        raise BundleError(f"cannot read bundle {str(path)!r}: {error.strerror}") from error


class _Hashed:
    """Reads forward and hashes all that passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def _check(file: _Hashed, size: int) -> Packed:
    data = _read_manifest(file)
    digest_line = f"{sha256_hex(data)}  {_MANIFEST}\n".encode()
    second = ZipEntry(_DIGEST, len(digest_line), zlib.crc32(digest_line))
    promised = local_header(second) + digest_line
    if file.read(len(promised)) != promised:
        raise BundleError(f"{_DIGEST} is not the digest of {_MANIFEST}", hint="one of the two was changed")
    manifest = decode_manifest(data)
    if not manifest.artifacts:
        raise BundleError("the manifest promises no artifact")
    blobs = [(f"{_BLOBS}/{digest}", count) for digest, count in sorted(manifest.blobs().items())]
    expected = zip_size([(_MANIFEST, len(data)), (_DIGEST, len(digest_line)), *blobs])
    if size != expected:
        raise BundleError("size of the packed bundle", expected=f"{expected} bytes", got=str(size))
    entries = [ZipEntry(_MANIFEST, len(data), zlib.crc32(data)), second]
    entries += [_check_blob(file, name, count) for name, count in blobs]
    closing = directory(entries)
    if file.read(len(closing) + 1) != closing:
        raise BundleError("the zip's central directory is not the canonical one")
    return Packed(manifest, file.sha256.hexdigest(), size)


def _read_manifest(file: _Hashed) -> bytes:
    header = file.read(header_size(_MANIFEST))
    if len(header) < header_size(_MANIFEST) or header[:4] != b"PK\x03\x04":
        raise BundleError("not a packed bundle", expected=f"a zip that opens with {_MANIFEST}", got=f"{header[:4]!r}")
    _, size, _ = _CRC_AND_SIZE.unpack_from(header)
    if size > MANIFEST_LIMIT_BYTES:
        raise BundleError(f"{_MANIFEST} too large", expected=f"at most {MANIFEST_LIMIT_BYTES} bytes", got=str(size))
    data = file.read(size)
    if header != local_header(ZipEntry(_MANIFEST, len(data), zlib.crc32(data))):
        raise BundleError(f"{_MANIFEST} and its zip header do not agree", hint="the file is truncated or was changed")
    return data


def _check_blob(file: _Hashed, name: str, size: int) -> ZipEntry:
    header = file.read(header_size(name))
    sha256, crc, left = hashlib.sha256(), 0, size
    while left > 0:
        chunk = file.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise BundleError(f"{name!r} ends early", expected=f"{size} bytes", got=str(size - left))
        sha256.update(chunk)
        crc = zlib.crc32(chunk, crc)
        left -= len(chunk)
    if sha256.hexdigest() != name.rpartition("/")[2]:
        raise BundleError(f"content of {name!r} is not what its name promises", got=f"sha256 {sha256.hexdigest()}")
    entry = ZipEntry(name, size, crc)
    if header != local_header(entry):
        raise BundleError(f"the zip header of {name!r} is not the canonical one")
    return entry
