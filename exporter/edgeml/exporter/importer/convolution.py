"""Convolutions, with ONNX's paddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.importer.registry import Node, operator


def auto_pads(node: Node, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """ONNX pads (all begins, then all ends) from `pads` or `auto_pad`."""
    mode, rank = node.get("auto_pad", "NOTSET"), len(kernel)
    if mode == "NOTSET":
        return node.ints("pads") or [0] * (2 * rank)
    if mode == "VALID":
        return [0] * (2 * rank)
    total = [
        max(0, (math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size)
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return small + large if mode == "SAME_UPPER" else large + small


def pad_spatial(x: Tensor, pads: list[int], value: float = 0.0) -> Tensor:
    """Pads the last axes by ONNX pads."""
    rank = len(pads) // 2
    if not any(pads):
        return x
    around = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[axis + rank])]
    return functional.pad(x, around, value=value)


@operator("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    strides, dilations = node.ints("strides") or [1] * rank, node.ints("dilations") or [1] * rank
    pads = auto_pads(node, list(x.shape[2:]), list(weight.shape[2:]), strides, dilations)
    symmetric = pads[:rank] == pads[rank:]
    if not symmetric:
        x = pad_spatial(x, pads)
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}.get(rank)
    if function is None:
        raise node.refuse(f"expected 1 to 3 spatial axes, got {rank}")
    padding = pads[:rank] if symmetric else [0] * rank
    result: Tensor = function(x, weight, bias, strides, padding, dilations, node.get("group", 1))
    return result


@operator("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    strides, dilations = node.ints("strides") or [1] * rank, node.ints("dilations") or [1] * rank
    extra = node.ints("output_padding") or [0] * rank
    kernel, wanted = list(weight.shape[2:]), node.ints("output_shape")
    full = [
        (size - 1) * s + (k - 1) * d + 1 + e
        for size, s, k, d, e in zip(x.shape[2:], strides, kernel, dilations, extra, strict=True)
    ]
    if wanted is None and node.get("auto_pad", "NOTSET") in {"SAME_UPPER", "SAME_LOWER"}:
        wanted = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        total = [max(0, f - w) for f, w in zip(full, wanted[-rank:], strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = large + small if node.get("auto_pad") == "SAME_LOWER" else small + large
    else:
        pads = auto_pads(node, list(x.shape[2:]), kernel, strides, dilations)
    function = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}.get(rank)
    if function is None:
        raise node.refuse(f"expected 1 to 3 spatial axes, got {rank}")
    group = node.get("group", 1)
    if pads[:rank] == pads[rank:] and wanted is None:
        return function(x, weight, bias, strides, pads[:rank], extra, group, dilations)
    whole = function(x, weight, None, strides, [0] * rank, [0] * rank, group, dilations)
    if wanted is not None:  # an output larger than the kernel reaches is zero there
        extra = [max(0, w - (f - e)) for w, f, e in zip(wanted[-rank:], full, extra, strict=True)]
    whole = pad_spatial(whole, [0] * rank + extra)
    whole = whole if bias is None else whole + bias.reshape([1, -1, *[1] * rank])
    for axis in range(rank):
        whole = whole.narrow(axis + 2, pads[axis], whole.shape[axis + 2] - pads[axis] - pads[axis + rank])
    return whole


@operator("DeformConv")
def deform_conv(
    node: Node, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Samples each kernel tap bilinearly at its own offset (Dai et al. 2017, v2 with a mask)."""
    if x.ndim != 4:
        raise node.refuse(f"expected 4-D input, got {x.ndim}-D")
    strides, dilations = node.ints("strides") or [1, 1], node.ints("dilations") or [1, 1]
    pads, groups, fields = node.ints("pads") or [0] * 4, node.get("group", 1), node.get("offset_group", 1)
    kh, kw = weight.shape[2:]
    n, c, h, w = x.shape
    oh, ow = offset.shape[2:]
    kind, x, weight = x.dtype, x.double(), weight.double()  # grid coordinates lose too much in float32
    offset = offset.double().reshape(n, fields, kh * kw, 2, oh, ow)
    weight_of = torch.ones(n, fields, kh * kw, oh, ow) if mask is None else mask.reshape(n, fields, kh * kw, oh, ow)
    rows = torch.arange(oh)[:, None] * strides[0] - pads[0]
    columns = torch.arange(ow)[None, :] * strides[1] - pads[1]
    taps = []
    for tap in range(kh * kw):
        y = rows + (tap // kw) * dilations[0] + offset[:, :, tap, 0]
        z = columns + (tap % kw) * dilations[1] + offset[:, :, tap, 1]
        grid = torch.stack([(2 * z + 1) / w - 1, (2 * y + 1) / h - 1], -1).reshape(n * fields, oh, ow, 2)
        seen = functional.grid_sample(x.reshape(n * fields, c // fields, h, w), grid, align_corners=False)
        taps.append((seen.reshape(n, fields, c // fields, oh, ow) * weight_of[:, :, tap, None]).reshape(n, c, oh, ow))
    columns_of = torch.stack(taps, 2).reshape(n, groups, c // groups * kh * kw, oh * ow)
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
    result = torch.einsum("gok,ngkp->ngop", kernels, columns_of).reshape(n, weight.shape[0], oh, ow).to(kind)
    return result if bias is None else result + bias[None, :, None, None]
