"""Open a bundle: every byte is checked against its manifest before anything of it is used.

A packed bundle is its own canonical zip: `manifest.json`, `manifest.sha256`, then the blobs in order of their digest. The
manifest comes first (docs/adr/0002), so that a reader takes one header, bounds the manifest's size, checks its digest, and
computes every other name, size and offset from it; no structure of a hostile zip is ever followed. A folder holds exactly the
same files.

Reading uses constant memory. What is opened stays open: `blob` reads through the same descriptor and hashes again.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.contract import check_manifest, label
from edgeml.runtime.packing import BLOBS, DIGEST, MANIFEST, digest_file, layout, write_bundle, write_folder
from edgeml.wire.canonical import ZIP_LIMIT, ZipEntry, directory, header_size, local_header, sha256_hex, zip_size
from edgeml.wire.errors import BundleError, EnvironmentProblem
from edgeml.wire.manifest import MANIFEST_LIMIT_BYTES, Manifest, TensorBlob, decode_manifest

__all__ = ["Bundle", "describe", "open_bundle", "unpack_bundle", "write_bundle"]

_CHUNK_BYTES: Final = 1 << 20
_NO_FOLLOW: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not hold the reader
_CRC_AND_SIZE: Final = struct.Struct("<14xIII")  # where a zip's local header has them


class _Files(Protocol):
    """The checked files of an open bundle."""

    def read(self, digest: str, size: int) -> bytes: ...

    def close(self) -> None: ...


class Bundle:
    """An open, checked bundle; a context manager. Not for use after `close`."""

    def __init__(self, path: Path, manifest: Manifest, files: _Files) -> None:
        self.path = path
        self.manifest = manifest
        self.digest = manifest.digest
        self._files = files
        self._sizes = manifest.blobs()

    def blob(self, sha256: str) -> bytes:
        """The bytes with this digest, hashed again as they are read.

        Raises:
            BundleError: the manifest promises no such blob, or the file changed since it was opened.
        """
        size = self._sizes.get(sha256)
        if size is None:
            raise BundleError(f"the manifest promises no blob {sha256[:12]!r}")
        data = self._files.read(sha256, size)
        if len(data) != size or sha256_hex(data) != sha256:
            raise BundleError(f"{describe(self.manifest, sha256)} changed since the bundle was opened")
        return data

    def tensor(self, spec: TensorBlob) -> Array:
        """A stored tensor, read-only."""
        stored = np.dtype(spec.dtype).newbyteorder("<")
        return np.frombuffer(self.blob(spec.sha256), dtype=stored).reshape(spec.shape).astype(spec.dtype, copy=False)

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_bundle(path: Path | str) -> Bundle:
    """Check every byte of a packed bundle or bundle folder, and open it.

    Raises:
        BundleError: not a bundle, or not what its manifest promises; the message names the blob, file or field.
    """
    place = Path(path)
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(
            f"cannot open bundle {str(place)!r}: {error.strerror}", hint="give a .edgeml file or its folder"
        ) from error
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            manifest, files = _check_folder(descriptor)
        elif stat.S_ISREG(kind):
            manifest, files = _check_packed(descriptor)
        else:
            raise BundleError(f"{str(place)!r} is neither a regular file nor a folder")  # noqa: TRY301 - the descriptor is closed below
    except BaseException:
        os.close(descriptor)
        raise
    return Bundle(place, manifest, files)


def describe(manifest: Manifest, sha256: str) -> str:
    """What a blob is in the manifest's words: `blob 1a2b3c4d5e6f (artifact onnx:int8)`."""
    uses = [f"artifact {label(artifact)}" for artifact in manifest.artifacts if artifact.sha256 == sha256]
    uses += [f"golden input {tensor.name!r}" for tensor in manifest.golden_inputs if tensor.sha256 == sha256]
    for artifact in manifest.artifacts:
        outputs = artifact.golden.outputs if artifact.golden else ()
        uses += [f"golden output {o.expected.name!r} of {label(artifact)}" for o in outputs if o.expected.sha256 == sha256]
    return f"blob {sha256[:12]} ({', '.join(uses)})"


