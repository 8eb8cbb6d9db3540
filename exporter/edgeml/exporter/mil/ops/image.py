"""Resizing, cropping and resampling of (…, height, width) tensors by separable grids."""

# ruff: noqa: PLR0917 - the parameters are the operation's inputs

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.mil.registry import Ints, operation
from edgeml.wire.errors import UnsupportedError

_HALF: Final = 0.5


@operation("upsample_nearest_neighbor")
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0) -> Tensor:
    height, width = math.floor(x.shape[-2] * scale_factor_height), math.floor(x.shape[-1] * scale_factor_width)
    return resize_nearest_neighbor(x, height, width)


@operation("resize_nearest_neighbor")
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Output i takes input floor(i * in / out)."""
    for axis, size in ((-2, target_size_height), (-1, target_size_width)):
        x = x.index_select(axis, torch.arange(size) * x.shape[axis] // size)
    return x


@operation("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Without `align_corners`, pixel centres lie at halves unless `half_pixel_centers` says no."""
    mode = "STRICT_ALIGN_CORNERS" if align_corners else ("DEFAULT" if half_pixel_centers is False else "UNALIGN_CORNERS")
    height, width = math.floor(x.shape[-2] * scale_factor_height), math.floor(x.shape[-1] * scale_factor_width)
    return resize_bilinear(x, height, width, mode)


@operation("resize_bilinear")
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    for axis, size in ((-2, target_size_height), (-1, target_size_width)):
        x = _interpolate(x, axis, grid(x.shape[axis], size, sampling_mode))
    return x


