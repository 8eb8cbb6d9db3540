"""Quantize, dequantize and the integer operators: exact integer arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeml.exporter.importer.convolution import conv
from edgeml.exporter.importer.registry import Node, operator, torch_dtype


def _along(values: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """A per-tensor, per-axis or blocked parameter, shaped to broadcast over x."""
    if values.ndim == 0 or values.numel() == 1:
        return values.reshape([])
    if values.ndim == x.ndim and block:
        return values.repeat_interleave(block, dim=axis).narrow(axis, 0, x.shape[axis])
    return values.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])


@operator("QuantizeLinear")
def quantize_linear(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    dtype = zero.dtype if zero is not None else torch_dtype(node, node.get("output_dtype") or 2)
    if not (dtype.is_floating_point is False and dtype in _RANGE):
        raise node.refuse(f"output type {dtype} is not supported")
    steps = torch.round(x.float() / _along(scale, x, axis, block).float())
    shift = 0.0 if zero is None else _along(zero, x, axis, block).float()
    low, high = _RANGE[dtype]
    return torch.clamp(steps + shift, low, high).to(dtype)


_RANGE = {
    torch.uint8: (0, 255), torch.int8: (-128, 127), torch.uint16: (0, 65535), torch.int16: (-32768, 32767),
    torch.int32: (-(2**31), 2**31 - 1),
}  # fmt: skip


@operator("DequantizeLinear")
def dequantize_linear(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    shift = 0.0 if zero is None else _along(zero, x, axis, block).float()
    kind = torch_dtype(node, node.get("output_dtype")) if node.get("output_dtype") else scale.dtype
    return ((x.float() - shift) * _along(scale, x, axis, block).float()).to(kind)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(_node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.clamp(x.min(), max=0), torch.clamp(x.max(), min=0)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    return torch.clamp(torch.round(x / scale) + zero, 0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


def _shifted(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """x - zero in float64, which holds every 8-bit product and its sums exactly."""
    wide = x.to(torch.float64)
    return wide if zero is None else wide - _along(zero, x, axis).to(torch.float64)


@operator("MatMulInteger")
def matmul_integer(_node: Node, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    return torch.matmul(_shifted(a, a_zero, a.ndim - 2), _shifted(b, b_zero, b.ndim - 1)).to(torch.int32)


@operator("QLinearMatMul")
def qlinear_matmul(
    _node: Node,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    product = torch.matmul(_shifted(a, a_zero, a.ndim - 2), _shifted(b, b_zero, b.ndim - 1))
    factor = _along(a_scale, a, a.ndim - 2).double() * _along(b_scale, b, b.ndim - 1).double() / y_scale.double()
    low, high = _RANGE[y_zero.dtype]
    return torch.clamp(torch.round(product * factor) + y_zero.double(), low, high).to(y_zero.dtype)


@operator("ConvInteger")
def conv_integer(node: Node, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None) -> Tensor:
    result = conv(node, _shifted(x, x_zero, 1), _shifted(w, w_zero, 0))
    return result.to(torch.int32)


@operator("QLinearConv")
def qlinear_conv(
    node: Node, x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor, y_scale: Tensor,
    y_zero: Tensor, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    total = conv(node, _shifted(x, x_zero, 1), _shifted(w, w_zero, 0), None if bias is None else bias.double())
    per_channel = (
        w_scale.double().reshape([1, -1, *[1] * (x.ndim - 2)]) if w_scale.numel() > 1 else w_scale.double().reshape([])
    )
    low, high = _RANGE[y_zero.dtype]
    steps = torch.round(total * x_scale.double() * per_channel / y_scale.double())
    return torch.clamp(steps + y_zero.double(), low, high).to(y_zero.dtype)
