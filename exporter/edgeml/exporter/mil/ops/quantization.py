"""Quantize and dequantize at run time: real = scale * (stored - zero_point)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from edgeml.exporter.mil.registry import operation

_RANGES: Final = {"int8": (-128, 127, torch.int8), "uint8": (0, 255, torch.uint8)}


@operation("quantize")
def quantize(
    input: Tensor,  # noqa: A002 - MIL's word
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """clip(round(input / scale) + zero_point), halves to even."""
    low, high, dtype = _RANGES[output_dtype]
    steps = torch.round(input / along(scale, input, axis))
    if zero_point is not None:
        steps = steps + along(zero_point, input, axis).to(steps.dtype)
    return steps.clamp(low, high).to(dtype)


@operation("dequantize")
def dequantize(
    input: Tensor,  # noqa: A002 - MIL's word
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    stored = input.to(scale.dtype)
    if zero_point is not None:
        stored = stored - along(zero_point, input, axis).to(scale.dtype)
    return stored * along(scale, input, axis)


def along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar as it is; a vector shaped to stand along `axis` of x."""
    if values.dim() == 0 or axis is None:
        return values
    where = axis % x.dim()
    return values.reshape([-1 if i == where else 1 for i in range(x.dim())])