@operation("resize")
def resize(
    x: Tensor, shape: Ints, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Tensor:
    """The last `resized_dims` sizes of `shape`, 0 keeping x's own, for the last axes of x."""
    for axis, size in zip(range(-resized_dims, 0), shape[len(shape) - resized_dims :], strict=True):
        points = grid(x.shape[axis], size or x.shape[axis], sampling_mode)
        if interpolation_mode == "LINEAR":
            x = _interpolate(x, axis, points)
        else:
            nearest = points if sampling_mode == "DEFAULT" else points + _HALF
            x = x.index_select(axis, nearest.floor().long().clamp(0, x.shape[axis] - 1))
    return x


@operation("crop")
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """How much goes on either side."""
    for axis, (before, after) in ((-2, crop_height), (-1, crop_width)):
        x = x.narrow(axis, before, x.shape[axis] - before - after)
    return x


@operation("crop_resize")
def crop_resize(
    x: Tensor,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Patches of x, resized bilinearly. `roi` (up to iOS 16): (N, 1, 4 or 5, 1, 1), a fifth number, first, names the image."""
    size = (target_height, target_width)
    if boxes is not None:
        where = box_indices.tolist() if box_indices is not None else list(range(len(boxes)))
        corners = _corners(boxes * spatial_scale, x, box_coordinate_mode, normalized=normalized_coordinates)
        return torch.cat(
            [_patch(x[i : i + 1], box, size, sampling_mode, pad_value) for i, box in zip(where, corners, strict=True)]
        )
    if roi is None:
        raise UnsupportedError("Core ML operation 'crop_resize' without boxes is not supported")
    rows = roi.reshape(roi.shape[0], -1)
    corners = _corners(rows[:, -4:] * spatial_scale, x, box_coordinate_mode, normalized=normalized_coordinates)
    images = [x if rows.shape[1] == 4 else x[int(row[0]) : int(row[0]) + 1] for row in rows]
    return torch.stack([_patch(image, box, size, sampling_mode, pad_value) for image, box in zip(images, corners, strict=True)])


@operation("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """`x` at `coordinates` (B, H, W, 2), each (x, y)."""
    padding = {"constant": "zeros", "border": "border", "reflection": "reflection"}.get(padding_mode)
    if padding is None or (padding_mode == "constant" and padding_value != 0):
        raise UnsupportedError(f"Core ML resample padding {padding_mode!r} with {padding_value} is not supported")
    places = coordinates.to(torch.float32)
    sizes = torch.tensor([x.shape[-1], x.shape[-2]], dtype=torch.float32)
    if coordinates_mode == "unnormalized":
        places = 2 * places / (sizes - 1) - 1 if align_corners else (2 * places + 1) / sizes - 1
    elif coordinates_mode == "normalized_zero_to_one":
        places = 2 * places - 1
    elif coordinates_mode != "normalized_minus_one_to_one":
        raise UnsupportedError(f"Core ML resample coordinates {coordinates_mode!r} are not supported")
    return functional.grid_sample(x, places, sampling_mode, padding, align_corners)


@operation("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """`x` at a0 * x + a1 * y + a2, b0 * x + b1 * y + b2, coordinates from -1 to 1."""
    matrices = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    shape = [x.shape[0], x.shape[1], output_height, output_width]
    places = functional.affine_grid(matrices, shape, align_corners)
    return resample(x, places, sampling_mode.lower(), padding_mode, padding_value, coordinates_mode, align_corners)


def grid(size: int, wanted: int, mode: str) -> Tensor:
    """Where along an axis of `size` the `wanted` outputs are read, by MIL's sampling modes."""
    steps = torch.arange(wanted, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if wanted == 1:
            points = steps + ((size - 1) / 2 if mode == "ALIGN_CORNERS" else 0)
        else:
            points = steps * (size - 1) / (wanted - 1)
    elif mode == "DEFAULT":
        points = steps * size / wanted
    elif mode == "OFFSET_CORNERS":
        points = (steps + _HALF) * max(1, size - 1) / wanted
    elif mode == "UNALIGN_CORNERS":
        points = (steps + _HALF) * size / wanted - _HALF
    else:
        raise UnsupportedError(f"Core ML sampling mode {mode!r} is not supported")
    return points.clamp(0, size - 1)


def _interpolate(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """Linear interpolation along one axis."""
    low = points.floor().long().clamp(0, x.shape[axis] - 1)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    share = (points - low).to(torch.float32).reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


def _corners(boxes: Tensor, x: Tensor, mode: str, *, normalized: bool) -> Tensor:
    """(top, left, bottom, right) in pixels."""
    values = boxes.to(torch.float32)
    if mode.endswith("WIDTH_FIRST"):
        values = values[:, [1, 0, 3, 2]]
    if mode.startswith("CENTER_SIZE"):
        values = torch.cat([values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2], 1)
    if normalized:
        values = values * torch.tensor([x.shape[-2] - 1, x.shape[-1] - 1] * 2, dtype=torch.float32)
    return values


def _patch(image: Tensor, box: Tensor, size: Ints, mode: str, pad_value: float) -> Tensor:
    """One box of every image in (B, C, H, W)."""
    top, left, bottom, right = box.tolist()
    for axis, first, last, wanted in ((-2, top, bottom, size[0]), (-1, left, right, size[1])):
        image = _sample(image, axis, _box_grid(first, last, wanted, mode), pad_value)
    return image


def _box_grid(first: float, last: float, wanted: int, mode: str) -> Tensor:
    """As `grid`, over the pixels `first` to `last`, both included."""
    steps, extent = torch.arange(wanted, dtype=torch.float64), last - first
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if wanted == 1:
            return steps + first + (extent / 2 if mode == "ALIGN_CORNERS" else 0)
        return first + steps * extent / (wanted - 1)
    if mode == "DEFAULT":
        return first + steps * (extent + 1) / wanted
    if mode == "OFFSET_CORNERS":
        return first + (steps + _HALF) * max(1.0, extent) / wanted
    return first + (steps + _HALF) * (extent + 1) / wanted - _HALF


def _sample(x: Tensor, axis: int, points: Tensor, pad_value: float) -> Tensor:
    """Linear interpolation; points outside the axis read `pad_value`."""
    inside = (points >= 0) & (points <= x.shape[axis] - 1)
    shape = [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
    values = _interpolate(x, axis, points.clamp(0, x.shape[axis] - 1))
    return torch.where(inside.reshape(shape), values, torch.full((), pad_value))
