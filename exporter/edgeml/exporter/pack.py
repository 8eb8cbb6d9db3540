"""Manifest and blobs -> bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