def unpack_bundle(path: Path, folder: Path) -> None:
    """Check a packed bundle and write its files into `folder`, which must not exist yet.

    Raises:
        BundleError: it is not what its manifest promises.
        EnvironmentProblem: the disk refused, or `folder` exists; nothing half-written stays.
    """
    with open_bundle(path) as bundle:
        write_folder(bundle.manifest, bundle.blob, folder)


class _PackedFiles:
    def __init__(self, descriptor: int, offsets: dict[str, int]) -> None:
        self._descriptor = descriptor
        self._offsets = offsets

    def read(self, digest: str, size: int) -> bytes:
        return b"".join(_chunks(self._descriptor, self._offsets[digest], size))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _check_packed(descriptor: int) -> tuple[Manifest, _Files]:
    data = _packed_manifest(descriptor)
    position = header_size(MANIFEST) + len(data)
    promised = digest_file(sha256_hex(data))
    second = ZipEntry(DIGEST, len(promised), zlib.crc32(promised))
    if _read(descriptor, position, header_size(DIGEST) + len(promised)) != local_header(second) + promised:
        raise BundleError(f"{DIGEST} is not the digest of {MANIFEST}", hint="one of the two was changed")
    position += header_size(DIGEST) + len(promised)

    manifest = _manifest(data)
    files = layout(manifest, len(data))
    expected, got = zip_size(files), os.fstat(descriptor).st_size
    if got != expected or got > ZIP_LIMIT:
        raise BundleError("size of the packed bundle", expected=f"{min(expected, ZIP_LIMIT)} bytes", got=str(got))

    entries = [ZipEntry(MANIFEST, len(data), zlib.crc32(data)), second]
    offsets: dict[str, int] = {}
    for name, size in files[2:]:
        digest = name.rpartition("/")[2]
        header = _read(descriptor, position, header_size(name))
        position += len(header)
        offsets[digest] = position
        crc = _check_content(manifest, digest, _chunks(descriptor, position, size))
        entry = ZipEntry(name, size, crc)
        if header != local_header(entry):
            raise BundleError(f"the zip header of {describe(manifest, digest)} is not the canonical one")
        entries.append(entry)
        position += size
    _check_directory(descriptor, position, entries)
    return manifest, _PackedFiles(descriptor, offsets)


def _packed_manifest(descriptor: int) -> bytes:
    header = _read(descriptor, 0, header_size(MANIFEST))
    if len(header) < header_size(MANIFEST) or header[:4] != b"PK\x03\x04":
        raise BundleError("not a packed bundle", expected=f"a zip that opens with {MANIFEST}", got=f"{header[:4]!r}")
    _, size, _ = _CRC_AND_SIZE.unpack_from(header)
    if size > MANIFEST_LIMIT_BYTES:
        raise BundleError(f"{MANIFEST} too large", expected=f"at most {MANIFEST_LIMIT_BYTES} bytes", got=str(size))
    data = _read(descriptor, len(header), size)
    if header != local_header(ZipEntry(MANIFEST, len(data), zlib.crc32(data))):
        raise BundleError(f"{MANIFEST} and its zip header do not agree", hint="the file is truncated or was changed")
    return data


def _check_directory(descriptor: int, position: int, entries: list[ZipEntry]) -> None:
    expected = directory(entries)
    got = _read(descriptor, position, len(expected))
    if got != expected:
        at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), len(got))
        raise BundleError(f"the zip's central directory is not the canonical one: byte {at} of {len(expected)}")


class _FolderFiles:
    """Holds the `blobs/sha256` folder open, so that a path swapped later is not followed."""

    def __init__(self, folder: int, descriptors: tuple[int, ...]) -> None:
        self._folder = folder
        self._descriptors = descriptors

    def read(self, digest: str, size: int) -> bytes:
        with _regular(self._folder, digest, f"{BLOBS}/{digest}") as file:
            return b"".join(_chunks(file.fileno(), 0, size))

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = ()


