"""Maximum, average and L2 pooling."""

# ruff: noqa: PLR0917 - the parameters are the operation's inputs

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.mil.ops.padding import Pads, explicit_pads, torch_pads
from edgeml.exporter.mil.registry import Ints, operation

_MAX: Final = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE: Final = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@operation("max_pool")
def max_pool(
    x: Tensor, kernel_sizes: Ints, pad_type: str, strides: Ints | None = None, pad: Ints = (), ceil_mode: bool = False
) -> Tensor:
    strides = strides or (1,) * len(kernel_sizes)
    padded = functional.pad(x, torch_pads(_pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode)), value=-math.inf)
    return _MAX[len(kernel_sizes)](padded, kernel_sizes, strides)


@operation("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints = (),
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> Tensor:
    """The divisor is the window, or only its part inside x; what `ceil_mode` adds after the padding never counts."""
    strides = strides or (1,) * len(kernel_sizes)
    sums = _sums(x, kernel_sizes, strides, _pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode))
    told = _pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode=False)
    ones = torch.ones_like(x[:1, :1])
    if exclude_padding_from_average:
        return sums / _sums(ones, kernel_sizes, strides, _pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode))
    if not ceil_mode:
        return sums / math.prod(kernel_sizes)
    inside = functional.pad(ones, torch_pads(told), value=1.0)
    extra = [
        (0, after - seen)
        for (_, after), (_, seen) in zip(_pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode), told, strict=True)
    ]
    return sums / _sums(inside, kernel_sizes, strides, extra)


@operation("l2_pool")
def l2_pool(
    x: Tensor, kernel_sizes: Ints, pad_type: str, strides: Ints | None = None, pad: Ints = (), ceil_mode: bool = False
) -> Tensor:
    """Root of the sum of squares in each window."""
    strides = strides or (1,) * len(kernel_sizes)
    return torch.sqrt(_sums(x.square(), kernel_sizes, strides, _pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode)))


def _sums(x: Tensor, kernel: Ints, strides: Ints, pads: Pads) -> Tensor:
    padded = functional.pad(x, torch_pads(pads))
    return _AVERAGE[len(kernel)](padded, kernel, strides) * math.prod(kernel)


def _pads(x: Tensor, kernel: Ints, strides: Ints, pad_type: str, pad: Ints, ceil_mode: bool) -> Pads:
    """Explicit padding; `ceil_mode` adds what a last, partial window needs, unless it would start in the padding (as torch)."""
    sizes = x.shape[2:]
    pads = explicit_pads(pad_type, pad or (0,) * 2 * len(kernel), sizes, kernel, strides, (1,) * len(kernel))
    if not ceil_mode:
        return pads
    grown: Pads = []
    for size, width, stride, (before, after) in zip(sizes, kernel, strides, pads, strict=True):
        count = -(-(size + before + after - width) // stride) + 1
        if (count - 1) * stride >= size + before:
            count -= 1
        grown.append((before, max(after, (count - 1) * stride + width - size - before)))
    return grown
