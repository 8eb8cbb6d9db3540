"""Lists of tensors, which loops use to collect their results."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeml.exporter.mil.registry import Tensors, operation
from edgeml.exporter.mil.values import TensorList


@operation("make_list")
def make_list(elem_shape: Tensors, init_length: int = 1, dynamic_length: bool = True, dtype: str = "fp32") -> TensorList:
    """`elem_shape` may hold one tensor of sizes or one size each."""
    del dtype  # elements bring their own
    shape = tuple(int(size) for part in elem_shape for size in part.reshape(-1).tolist())
    return TensorList((None,) * init_length, shape, dynamic_length)


@operation("list_write")
def list_write(ls: TensorList, index: int, value: Tensor) -> TensorList:
    """A dynamic list grows to hold `index`."""
    items = list(ls.items)
    if ls.grows and index >= len(items):
        items += [None] * (index + 1 - len(items))
    items[index] = value
    return TensorList(tuple(items), ls.element_shape, ls.grows)


@operation("list_read")
def list_read(ls: TensorList, index: int) -> Tensor:
    return _element(ls, index)


@operation("list_gather")
def list_gather(ls: TensorList, indices: Tensor) -> Tensor:
    """The chosen elements, stacked on a new first axis."""
    return torch.stack([_element(ls, int(index)) for index in indices.tolist()])


@operation("list_scatter")
def list_scatter(ls: TensorList, indices: Tensor, value: Tensor) -> TensorList:
    for index, item in zip(indices.tolist(), value.unbind(0), strict=True):
        ls = list_write(ls, int(index), item)
    return ls


@operation("list_length")
def list_length(ls: TensorList) -> Tensor:
    return torch.tensor(len(ls.items), dtype=torch.int32)


def _element(ls: TensorList, index: int) -> Tensor:
    """An element never written reads as zeros of the list's element shape."""
    item = ls.items[index]
    return torch.zeros(ls.element_shape) if item is None else item
