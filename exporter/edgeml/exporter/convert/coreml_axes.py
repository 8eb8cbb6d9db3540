"""Core ML with free axes: the sizes that an input may have, in the words of coremltools and of `torch.export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgeml.exporter.free import FreeAxis
from edgeml.exporter.source.model import SourceRef
from edgeml.wire.manifest import BATCH, TensorSpec

TWO: Final = 2  # samples of an example: an axis of 1 would be taken for a constant
Size = Any
"""An int, or a `coremltools.RangeDim`."""


@dataclass(frozen=True, slots=True)
class OpenAxes:
    """What conversions of a torch module are told: shapes with ranges, `dynamic_shapes`, an example of several samples."""

    shapes: list[tuple[Size, ...]]
    dynamic: tuple[Mapping[int, Any], ...]
    example: tuple[Any, ...]


def input_shapes(ct: Any, ref: SourceRef, specs: Sequence[TensorSpec]) -> list[tuple[Size, ...]]:
    """The shape of each input: free axes as ranges, one range for all axes of a name."""
    known: dict[int | str, Size] = {BATCH: 1, **dict(ref.sizes)}
    for axis in ref.free:
        known[axis.name] = ct.RangeDim(axis.least, axis.most, default=known[axis.name], symbol=axis.name)
    return [tuple(known.get(size, size) for size in spec.shape) for spec in specs]


def dynamic_shapes(torch: Any, ref: SourceRef, specs: Sequence[TensorSpec]) -> tuple[Mapping[int, Any], ...]:
    """The same for `torch.export`."""
    dims = {axis.name: _dim(torch, axis) for axis in ref.free}
    return tuple({axis: dims[size] for axis, size in enumerate(spec.shape) if size in dims} for spec in specs)


def _dim(torch: Any, axis: FreeAxis) -> Any:
    return torch.export.Dim(axis.name, min=axis.least, max=axis.most)