def _check_folder(root: int) -> tuple[Manifest, _Files]:
    _check_names(root, {MANIFEST, DIGEST, "blobs"}, "")
    data = _small_file(root, MANIFEST, MANIFEST_LIMIT_BYTES)
    if _small_file(root, DIGEST, len(digest_file("0" * 64))) != digest_file(sha256_hex(data)):
        raise BundleError(f"{DIGEST} is not the digest of {MANIFEST}", hint="one of the two was changed")
    manifest = _manifest(data)
    above = _subfolder(root, "blobs", "blobs")
    try:
        _check_names(above, {"sha256"}, "blobs/")
        blobs = _subfolder(above, "sha256", BLOBS)
    finally:
        os.close(above)
    try:
        promised = manifest.blobs()
        _check_names(blobs, set(promised), f"{BLOBS}/")
        for digest, size in sorted(promised.items()):
            _check_blob(manifest, blobs, digest, size)
    except BaseException:
        os.close(blobs)
        raise
    return manifest, _FolderFiles(blobs, (blobs, root))


def _check_blob(manifest: Manifest, folder: int, digest: str, size: int) -> None:
    with _regular(folder, digest, f"{BLOBS}/{digest}") as file:
        got = os.fstat(file.fileno()).st_size
        if got != size:
            raise BundleError(f"size of {describe(manifest, digest)}", expected=f"{size} bytes", got=str(got))
        _check_content(manifest, digest, _chunks(file.fileno(), 0, size))


def _check_names(folder: int, expected: set[str], prefix: str) -> None:
    found = set(os.listdir(folder))
    for name in sorted(expected - found):
        raise BundleError(f"the bundle lacks {prefix + name!r}")
    for name in sorted(found - expected):
        raise BundleError(f"the bundle holds a file its manifest does not name: {prefix + name!r}")


def _subfolder(parent: int, name: str, shown: str) -> int:
    try:
        return os.open(name, _NO_FOLLOW | os.O_DIRECTORY, dir_fd=parent)
    except OSError as error:
        raise BundleError(f"{shown!r} is not a folder of the bundle: {error.strerror}", hint="links are refused") from error


class _regular:  # noqa: N801 - used as a function
    """Open a file of a folder bundle, refusing links and devices."""

    def __init__(self, folder: int, name: str, shown: str) -> None:
        try:
            self._descriptor = os.open(name, _NO_FOLLOW, dir_fd=folder)
        except OSError as error:
            raise BundleError(f"{shown!r} cannot be read: {error.strerror}", hint="links are refused") from error
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            os.close(self._descriptor)
            raise BundleError(f"{shown!r} is not a regular file")

    def fileno(self) -> int:
        return self._descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _small_file(folder: int, name: str, limit: int) -> bytes:
    with _regular(folder, name, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise BundleError(f"{name} too large", expected=f"at most {limit} bytes", got=str(size))
        return b"".join(_chunks(file.fileno(), 0, size))


def _manifest(data: bytes) -> Manifest:
    manifest = decode_manifest(data)
    check_manifest(manifest)
    return manifest


def _check_content(manifest: Manifest, digest: str, chunks: Iterator[bytes]) -> int:
    """Hash a blob as it streams by; gives its CRC-32."""
    sha256, crc = hashlib.sha256(), 0
    for chunk in chunks:
        sha256.update(chunk)
        crc = zlib.crc32(chunk, crc)
    if sha256.hexdigest() != digest:
        raise BundleError(f"content of {describe(manifest, digest)}", expected=f"sha256 {digest}", got=sha256.hexdigest())
    return crc


def _read(descriptor: int, position: int, size: int) -> bytes:
    return b"".join(_chunks(descriptor, position, size))


def _chunks(descriptor: int, position: int, size: int) -> Iterator[bytes]:
    """`size` bytes from `position`, or fewer where the file ends."""
    left = size
    while left > 0:
        try:
            chunk = os.pread(descriptor, min(left, _CHUNK_BYTES), position)
        except OSError as error:
            raise EnvironmentProblem(f"reading the bundle failed at byte {position}: {error.strerror}") from error
        if not chunk:
            return
        yield chunk
        position += len(chunk)
        left -= len(chunk)
