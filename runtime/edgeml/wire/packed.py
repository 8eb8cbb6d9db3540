"""The packed bundle: a zip of which every byte that is not content follows from its manifest, so that none is ever parsed.

`manifest.json`, `manifest.sha256`, then the blobs in order of their digest (docs/adr/0002). A reader takes one header, bounds
the manifest's size, checks its digest, and computes every other name, size and offset from it. Reading goes forward once, in
constant memory; where the bytes come from is the caller's.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from edgeml.wire.canonical import ZIP_LIMIT, ZipEntry, directory, header_size, local_header, sha256_hex, zip_size
from edgeml.wire.contract import check_manifest, label
from edgeml.wire.errors import BundleError
from edgeml.wire.manifest import MANIFEST_LIMIT_BYTES, Manifest, decode_manifest

MANIFEST: Final = "manifest.json"
DIGEST: Final = "manifest.sha256"
BLOBS: Final = "blobs/sha256"
CHUNK_BYTES: Final = 1 << 20
_CRC_AND_SIZE: Final = struct.Struct("<14xIII")  # where a zip's local header has them

Read = Callable[[int], bytes]
"""The next so many bytes of a file; fewer only where it ends."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed bundle that is what its manifest promises; `offsets` says where each blob begins."""

    manifest: Manifest
    offsets: dict[str, int]


def digest_file(digest: str) -> bytes:
    """The content of `manifest.sha256`, as `sha256sum -c` reads it."""
    return f"{digest}  {MANIFEST}\n".encode()


def layout(manifest: Manifest, manifest_size: int) -> list[tuple[str, int]]:
    """Every file of the bundle in packed order: (name, bytes)."""
    blobs = sorted(manifest.blobs().items())
    return [(MANIFEST, manifest_size), (DIGEST, len(digest_file("0" * 64))), *((f"{BLOBS}/{d}", size) for d, size in blobs)]


def describe(manifest: Manifest, sha256: str) -> str:
    """What a blob is in the manifest's words: `blob 1a2b3c4d5e6f (artifact onnx:int8)`."""
    uses = [f"artifact {label(artifact)}" for artifact in manifest.artifacts if artifact.sha256 == sha256]
    uses += [f"golden input {tensor.name!r}" for tensor in manifest.golden_inputs if tensor.sha256 == sha256]
    for artifact in manifest.artifacts:
        outputs = artifact.golden.outputs if artifact.golden else ()
        uses += [f"golden output {o.expected.name!r} of {label(artifact)}" for o in outputs if o.expected.sha256 == sha256]
    return f"blob {sha256[:12]} ({', '.join(uses)})"


def check_packed(read: Read, size: int) -> Packed:
    """Read a file of `size` bytes to its end, and hold every byte to its manifest.

    Raises:
        BundleError: it is not the canonical packing of what its manifest promises.
    """
    data = _leading_manifest(read)
    promised = digest_file(sha256_hex(data))
    second = ZipEntry(DIGEST, len(promised), zlib.crc32(promised))
    if read(header_size(DIGEST) + len(promised)) != local_header(second) + promised:
        raise BundleError(f"{DIGEST} is not the digest of {MANIFEST}", hint="one of the two was changed")
    manifest = read_manifest(data)
    files = layout(manifest, len(data))
    expected = zip_size(files)
    if size != expected or size > ZIP_LIMIT:
        raise BundleError("size of the packed bundle", expected=f"{min(expected, ZIP_LIMIT)} bytes", got=str(size))
    entries = [ZipEntry(MANIFEST, len(data), zlib.crc32(data)), second]
    position = sum(header_size(entry.name) + entry.size for entry in entries)
    offsets: dict[str, int] = {}
    for name, count in files[2:]:
        digest = name.rpartition("/")[2]
        offsets[digest] = position + header_size(name)
        entries.append(_check_blob(read, manifest, digest, name, count))
        position = offsets[digest] + count
    _check_directory(read, entries)
    return Packed(manifest, offsets)


def read_manifest(data: bytes) -> Manifest:
    """The manifest in `data`, held to its own claims.

    Raises:
        BundleError: it is none, or contradicts itself.
    """
    manifest = decode_manifest(data)
    check_manifest(manifest)
    return manifest


def check_content(manifest: Manifest, digest: str, chunks: Iterable[bytes]) -> int:
    """Hash a blob as it streams by; gives its CRC-32."""
    sha256, crc = hashlib.sha256(), 0
    for chunk in chunks:
        sha256.update(chunk)
        crc = zlib.crc32(chunk, crc)
    if sha256.hexdigest() != digest:
        raise BundleError(f"content of {describe(manifest, digest)}", expected=f"sha256 {digest}", got=sha256.hexdigest())
    return crc


def _leading_manifest(read: Read) -> bytes:
    header = read(header_size(MANIFEST))
    if len(header) < header_size(MANIFEST) or header[:4] != b"PK\x03\x04":
        raise BundleError("not a packed bundle", expected=f"a zip that opens with {MANIFEST}", got=f"{header[:4]!r}")
    _, size, _ = _CRC_AND_SIZE.unpack_from(header)
    if size > MANIFEST_LIMIT_BYTES:
        raise BundleError(f"{MANIFEST} too large", expected=f"at most {MANIFEST_LIMIT_BYTES} bytes", got=str(size))
    data = read(size)
    if header != local_header(ZipEntry(MANIFEST, len(data), zlib.crc32(data))):
        raise BundleError(f"{MANIFEST} and its zip header do not agree", hint="the file is truncated or was changed")
    return data


def _check_blob(read: Read, manifest: Manifest, digest: str, name: str, size: int) -> ZipEntry:
    header = read(header_size(name))
    entry = ZipEntry(name, size, check_content(manifest, digest, _chunks(read, size)))
    if header != local_header(entry):
        raise BundleError(f"the zip header of {describe(manifest, digest)} is not the canonical one")
    return entry


def _check_directory(read: Read, entries: list[ZipEntry]) -> None:
    expected = directory(entries)
    got = read(len(expected))
    if got != expected:
        at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), len(got))
        raise BundleError(f"the zip's central directory is not the canonical one: byte {at} of {len(expected)}")


def _chunks(read: Read, size: int) -> Iterator[bytes]:
    left = size
    while left > 0 and (chunk := read(min(left, CHUNK_BYTES))):
        yield chunk
        left -= len(chunk)
