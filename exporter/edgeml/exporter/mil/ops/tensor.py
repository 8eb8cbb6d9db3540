"""Making tensors and moving along them: fill, range, one-hot, bands, running sums."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeml.exporter.mil.registry import Ints, operation


@operation("fill")
def fill(shape: Ints, value: Tensor | None = None) -> Tensor:
    one = torch.zeros(()) if value is None else value.reshape(())
    return one.expand(shape).clone()


@operation("fill_like")
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return fill(tuple(ref_tensor.shape), value)


@operation("range_1d")
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """start, start + step, … below `end`."""
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@operation("one_hot")
def one_hot(
    indices: Tensor, one_hot_vector_size: int, axis: int = -1, on_value: Tensor | None = None, off_value: Tensor | None = None
) -> Tensor:
    """A new axis that holds `on_value` at each index and `off_value` elsewhere; an index outside gives only `off_value`."""
    on = torch.ones((), dtype=torch.int32) if on_value is None else on_value.reshape(())
    off = torch.zeros((), dtype=on.dtype) if off_value is None else off_value.reshape(())
    where = axis + indices.dim() + 1 if axis < 0 else axis
    hot = indices.unsqueeze(-1) == torch.arange(one_hot_vector_size, dtype=indices.dtype)
    return torch.where(hot, on, off).movedim(-1, where)


@operation("band_part")
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """The diagonals from `lower` below to `upper` above the main one, of each matrix; negative keeps all."""
    rows, columns = torch.arange(x.shape[-2]).unsqueeze(1), torch.arange(x.shape[-1]).unsqueeze(0)
    keep = torch.ones(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        keep = keep & (rows - columns <= lower)
    if upper >= 0:
        keep = keep & (columns - rows <= upper)
    return torch.where(keep, x, torch.zeros_like(x))


@operation("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """`exclusive` leaves each element itself out; `reverse` sums from the end."""
    values = x.flip(axis) if reverse else x
    sums = torch.cumsum(values, axis, dtype=x.dtype)
    if exclusive:
        sums = sums - values
    return sums.flip(axis) if reverse else sums


@operation("non_zero")
def non_zero(x: Tensor) -> Tensor:
    """(N, rank) indices in row-major order."""
    return torch.nonzero(x)
