"""Resize and its relatives, by separable interpolation weights per axis.

Each axis becomes a matrix (out, in) of weights made at import, so every mode, coordinate rule and antialias setting of the
operator is one matrix product; the common 2x nearest and bilinear cases use torch's own kernels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.importer.registry import Node, Static, ints, operator

Matrix = NDArray[np.float64]


@operator("Resize", static=(1, 2, 3))
def resize(
    node: Node, x: Tensor, roi: Static | None = None, scales: Static | None = None, sizes: Static | None = None
) -> Tensor:
    if node.opset < 11:
        roi, scales = None, roi  # opset 10: (X, scales)
    axes = [a % x.ndim for a in node.ints("axes") or range(x.ndim)]
    have = [x.shape[a] for a in axes]
    if sizes is not None and np.size(sizes):
        factors, wanted = _from_sizes(node, have, ints(sizes))
    elif scales is not None:
        factors = [float(s) for s in scales.reshape(-1)]
        wanted = [math.floor(h * f) for h, f in zip(have, factors, strict=True)]
    else:
        raise node.refuse("neither scales nor sizes")
    fast = _fast(node, x, axes, factors)
    if fast is not None:
        return fast
    regions = None if roi is None or not np.size(roi) else np.asarray(roi, dtype=np.float64).reshape(2, -1)
    result, outside = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32), []
    for place, axis in enumerate(axes):
        if factors[place] == 1.0 and wanted[place] == have[place] and regions is None:
            continue
        start, end = (0.0, 1.0) if regions is None else (float(regions[0, place]), float(regions[1, place]))
        places = _source(node, have[place], wanted[place], factors[place], start, end)
        if node.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            outside.append((axis, (places < 0) | (places > have[place] - 1)))
        matrix = torch.from_numpy(_weights(node, places, have[place], factors[place])).to(result.dtype)
        result = torch.movedim(torch.movedim(result, axis, -1) @ matrix.T, -1, axis)
    for axis, beyond in outside:
        shape = [-1 if a == axis else 1 for a in range(x.ndim)]
        result = torch.where(torch.from_numpy(beyond).reshape(shape), node.get("extrapolation_value", 0.0), result)
    return result.to(x.dtype)


@operator("Upsample", static=(1,))
def upsample(node: Node, x: Tensor, scales: Static | None = None) -> Tensor:
    factors = scales.reshape(-1).tolist() if scales is not None else list(node.get("scales"))
    result = x
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        wanted = math.floor(x.shape[axis] * factor)
        places = np.arange(wanted) / factor
        if node.get("mode", "nearest") == "nearest":
            result = result.index_select(axis, torch.from_numpy(np.floor(places).astype(np.int64)))
        else:
            matrix = torch.from_numpy(_linear(places, x.shape[axis])).to(result.dtype)
            result = torch.movedim(torch.movedim(result, axis, -1) @ matrix.T, -1, axis)
    return result


def _from_sizes(node: Node, have: list[int], wanted: list[int]) -> tuple[list[float], list[int]]:
    factors = [w / h for w, h in zip(wanted, have, strict=True)]
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return factors, wanted
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [factor] * len(have), [math.floor(h * factor + 0.5) for h in have]


def _fast(node: Node, x: Tensor, axes: list[int], factors: list[float]) -> Tensor | None:
    """torch's kernel where it means the same: 4-D, batch and channels kept, whole factors, half-pixel or asymmetric nearest."""
    by_axis = dict(zip(axes, factors, strict=True))
    if x.ndim != 4 or by_axis.get(0, 1.0) != 1.0 or by_axis.get(1, 1.0) != 1.0 or not x.is_floating_point():
        return None
    scale = [by_axis.get(2, 1.0), by_axis.get(3, 1.0)]
    if any(s < 1 or s != int(s) for s in scale) or node.get("antialias", 0):
        return None
    mode, rule = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    size = [int(x.shape[2] * scale[0]), int(x.shape[3] * scale[1])]
    if mode == "nearest" and rule == "asymmetric" and node.get("nearest_mode", "round_prefer_floor") == "floor":
        return functional.interpolate(x, size=size, mode="nearest")
    if mode == "linear" and rule in {"half_pixel", "pytorch_half_pixel", "align_corners"} and min(size) > 1:
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=rule == "align_corners")
    return None


