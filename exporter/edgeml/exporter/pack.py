"""Manifest and blobs -> bundle; bundle and reports -> where the user wants them, all or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeml.runtime.packing import write_bundle
from edgeml.wire.errors import EnvironmentProblem
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


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written before the work begins.

    Raises:
        EnvironmentProblem: it, or the folder it would be made in, takes no files from this user.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise EnvironmentProblem(f"cannot write to {str(there)!r}", hint="give another -o DIR")


def move_all(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Copy `files` beside their places in `folder`, then rename all of them there; gives the new paths.

    Raises:
        EnvironmentProblem: the disk refused; what stood in the folder stands.
    """
    staged = {path: folder / f".{path.name}.part" for path in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, part in staged.items():
            shutil.copyfile(path, part)
        return {path: part.replace(folder / path.name) for path, part in staged.items()}
    except OSError as error:
        for part in staged.values():
            part.unlink(missing_ok=True)
        raise EnvironmentProblem(f"cannot write to {str(folder)!r}: {error.strerror}", hint="give another -o DIR") from error
