"""Convolution and transposed convolution in one to three spatial dimensions."""

# ruff: noqa: PLR0917 - the parameters are the operation's inputs

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.mil.ops.padding import explicit_pads, torch_pads
from edgeml.exporter.mil.registry import Ints, operation

_CONV: Final = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED: Final = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@operation("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints = (),
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """weight: (C_out, C_in / groups, *kernel)."""
    rank = x.dim() - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    pads = explicit_pads(pad_type, pad, x.shape[2:], weight.shape[2:], strides, dilations)
    if all(before == after for before, after in pads):
        even: Ints = tuple(before for before, _ in pads)
    else:
        x, even = functional.pad(x, torch_pads(pads)), (0,) * rank
    return _CONV[rank](x, weight, bias, strides, even, dilations, groups)


@operation("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints = (),
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """weight: (C_in, C_out / groups, *kernel). The full result is cropped by the padding, or to `output_shape`."""
    rank = x.dim() - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    full = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, groups, dilations)
    wanted = output_shape[2:] if output_shape else _transposed_sizes(x, full, pad_type, pad, strides)
    starts = _transposed_starts(full, wanted, pad_type, pad)
    for axis, (start, size) in enumerate(zip(starts, wanted, strict=True), start=2):
        full = _window(full, axis, start, size)
    return full if bias is None else full + bias.reshape(1, -1, *[1] * rank)


def _transposed_sizes(x: Tensor, full: Tensor, pad_type: str, pad: Ints, strides: Ints) -> Ints:
    if pad_type in ("same", "same_lower"):
        return tuple(size * stride for size, stride in zip(x.shape[2:], strides, strict=True))
    if pad_type == "custom":
        return tuple(size - pad[2 * i] - pad[2 * i + 1] for i, size in enumerate(full.shape[2:]))
    return tuple(full.shape[2:])


def _transposed_starts(full: Tensor, wanted: Ints, pad_type: str, pad: Ints) -> Ints:
    if pad_type == "custom":
        return tuple(pad[2 * i] for i in range(len(wanted)))
    if pad_type == "same":
        return tuple(max(0, size - want) // 2 for size, want in zip(full.shape[2:], wanted, strict=True))
    if pad_type == "same_lower":
        return tuple(max(0, size - want + 1) // 2 for size, want in zip(full.shape[2:], wanted, strict=True))
    return (0,) * len(wanted)


def _window(x: Tensor, axis: int, start: int, size: int) -> Tensor:
    """`size` elements from `start` on, zeros where x has ended (a stride larger than the kernel)."""
    have = x.narrow(axis, start, min(size, x.shape[axis] - start))
    if have.shape[axis] == size:
        return have
    missing = list(x.shape)
    missing[axis] = size - have.shape[axis]
    return torch.cat([have, x.new_zeros(missing)], axis)
