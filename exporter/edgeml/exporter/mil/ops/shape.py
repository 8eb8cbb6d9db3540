"""Shapes: reshape, transpose, join, split, and the rearrangements between space, depth and batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.mil.registry import Ints, Tensors, operation


@operation("reshape")
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """-1 is what is left; 0 copies the input's size at that place, counted from the right (1 where the input has none)."""
    shift = x.dim() - len(shape)
    sizes = [size or (x.shape[i + shift] if i + shift >= 0 else 1) for i, size in enumerate(shape)]
    return x.reshape(sizes)


@operation("reshape_like")
def reshape_like(x: Tensor, ref_tensors: Tensors, begins: Tensors, ends: Tensors, end_masks: Tensors) -> Tensor:
    """The sizes of ref_tensors[i].shape[begins[i]:ends[i]], joined."""
    sizes: list[int] = []
    for ref, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += list(ref.shape)[int(begin) : None if bool(mask) else int(end)]
    return x.reshape(sizes)


@operation("flatten2d")
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    cut = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:cut]), -1)


@operation("transpose")
def transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


@operation("expand_dims")
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operation("squeeze")
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return torch.squeeze(x) if axes is None else torch.squeeze(x, list(axes))


@operation("concat")
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """`interleave` takes one slice of each input in turn; they then have one shape. Numbers are joined to one axis."""
    if not interleave:
        return torch.cat([value.reshape(1) if value.dim() == 0 else value for value in values], axis)
    where = axis % values[0].dim()
    return torch.stack(values, where + 1).flatten(where, where + 1)


@operation("stack")
def stack(values: Tensors, axis: int) -> Tensor:
    return torch.stack(values, axis)


@operation("split")
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> tuple[Tensor, ...]:
    sizes = list(split_sizes) if split_sizes else [x.shape[axis] // (num_splits or 1)] * (num_splits or 1)
    return x.split_with_sizes(sizes, axis)


@operation("tile")
def tile(x: Tensor, reps: Ints) -> Tensor:
    return x.repeat(reps)


@operation("shape")
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@operation("pad")
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """(before, after) for the last len(pad) / 2 axes, first of them first. `reflect` does not repeat the edge."""
    start = x.dim() - len(pad) // 2
    if mode == "constant":
        widths = [width for i in reversed(range(len(pad) // 2)) for width in pad[2 * i : 2 * i + 2]]
        return functional.pad(x, widths, value=constant_val)
    for i in range(len(pad) // 2):
        x = _mirror(x, start + i, pad[2 * i], pad[2 * i + 1], mode)
    return x


@operation("reverse")
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    return torch.flip(x, list(axes) if axes is not None else list(range(x.dim())))


@operation("reverse_sequence")
def reverse_sequence(x: Tensor, lengths: Ints, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first lengths[b] elements along `seq_axis` of each batch item, back to front; the rest stays."""
    parts = []
    for item, length in zip(x.split_with_sizes([1] * x.shape[batch_axis], batch_axis), lengths, strict=True):
        head, tail = item.narrow(seq_axis, 0, length), item.narrow(seq_axis, length, x.shape[seq_axis] - length)
        parts.append(torch.cat([head.flip(seq_axis), tail], seq_axis))
    return torch.cat(parts, batch_axis)


@operation("depth_to_space")
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Channel (i * block + j) * C + c goes to offset (i, j): TensorFlow's order."""
    n, depth, height, width = x.shape
    blocks = x.reshape(n, block_size, block_size, depth // block_size**2, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, depth // block_size**2, height * block_size, width * block_size)


@operation("space_to_depth")
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // block_size, block_size, width // block_size, block_size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, channels * block_size**2, height // block_size, width // block_size)


@operation("pixel_shuffle")
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return functional.pixel_shuffle(x, upscale_factor)


@operation("pixel_unshuffle")
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return functional.pixel_unshuffle(x, downscale_factor)


@operation("space_to_batch")
def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """TensorFlow's SpaceToBatchND on (n, C, *D): offsets in a block become the slow part of the batch axis."""
    spatial = len(block_shape)
    widths = [width for i in reversed(range(spatial)) for width in paddings[2 * i : 2 * i + 2]]
    padded = functional.pad(x, widths)
    n, channels = padded.shape[:2]
    sizes = [part for i, block in enumerate(block_shape) for part in (padded.shape[2 + i] // block, block)]
    blocks = padded.reshape(n, channels, *sizes)
    order = [3 + 2 * i for i in range(spatial)] + [0, 1] + [2 + 2 * i for i in range(spatial)]
    return blocks.permute(order).reshape(n * math.prod(block_shape), channels, *sizes[::2])


@operation("batch_to_space")
def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    spatial = len(block_shape)
    n, channels = x.shape[0] // math.prod(block_shape), x.shape[1]
    blocks = x.reshape(*block_shape, n, channels, *x.shape[2:])
    order = [spatial, spatial + 1] + [part for i in range(spatial) for part in (spatial + 2 + i, i)]
    result = blocks.permute(order).reshape(n, channels, *[x.shape[2 + i] * block for i, block in enumerate(block_shape)])
    for i in range(spatial):
        result = result.narrow(2 + i, crops[2 * i], result.shape[2 + i] - crops[2 * i] - crops[2 * i + 1])
    return result


def _mirror(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    size = x.shape[axis]
    places = torch.arange(-before, size + after)
    if mode == "replicate":
        places = places.clamp(0, size - 1)
    else:
        places = places.abs()
        places = torch.where(places >= size, 2 * (size - 1) - places, places)
    return x.index_select(axis, places)
