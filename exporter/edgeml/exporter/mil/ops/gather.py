"""Reading by index; negative indices count from the end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgeml.exporter.mil.registry import operation


@operation("gather")
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:  # noqa: ARG001 - always checked here
    """x.shape[:axis] + indices.shape[batch_dims:] + x.shape[axis + 1:]; the first `batch_dims` axes go hand in hand."""
    where = axis % x.dim()
    places = wrap(indices, x.shape[where])
    if batch_dims == 0:
        taken = x.index_select(where, places.reshape(-1))
        return taken.reshape((*x.shape[:where], *indices.shape, *x.shape[where + 1 :]))
    rows = math.prod(x.shape[:batch_dims])
    flat_x, flat_i = x.reshape(rows, *x.shape[batch_dims:]), places.reshape(rows, -1)
    axis_in_row = where - batch_dims
    taken = torch.stack([row.index_select(axis_in_row, chosen) for row, chosen in zip(flat_x, flat_i, strict=True)])
    return taken.reshape((*x.shape[:where], *indices.shape[batch_dims:], *x.shape[where + 1 :]))


@operation("gather_along_axis")
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:  # noqa: ARG001 - always checked here
    return torch.gather(x, axis, wrap(indices, x.shape[axis]))


@operation("gather_nd")
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:  # noqa: ARG001 - always checked here
    """The last axis of `indices` is a place in x, after `batch_dims` axes that go hand in hand."""
    rows = math.prod(x.shape[:batch_dims])
    flat_x = x.reshape(rows, *x.shape[batch_dims:])
    flat_i = indices.reshape(rows, *indices.shape[batch_dims:])
    taken = torch.stack([row[nd_places(chosen, row)] for row, chosen in zip(flat_x, flat_i, strict=True)])
    return taken.reshape((*indices.shape[:-1], *x.shape[batch_dims + indices.shape[-1] :]))


def wrap(indices: Tensor, size: int) -> Tensor:
    places = indices.to(torch.int64)
    return torch.where(places < 0, places + size, places)


def nd_places(indices: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """One index tensor for each leading axis of x."""
    return tuple(wrap(part, x.shape[axis]) for axis, part in enumerate(indices.unbind(-1)))
