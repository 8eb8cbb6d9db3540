"""Write bundles: the packed form, and the same files as a folder. A file of that name appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from edgeml.runtime.contract import check_manifest
from edgeml.wire.canonical import ZIP_LIMIT, ZipEntry, directory, local_header, sha256_hex, zip_size
from edgeml.wire.errors import BundleError, EnvironmentProblem
from edgeml.wire.manifest import Manifest

MANIFEST: Final = "manifest.json"
DIGEST: Final = "manifest.sha256"
BLOBS: Final = "blobs/sha256"


def digest_file(digest: str) -> bytes:
    """The content of `manifest.sha256`, as `sha256sum -c` reads it."""
    return f"{digest}  {MANIFEST}\n".encode()


def layout(manifest: Manifest, manifest_size: int) -> list[tuple[str, int]]:
    """Every file of the bundle in packed order: (name, bytes)."""
    blobs = sorted(manifest.blobs().items())
    return [(MANIFEST, manifest_size), (DIGEST, len(digest_file("0" * 64))), *((f"{BLOBS}/{d}", size) for d, size in blobs)]


def write_bundle(manifest: Manifest, blobs: Mapping[str, bytes], path: Path) -> str:
    """Pack a bundle to `path` and give its digest; equal arguments give equal bytes.

    Raises:
        BundleError: the manifest contradicts itself or `blobs` (sha256 -> bytes); nothing is written.
        EnvironmentProblem: the disk refused; nothing is left at `path` that was not there before.
    """
    check_manifest(manifest)
    contents = _contents(manifest, blobs)
    if zip_size([(name, len(data)) for name, data in contents.items()]) > ZIP_LIMIT:
        raise BundleError("the bundle is too large", expected=f"at most {ZIP_LIMIT} bytes", got="more")

    def write(file: BinaryIO) -> None:
        entries = []
        for name, data in contents.items():
            entry = ZipEntry(name, len(data), zlib.crc32(data))
            file.write(local_header(entry))
            file.write(data)
            entries.append(entry)
        file.write(directory(entries))

    _write_whole(path, write)
    return manifest.digest


def write_folder(manifest: Manifest, blob: Callable[[str], bytes], folder: Path) -> None:
    """Write a bundle as a folder, which must not exist yet; `blob` gives checked bytes by digest.

    Raises:
        EnvironmentProblem: the disk refused, or `folder` exists; nothing half-written stays.
    """
    if folder.exists():
        raise EnvironmentProblem(f"cannot write folder {str(folder)!r}: it exists")
    data = manifest.encode()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise EnvironmentProblem(f"cannot write folder {str(folder)!r}: {error.strerror}") from error
    try:
        (staging / BLOBS).mkdir(parents=True)
        _write_synced(staging / MANIFEST, data)
        _write_synced(staging / DIGEST, digest_file(sha256_hex(data)))
        for digest in manifest.blobs():
            _write_synced(staging / BLOBS / digest, blob(digest))
        for inner in (staging / BLOBS, staging / "blobs", staging):
            _sync_folder(inner)
        staging.chmod(0o755)
        staging.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write folder {str(folder)!r}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _contents(manifest: Manifest, blobs: Mapping[str, bytes]) -> dict[str, bytes]:
    data = manifest.encode()
    contents = {MANIFEST: data, DIGEST: digest_file(sha256_hex(data))}
    promised = manifest.blobs()
    for digest in sorted(blobs.keys() - promised.keys()):
        raise BundleError(f"the manifest does not name blob {digest[:12]}")
    for digest, size in sorted(promised.items()):
        blob = blobs.get(digest)
        if blob is None:
            raise BundleError(f"blob {digest[:12]} of the manifest is missing")
        if len(blob) != size or sha256_hex(blob) != digest:
            raise BundleError(f"blob {digest[:12]} is not the bytes its name promises")
        contents[f"{BLOBS}/{digest}"] = blob
    return contents


def _write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {str(path)!r}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {str(path)!r}: {error.strerror}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
