"""Samples in `.npz` files: one array per input name, or `x` for a single input; the first axis counts samples."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.runtime.backends import Array
from edgeml.wire.errors import EnvironmentProblem, InputError
from edgeml.wire.manifest import Signature

_SINGLE: Final = "x"
_LABELS: Final = "y"  # stands beside the inputs in evaluation files; not an input here unless the signature says so


def read_samples(path: Path, signature: Signature) -> tuple[dict[str, Array], int]:
    """The arrays by input name, and how many samples they hold. What a sample must look like is the session's business.

    Raises:
        InputError: not an .npz of numeric arrays, an input is missing or unknown, or their counts differ.
    """
    arrays = _read(path)
    names = [spec.name for spec in signature.inputs]
    if len(names) == 1 and names[0] not in arrays and _SINGLE in arrays:
        arrays[names[0]] = arrays.pop(_SINGLE)
    if _LABELS not in names:
        arrays.pop(_LABELS, None)
    if sorted(arrays) != sorted(names):
        raise InputError(f"arrays in {str(path)!r}", expected=", ".join(names), got=", ".join(arrays) or "none")
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise InputError(f"samples in {str(path)!r}", expected="one count of at least 1 for all inputs", got=str(counts))
    return arrays, next(iter(counts.values()))


def write_outputs(path: Path, outputs: Mapping[str, Array]) -> None:
    """Write arrays by name; the file appears whole or not at all.

    Raises:
        EnvironmentProblem: the disk refused.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".npz", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, allow_pickle=False, **dict(outputs))
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {str(path)!r}: {error.strerror}") from error


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InputError(f"{str(path)!r} is not an .npz file", expected="named arrays", got="one array")
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        # numpy takes any file it does not know for a pickle, and says so
        cause = "not an .npz file of numeric arrays" if "pickle" in str(error) else str(error)
        raise InputError(f"cannot read samples from {str(path)!r}: {cause}", hint="write it with numpy.savez") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise InputError(f"array {name!r} in {str(path)!r}", expected="numbers", got=str(array.dtype))
    return arrays
