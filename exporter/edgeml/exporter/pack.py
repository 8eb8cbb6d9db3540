"""Manifest and blobs -> bundle; a model of several files -> one blob."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeml.exporter.mil.package import pack_files, unpack_files
from edgeml.runtime.packing import write_bundle
from edgeml.wire.manifest import Manifest


def pack(manifest: Manifest, blobs: Mapping[str, bytes], path: Path) -> str:
    """Write `path` and give the bundle's digest.

    Args:
        manifest: what the bundle promises.
        blobs: by sha256; those that the manifest does not name are left out, so that all that the stages made can be handed in.
        path: of the `.edgeml` file; it appears whole or not at all.

    Raises:
        BundleError: the manifest contradicts itself or a blob, or a blob is missing.
        EnvironmentProblem: the disk refused.
    """
    promised = manifest.blobs()
    return write_bundle(manifest, {digest: data for digest, data in blobs.items() if digest in promised}, path)


def archive(files: Mapping[str, bytes]) -> bytes:
    """The files of an `.mlpackage` as one blob, the same bytes for the same conversion.

    Raises:
        ModelError: they are not such a package.
    """
    return pack_files(files)


def unarchive(data: bytes) -> dict[str, bytes]:
    """The files of an `.mlpackage` from its blob.

    Raises:
        ModelError: not the canonical packing of one.
    """
    return unpack_files(data)
