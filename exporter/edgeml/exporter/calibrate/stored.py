"""Calibration samples left on disk: pages of the file come as they are looked at, and go when memory is short."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from edgeml.runtime.backends import Array

LENGTHS_AT: Final = 26  # of a name and an extra field, two bytes each, in a zip member's own header
FIXED: Final = 30  # bytes of that header before them


def map_arrays(path: Path | str, names: Sequence[str]) -> dict[str, Array]:
    """What `source.model.write_arrays` wrote, under `names` in the same order, read where it is looked at."""
    found: dict[str, Array] = {}
    npy: Any = np.lib.format  # without annotations of its own
    with zipfile.ZipFile(path) as archive, Path(path).open("rb") as raw:
        for index, name in enumerate(names):
            member = archive.getinfo(f"arr_{index}.npy")
            assert member.compress_type == zipfile.ZIP_STORED, "numpy.savez does not compress"
            raw.seek(member.header_offset + LENGTHS_AT)
            raw.seek(member.header_offset + FIXED + sum(struct.unpack("<HH", raw.read(4))))
            npy.read_magic(raw)
            shape, fortran, dtype = npy.read_array_header_1_0(raw)
            order: Literal["F", "C"] = "F" if fortran else "C"
            found[name] = np.memmap(path, dtype, "r", raw.tell(), shape, order)
    return found
