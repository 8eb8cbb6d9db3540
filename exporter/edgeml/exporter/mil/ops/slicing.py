"""Slices and windows."""

# ruff: noqa: PLR0917 - the parameters are the operation's inputs

from __future__ import annotations

import torch
from torch import Tensor

from edgeml.exporter.mil.registry import Ints, operation


@operation("slice_by_index")
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Ints = (),
    end_mask: Ints = (),
    squeeze_mask: Ints = (),
) -> Tensor:
    """x[begin:end:stride] on each axis as numpy does it, negative strides included.

    A true `begin_mask` or `end_mask` leaves that bound out; a true `squeeze_mask` takes the single index `begin`.
    """
    for axis, index in _indices(x, begin, end, stride, begin_mask, end_mask).items():
        x = _take(x, axis, begin[axis], index, single=bool(squeeze_mask) and bool(squeeze_mask[axis]))
    gone = [axis for axis, squeeze in enumerate(squeeze_mask) if squeeze]
    return torch.squeeze(x, gone) if gone else x


@operation("slice_by_size")
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """`size` elements from `begin`; -1 takes all that remain."""
    for axis, (start, count) in enumerate(zip(begin, size, strict=True)):
        first = start % x.shape[axis] if start < 0 else start
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@operation("slice_update")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Ints = (),
    end_mask: Ints = (),
    squeeze_mask: Ints = (),
) -> Tensor:
    """`x` with the slice replaced by `update`."""
    places = torch.arange(x.numel()).reshape(x.shape)
    chosen = slice_by_index(places, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    result = x.clone().reshape(-1)
    result[chosen.reshape(-1)] = update.expand(chosen.shape).reshape(-1)
    return result.reshape(x.shape)


@operation("sliding_windows")
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """Windows along `axis`, as a new axis before it that counts them."""
    where = axis % x.dim()
    return x.unfold(where, size, stride).movedim(-1, where + 1)


def _indices(x: Tensor, begin: Ints, end: Ints, stride: Ints | None, begin_mask: Ints, end_mask: Ints) -> dict[int, slice]:
    steps = stride or (1,) * x.dim()
    return {
        axis: slice(
            None if begin_mask and begin_mask[axis] else begin[axis],
            None if end_mask and end_mask[axis] else end[axis],
            steps[axis],
        )
        for axis in range(x.dim())
    }


def _take(x: Tensor, axis: int, start: int, index: slice, *, single: bool) -> Tensor:
    """One axis; other steps than 1 are spelt out as indices, since torch has no negative ones."""
    if single:
        return x.narrow(axis, start % x.shape[axis] if start < 0 else start, 1)
    first, last, step = index.indices(x.shape[axis])
    if step == 1:
        return x.narrow(axis, first, max(0, last - first))
    return x.index_select(axis, torch.arange(x.shape[axis])[list(range(first, last, step))])
