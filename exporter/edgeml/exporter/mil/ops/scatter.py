"""Writing by index; several updates of one place combine, with `update` the last one stands."""

# ruff: noqa: PLR0917 - the parameters are the operation's inputs

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from edgeml.exporter.mil.ops.gather import nd_places, wrap
from edgeml.exporter.mil.registry import operation
from edgeml.wire.errors import UnsupportedError

_REDUCE: Final = {"mul": "prod", "max": "amax", "min": "amin"}


@operation("scatter")
def scatter(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:  # indices are always checked here
    """`indices` name slices along `axis`; updates.shape = data.shape[:axis] + indices.shape + data.shape[axis + 1:]."""
    del validate_indices
    where = axis % data.dim()
    flat = updates.reshape(*data.shape[:where], -1, *data.shape[where + 1 :])
    shape = [-1 if i == where else 1 for i in range(data.dim())]
    places = wrap(indices, data.shape[where]).reshape(shape).expand(flat.shape)
    return _combine(data, where, places, flat, mode)


@operation("scatter_along_axis")
def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """data[…, indices[…, i, …], …] changed by updates[…, i, …]."""
    del validate_indices
    return _combine(data, axis, wrap(indices, data.shape[axis]), updates, mode)


@operation("scatter_nd")
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False) -> Tensor:
    """The last axis of `indices` is a place in data."""
    del validate_indices
    depth = indices.shape[-1]
    numbers = torch.arange(data.numel()).reshape(data.shape)
    places = numbers[nd_places(indices.reshape(-1, depth), data)]
    return _combine(data.reshape(-1), 0, places.reshape(-1), updates.reshape(-1), mode).reshape(data.shape)


def _combine(data: Tensor, axis: int, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    if mode == "update":
        return data.scatter(axis, places, updates)
    if mode == "add":
        return data.scatter_add(axis, places, updates)
    if mode == "sub":
        return data.scatter_add(axis, places, -updates)
    if mode == "div":
        return data / torch.ones_like(data).scatter_reduce(axis, places, updates, "prod")
    if mode in _REDUCE:
        return data.scatter_reduce(axis, places, updates, _REDUCE[mode])
    raise UnsupportedError(f"Core ML scatter mode {mode!r} is not supported")
