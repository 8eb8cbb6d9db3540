"""Write bundles: the packed form, and the same files as a folder. A file of that name appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from edgeml.runtime.atomic import move, sync_folder
from edgeml.wire.canonical import ZIP_LIMIT, ZipEntry, directory, local_header, sha256_hex, zip_size
from edgeml.wire.contract import check_manifest
from edgeml.wire.errors import BundleError, EnvironmentProblem
from edgeml.wire.manifest import Manifest
from edgeml.wire.packed import BLOBS, DIGEST, MANIFEST, digest_file


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

    write_whole(path, _packed(contents))
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
            sync_folder(inner)
        staging.chmod(0o755)
        move(staging, folder)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write folder {str(folder)!r}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_whole(path: Path, parts: Iterable[bytes], *, hint: str | None = None) -> None:
    """Put the parts at `path` in one step, for all to read; writers of one path do not meet.

    Raises:
        EnvironmentProblem: the disk refused; `path` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {str(path)!r}: {error.strerror}", hint=hint) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        move(Path(temporary), path)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {str(path)!r}: {error.strerror}", hint=hint) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _packed(contents: Mapping[str, bytes]) -> Iterator[bytes]:
    entries = []
    for name, data in contents.items():
        entry = ZipEntry(name, len(data), zlib.crc32(data))
        yield local_header(entry)
        yield data
        entries.append(entry)
    yield directory(entries)


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


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
