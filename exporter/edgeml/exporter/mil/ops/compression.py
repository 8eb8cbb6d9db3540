"""Compressed constants: affine, palette, sparse and blockwise; unpacked once, when a program is loaded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgeml.exporter.mil.ops.quantization import along
from edgeml.exporter.mil.registry import Ints, operation


@operation("constexpr_affine_dequantize", folds=True)
def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """`scale * (data - zero_point)`, per tensor or along `axis`."""
    shifted = quantized_data.to(torch.float32) - along(zero_point, quantized_data, axis).to(torch.float32)
    return along(scale, quantized_data, axis) * shifted


@operation("constexpr_blockwise_shift_scale", folds=True)
def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """`scale * (data - offset)`; each element of scale and offset serves one block of data."""
    shifted = data.to(torch.float32)
    if offset is not None:
        shifted = shifted - _blocks(offset, data).to(torch.float32)
    return _blocks(scale, data) * shifted


@operation("constexpr_sparse_blockwise_shift_scale", folds=True)
def sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mask, non-zero values) after blockwise scaling of the places the mask keeps."""
    dense = sparse_to_dense(nonzero_data.to(torch.float32), data_mask)
    return data_mask, blockwise_shift_scale(dense, scale, offset)[data_mask.bool()]


@operation("constexpr_cast", folds=True)
def constant_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """float16 to float32: the values are float32 here already."""
    del output_dtype
    return source_val


@operation("constexpr_lut_to_dense", folds=True)
def lut_to_dense(indices: Tensor, lut: Tensor, shape: Ints | None = None, vector_axis: int | None = None) -> Tensor:
    """Up to iOS 17 (`shape` given): indices packed in bytes, low bits first, into one palette. From iOS 18: one index an
    element, `lut` (*groups, palette, vector) with a palette for each block of the leading axes.
    """
    if shape is not None:
        bits = max(1, int(math.log2(lut.numel())))
        return lut[_unpack(indices, bits, math.prod(shape))].reshape(shape)
    tables = _blocks_of_tables(lut, indices)
    picked = torch.gather(tables, -2, indices.long()[..., None, None].expand(*indices.shape, 1, lut.shape[-1])).squeeze(-2)
    if lut.shape[-1] == 1 or vector_axis is None:
        return picked.flatten(-2) if lut.shape[-1] > 1 else picked.squeeze(-1)
    where = vector_axis % indices.dim()
    return picked.movedim(-1, where + 1).flatten(where, where + 1)


@operation("constexpr_lut_to_sparse", folds=True)
def lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """(mask, non-zero values) of a sparse tensor whose values are palette indices."""
    dense = lut_to_dense(sparse_to_dense(indices_nonzero_data, indices_mask), lut, None, vector_axis)
    mask = indices_mask
    if vector_axis is not None and lut.shape[-1] > 1:
        mask = indices_mask.repeat_interleave(lut.shape[-1], vector_axis)
    return mask, dense[mask.bool()]


@operation("constexpr_sparse_to_dense", folds=True)
def sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Ints | None = None) -> Tensor:
    """Zeros but where the mask has a bit. With `shape` (up to iOS 17) the mask is packed in bytes, low bits first."""
    keep = mask.bool() if shape is None else _unpack(mask, 1, math.prod(shape)).bool().reshape(shape)
    dense = torch.zeros(keep.shape, dtype=nonzero_data.dtype)
    dense[keep] = nonzero_data
    return dense


def _blocks(values: Tensor, data: Tensor) -> Tensor:
    """Each value repeated over its block, up to data's shape."""
    for axis, size in enumerate(data.shape):
        if values.shape[axis] not in (1, size):
            values = values.repeat_interleave(size // values.shape[axis], axis)
    return values


def _blocks_of_tables(lut: Tensor, indices: Tensor) -> Tensor:
    """A palette for every element of `indices`: (*indices.shape, palette, vector)."""
    for axis, size in enumerate(indices.shape):
        if lut.shape[axis] != size:
            lut = lut.repeat_interleave(size // lut.shape[axis], axis)
    return lut


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """`count` unsigned numbers of `bits` bits, packed from the low bit of each byte up."""
    single = (packed.to(torch.int64).unsqueeze(1) >> torch.arange(8)) & 1
    return (single.reshape(-1)[: count * bits].reshape(count, bits) << torch.arange(bits)).sum(1)
