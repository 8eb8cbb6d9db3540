"""Open a bundle: every byte is checked against its manifest before anything of it is used.

A packed bundle is its own canonical zip: `manifest.json`, `manifest.sha256`, then the blobs in order of their digest. The
manifest comes first (docs/adr/0002), so that a reader takes one header, bounds the manifest's size, checks its digest, and
computes every other name, size and offset from it; no structure of a hostile zip is ever followed. A folder holds exactly the
same files.

Reading uses constant memory. What is opened stays open: `blob` reads through the same descriptor and hashes again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.packing import write_bundle, write_folder
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.errors import BundleError, EnvironmentProblem
from edgeml.wire.manifest import MANIFEST_LIMIT_BYTES, Manifest, TensorBlob
from edgeml.wire.packed import (
    BLOBS,
    CHUNK_BYTES,
    DIGEST,
    MANIFEST,
    check_content,
    check_packed,
    describe,
    digest_file,
    read_manifest,
)

__all__ = ["Bundle", "describe", "open_bundle", "unpack_bundle", "write_bundle"]

_NO_FOLLOW: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not hold the reader


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
    packed = check_packed(_Forward(descriptor).read, os.fstat(descriptor).st_size)
    return packed.manifest, _PackedFiles(descriptor, packed.offsets)


class _Forward:
    """Reads a file from its beginning on, whatever the descriptor's own position is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0

    def read(self, size: int) -> bytes:
        data = b"".join(_chunks(self._descriptor, self._position, size))
        self._position += len(data)
        return data


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
    if MANIFEST not in os.listdir(root):
        raise BundleError("no bundle in this folder", expected=f"{MANIFEST}, {DIGEST} and blobs in it", got="none")
    _check_names(root, {MANIFEST, DIGEST, "blobs"}, "")
    data = _small_file(root, MANIFEST, MANIFEST_LIMIT_BYTES)
    if _small_file(root, DIGEST, len(digest_file("0" * 64))) != digest_file(sha256_hex(data)):
        raise BundleError(f"{DIGEST} is not the digest of {MANIFEST}", hint="one of the two was changed")
    manifest = read_manifest(data)
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
        check_content(manifest, digest, _chunks(file.fileno(), 0, size))


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


def _chunks(descriptor: int, position: int, size: int) -> Iterator[bytes]:
    """`size` bytes from `position`, or fewer where the file ends."""
    left = size
    while left > 0:
        try:
            chunk = os.pread(descriptor, min(left, CHUNK_BYTES), position)
        except OSError as error:
            raise EnvironmentProblem(f"reading the bundle failed at byte {position}: {error.strerror}") from error
        if not chunk:
            return
        yield chunk
        position += len(chunk)
        left -= len(chunk)