def _source(node: Node, have: int, wanted: int, factor: float, start: float, end: float) -> Matrix:
    """Where each output element reads in the input, by the operator's coordinate rules."""
    rule = node.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric")
    out = np.arange(wanted, dtype=np.float64)
    length = have * factor
    if rule == "half_pixel":
        return (out + 0.5) / factor - 0.5
    if rule == "half_pixel_symmetric":
        adjust = wanted / length
        center = have / 2
        return center * (1 - adjust) + (out + 0.5) / factor - 0.5
    if rule == "pytorch_half_pixel":
        return (out + 0.5) / factor - 0.5 if length > 1 else np.full_like(out, -0.5)
    if rule == "align_corners":
        return out * (have - 1) / (length - 1) if length > 1 else np.zeros_like(out)
    if rule == "asymmetric":
        return out / factor
    if rule == "tf_crop_and_resize":
        if wanted > 1:
            return start * (have - 1) + out * (end - start) * (have - 1) / (wanted - 1)
        return np.full_like(out, 0.5 * (start + end) * (have - 1))
    raise node.refuse(f"coordinate transformation {rule!r}")


def _weights(node: Node, places: Matrix, have: int, factor: float) -> Matrix:
    mode = node.get("mode", "nearest")
    shrink = min(factor, 1.0) if node.get("antialias", 0) else 1.0
    if mode == "nearest":
        matrix = np.zeros((len(places), have))
        matrix[np.arange(len(places)), _nearest(node, places).clip(0, have - 1)] = 1
        return matrix
    if mode == "linear":
        return _spread(places, have, shrink, 1, lambda t: np.maximum(1 - np.abs(t), 0), outside=False)
    if mode == "cubic":
        a = node.get("cubic_coeff_a", -0.75)
        return _spread(places, have, shrink, 2, lambda t: _cubic(t, a), outside=bool(node.get("exclude_outside", 0)))
    raise node.refuse(f"mode {mode!r}")


def _nearest(node: Node, places: Matrix) -> NDArray[np.int64]:
    rule = node.get("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor")
    if rule == "round_prefer_floor":
        return np.ceil(places - 0.5).astype(np.int64)
    if rule == "round_prefer_ceil":
        return np.floor(places + 0.5).astype(np.int64)
    return (np.floor(places) if rule == "floor" else np.ceil(places)).astype(np.int64)


def _cubic(t: Matrix, a: float) -> Matrix:
    """Keys' convolution kernel (1981) with coefficient a."""
    t = np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    result: Matrix = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    return result


def _spread(places: Matrix, have: int, shrink: float, reach: int, kernel: object, *, outside: bool) -> Matrix:
    """Weights of a kernel of half-width `reach`, widened by 1 / shrink.

    Edge elements take what falls outside; with `outside` it is left out and the rest made to sum to 1.
    """
    assert callable(kernel)
    width = math.ceil(reach / shrink)
    matrix = np.zeros((len(places), have))
    for row, place in enumerate(places):
        taps = np.arange(math.floor(place) - width + 1, math.floor(place) + width + 1)
        weights = kernel((taps - place) * shrink)
        if outside or shrink < 1:
            weights = np.where((taps >= 0) & (taps < have), weights, 0.0) if outside else weights
        total = weights.sum()
        if total:
            weights = weights / total
        np.add.at(matrix[row], taps.clip(0, have - 1), weights)
    return matrix


def _linear(places: Matrix, have: int) -> Matrix:
    return _spread(places.clip(0, have - 1), have, 1.0, 1, lambda t: np.maximum(1 - np.abs(t), 0), outside=False)


@operator("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}
    return functional.grid_sample(
        x,
        grid,
        mode=mode[node.get("mode", "linear")],
        padding_mode=node.get("padding_mode", "zeros"),
        align_corners=bool(node.get("align_corners", 0)),
    )


@operator("AffineGrid", static=(1,))
def affine_grid(node: Node, theta: Tensor, size: Static) -> Tensor:
    return functional.affine_grid(theta, ints(size), align_corners=bool(node.get("align_corners", 0)))
