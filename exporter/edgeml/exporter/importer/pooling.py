"""Pooling, with ONNX's paddings and ceil rule."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.importer.convolution import auto_pads, pad_spatial
from edgeml.exporter.importer.registry import Node, Static, ints, operator


def _geometry(node: Node, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, pads, and how far past the padded input ceil mode lets the last window reach."""
    kernel = node.ints("kernel_shape") or []
    rank = len(kernel)
    strides, dilations = node.ints("strides") or [1] * rank, node.ints("dilations") or [1] * rank
    sizes = list(x.shape[2:])
    pads = auto_pads(node, sizes, kernel, strides, dilations)
    extra = [0] * rank
    if node.get("ceil_mode", 0):
        for i in range(rank):
            span = sizes[i] + pads[i] + pads[i + rank] - (dilations[i] * (kernel[i] - 1) + 1)
            count = math.ceil(span / strides[i]) + 1
            if (count - 1) * strides[i] >= sizes[i] + pads[i]:
                count -= 1  # a window that starts in the right padding does not count
            extra[i] = max(0, (count - 1) * strides[i] - span)
    return kernel, strides, dilations, pads, extra


def _windows(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """(n, c, out..., taps): every window's elements, row-major."""
    rank = len(kernel)
    outs = [(x.shape[2 + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(rank)]
    taps = []
    for place in itertools.product(*(range(k) for k in kernel)):
        window = [slice(None), slice(None)]
        window += [slice(p * d, p * d + (o - 1) * s + 1, s) for p, d, o, s in zip(place, dilations, outs, strides, strict=True)]
        taps.append(x[tuple(window)])
    return torch.stack(taps, -1)


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    kernel, strides, dilations, pads, extra = _geometry(node, x)
    rank = len(kernel)
    plain = (
        rank in (1, 2) and not any(extra) and pads[:rank] == pads[rank:] and x.is_floating_point() and len(node.outputs) == 1
    )
    if plain and all(p <= k // 2 for p, k in zip(pads, kernel, strict=False)):
        pool = functional.max_pool1d if rank == 1 else functional.max_pool2d
        result: Tensor = pool(x, kernel, strides, pads[:rank], dilations)
        return result
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    around = [*pads[:rank], *(p + e for p, e in zip(pads[rank:], extra, strict=True))]
    values, tap = _windows(pad_spatial(x, around, lowest), kernel, strides, dilations).max(-1)
    if len(node.outputs) == 1:
        return values
    return values, _flat_index(node, x, tap, kernel, strides, dilations, pads)


def _flat_index(
    node: Node, x: Tensor, tap: Tensor, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int]
) -> Tensor:
    """Where each maximum stands in the whole input tensor, as ONNX counts it."""
    rank, sizes = len(kernel), list(x.shape[2:])
    places: list[Tensor] = []
    for i in range(rank):
        within = tap // math.prod(kernel[i + 1 :]) % kernel[i]
        out = torch.arange(tap.shape[2 + i]).reshape([-1 if j == i else 1 for j in range(rank)])
        places.append(out * strides[i] + within * dilations[i] - pads[i])
    order = list(reversed(range(rank))) if node.get("storage_order", 0) else list(range(rank))
    flat, stride = torch.zeros_like(tap), 1
    for i in reversed(order):
        flat, stride = flat + places[i] * stride, stride * sizes[i]
    maps = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * rank)
    return flat + maps * stride


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    kernel, strides, dilations, pads, extra = _geometry(node, x)
    rank = len(kernel)
    include = bool(node.get("count_include_pad", 0))
    simple = not any(extra) and pads[:rank] == pads[rank:] and set(dilations) == {1} and rank in (1, 2)
    if simple and all(p <= k // 2 for p, k in zip(pads, kernel, strict=False)):
        pool = functional.avg_pool1d if rank == 1 else functional.avg_pool2d
        averaged: Tensor = pool(x, kernel, strides, pads[:rank], False, include)
        return averaged
    inside = torch.ones_like(x)
    counted = pad_spatial(inside, pads, 1.0 if include else 0.0)
    around = [0] * rank + extra  # what ceil mode adds is never counted
    total = _windows(pad_spatial(pad_spatial(x, pads), around), kernel, strides, dilations).sum(-1)
    return total / _windows(pad_spatial(counted, around), kernel, strides, dilations).sum(-1)


@operator("LpPool")
def lp_pool(node: Node, x: Tensor) -> Tensor:
    kernel, strides, dilations, pads, extra = _geometry(node, x)
    rank, p = len(kernel), node.get("p", 2)
    around = [*pads[:rank], *(a + e for a, e in zip(pads[rank:], extra, strict=True))]
    return _windows(pad_spatial(x, around).abs().pow(p), kernel, strides, dilations).sum(-1).pow(1.0 / p)


@operator("GlobalAveragePool")
def global_average_pool(_node: Node, x: Tensor) -> Tensor:
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_node: Node, x: Tensor) -> Tensor:
    return x.amax(dim=list(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(node: Node, x: Tensor) -> Tensor:
    p = node.get("p", 2)
    return x.abs().pow(p).sum(dim=list(range(2, x.ndim)), keepdim=True).pow(1.0 / p)


@operator("MaxUnpool", static=(2,))
def max_unpool(node: Node, x: Tensor, index: Tensor, output_shape: Static | None = None) -> Tensor:
    kernel = node.ints("kernel_shape") or []
    rank = len(kernel)
    strides, pads = node.ints("strides") or [1] * rank, node.ints("pads") or [0] * (2 * rank)
    natural = [(x.shape[2 + i] - 1) * strides[i] + kernel[i] - pads[i] - pads[i + rank] for i in range(rank)]
    flat = torch.zeros(x.shape[0] * x.shape[1] * math.prod(natural), dtype=x.dtype)
    flat = flat.scatter(0, index.reshape(-1), x.reshape(-1))
    if output_shape is None:
        return flat.reshape(*x.shape[:2], *natural)
    wanted = ints(output_shape)
    # Indices are counted in the natural output; what is asked beyond it is zero.
    whole = flat.reshape(*x.shape[:2], *natural)
    around = [n for i in reversed(range(rank)) for n in (0, wanted[2 + i] - natural[i])]
    return functional.pad(whole, around)


@operator("RoiAlign")
def roi_align(node: Node, x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
    """Bilinear samples on a regular grid in each region, pooled (He et al. 2017)."""
    oh, ow = node.get("output_height", 1), node.get("output_width", 1)
    scale, ratio = node.get("spatial_scale", 1.0), node.get("sampling_ratio", 0)
    half = 0.5 if node.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 16 else "") == "half_pixel" else 0.0
    regions = []
    for roi, image in zip(rois, batch.tolist(), strict=True):
        x1, y1, x2, y2 = (float(v) * scale - half for v in roi)
        width, height = x2 - x1, y2 - y1
        if half == 0.0:
            width, height = max(width, 1.0), max(height, 1.0)
        ny, nx = (ratio or math.ceil(height / oh)), (ratio or math.ceil(width / ow))
        ys = y1 + (torch.arange(oh * ny) + 0.5) * height / (oh * ny)
        xs = x1 + (torch.arange(ow * nx) + 0.5) * width / (ow * nx)
        weighted = _bilinear(x[image], ys, xs, pick_largest=node.get("mode", "avg") == "max")
        cells = weighted.reshape(x.shape[1], oh, ny, ow, nx)
        regions.append(cells.amax((2, 4)) if node.get("mode", "avg") == "max" else cells.mean((2, 4)))
    return torch.stack(regions)


def _bilinear(image: Tensor, ys: Tensor, xs: Tensor, *, pick_largest: bool) -> Tensor:
    """(c, len(ys), len(xs)); outside by more than a pixel is zero, within is clamped."""
    h, w = image.shape[1:]
    y, z = ys.clamp(0, h - 1), xs.clamp(0, w - 1)
    y0, x0 = y.floor().long(), z.floor().long()
    y1, x1 = (y0 + 1).clamp(max=h - 1), (x0 + 1).clamp(max=w - 1)
    fy, fx = (y - y0)[:, None], (z - x0)[None, :]
    parts = [
        image[:, y0][:, :, x0] * (1 - fy) * (1 - fx),
        image[:, y0][:, :, x1] * (1 - fy) * fx,
        image[:, y1][:, :, x0] * fy * (1 - fx),
        image[:, y1][:, :, x1] * fy * fx,
    ]
    inside = ((ys >= -1) & (ys <= h))[:, None] & ((xs >= -1) & (xs <= w))[None, :]
    # ONNX's max mode takes the largest of the four weighted corners, not of the interpolated values.
    value = torch.stack(parts).amax(0) if pick_largest else sum(parts[1:], parts[0])
    return value * inside
