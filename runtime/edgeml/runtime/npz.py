"""Samples in `.npz` files: one array per input name, or `x` for a single input; the first axis counts samples.

A file is hostile until proved otherwise: nothing is unpickled, and no memory is taken on a header's word.
"""

from __future__ import annotations

import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from edgeml.runtime.backends import Array
from edgeml.wire.errors import EnvironmentProblem, InputError
from edgeml.wire.manifest import Signature

LIMIT_BYTES: Final = 4 * 1024**3  # what one file may unpack to; more belongs in a sample of it
MEMBER_LIMIT: Final = 4096  # arrays in one file
RANK_LIMIT: Final = 32  # numpy 1's own; a longer shape only serves to make its product slow
_SINGLE: Final = "x"
_LABELS: Final = "y"  # stands beside the inputs in evaluation files; not an input here unless the signature says so
_BROKEN: Final = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
)


def read_samples(path: Path, signature: Signature) -> tuple[dict[str, Array], int]:
    """The arrays by input name, and how many samples they hold. What a sample must look like is the session's business.

    Raises:
        InputError: not an .npz of numeric arrays, an input is missing or unknown, or their counts differ.
    """
    arrays = read_npz(path).found
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


@dataclass(frozen=True, slots=True)
class Npz:
    names: tuple[str, ...]  # of all arrays in the file
    found: dict[str, Array]  # those that were asked for


def read_npz(path: Path, wanted: Collection[str] | None = None, *, limit_bytes: int = LIMIT_BYTES) -> Npz:
    """The arrays of `wanted`, or all. Sizes are checked against the zip's directory before any array is made.

    Raises:
        InputError: not an `.npz` of numbers, damaged, or hostile.
    """
    what = f"{path.name!r} cannot be read as .npz"
    try:
        if not path.is_file():  # a FIFO would hold the reader, a device would never end
            raise InputError(f"no file {str(path)!r}", hint="give an .npz of samples")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MEMBER_LIMIT or len({m.filename for m in members}) != len(members):
                raise InputError(what, expected=f"at most {MEMBER_LIMIT} arrays of distinct names", got=str(len(members)))
            names = tuple(m.filename.removesuffix(".npy") for m in members)
            chosen = [(n, m) for n, m in zip(names, members, strict=True) if wanted is None or n in wanted]
            total = sum(m.file_size for _, m in chosen)
            if total > limit_bytes:
                raise InputError(f"{path.name!r} unpacks to too much", expected=f"at most {limit_bytes} bytes", got=str(total))
            found = {}
            for name, member in chosen:
                with archive.open(member) as stream:
                    found[name] = _read_array(stream, member.file_size, f"{path.name}: {name!r}")
    except _BROKEN as error:
        raise InputError(f"{what}: {error}", hint="write it with numpy.savez(path, x=..., y=...)") from error
    return Npz(names, found)


def _read_array(stream: IO[bytes], size: int, what: str) -> Array:
    shape, fortran, dtype = _header(stream, what)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise InputError(f"{what}", expected="numbers", got=f"dtype {dtype}", hint="pickled objects and text are not read")
    count = math.prod(shape)  # Python integers: a hostile header cannot wrap around
    if any(axis < 0 for axis in shape) or stream.tell() + count * dtype.itemsize != size:
        raise InputError(
            f"{what} promises more or less than it holds",
            expected=f"{count * dtype.itemsize} bytes for shape {shape}",
            got=f"{size - stream.tell()} bytes",
            hint="the file is damaged; write it again",
        )
    values = np.frombuffer(stream.read(count * dtype.itemsize), dtype=dtype, count=count)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _header(stream: IO[bytes], what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    npy: Any = np.lib.format  # without annotations of its own
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in readers:
        raise InputError(f"{what} has npy version {version}", expected="1.0 or 2.0", hint="store plain numbers")
    try:
        shape, fortran, dtype = readers[version](stream)
    except Exception as error:  # a header is a Python literal: the parser raises what it likes
        raise InputError(f"{what} has no npy header: {' '.join(str(error).split())[:200]}") from error
    if len(shape) > RANK_LIMIT:
        raise InputError(f"{what}", expected=f"at most {RANK_LIMIT} axes", got=str(len(shape)))
    return shape, fortran, dtype
