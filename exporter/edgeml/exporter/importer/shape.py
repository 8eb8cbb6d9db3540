"""Rearranging: the same elements in another shape, order or number."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.importer.registry import Node, Static, ints, operator


@operator("Constant")
def constant(node: Node) -> Tensor:
    for kind, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if node.get(kind) is not None:
            return torch.from_numpy(np.asarray(node.get(kind), dtype=dtype))
    if node.get("value") is None:
        raise node.refuse("a sparse or string constant")
    return torch.from_numpy(np.array(node.get("value")))


@operator("Shape")
def shape(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[slice(node.get("start", 0), node.get("end"))], dtype=torch.int64)


@operator("Size")
def size(_node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape", static=(1,))
def reshape(node: Node, x: Tensor, target: Static | None = None) -> Tensor:
    sizes = ints(target) if target is not None else list(node.get("shape"))
    if not node.get("allowzero", 0):
        sizes = [x.shape[axis] if n == 0 else n for axis, n in enumerate(sizes)]
    return torch.reshape(x, tuple(sizes))


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return (
        x.reshape(math.prod(x.shape[:axis]), -1)
        if x.numel()
        else x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    )


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.ints("perm") or list(reversed(range(x.ndim))))


@operator("Unsqueeze", static=(1,))
def unsqueeze(node: Node, x: Tensor, axes: Static | None = None) -> Tensor:
    wanted = ints(axes) if axes is not None else node.ints("axes") or []
    rank = x.ndim + len(wanted)
    for axis in sorted(a % rank for a in wanted):
        x = x.unsqueeze(axis)
    return x


@operator("Squeeze", static=(1,))
def squeeze(node: Node, x: Tensor, axes: Static | None = None) -> Tensor:
    wanted = ints(axes) if axes is not None else node.ints("axes")
    if wanted is None:
        wanted = [axis for axis, n in enumerate(x.shape) if n == 1]
    for axis in sorted((a % x.ndim for a in wanted), reverse=True):
        x = x.squeeze(axis)
    return x


@operator("Concat")
def concat(node: Node, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, dim=node.get("axis", 1))


@operator("Split", static=(1,))
def split(node: Node, x: Tensor, sizes: Static | None = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    wanted = ints(sizes) if sizes is not None else node.ints("split")
    if wanted is None:
        parts = node.get("num_outputs", len(node.outputs))
        each = math.ceil(x.shape[axis] / parts)
        wanted = [max(0, min(each, x.shape[axis] - each * i)) for i in range(parts)]
    return tuple(torch.split(x, wanted, dim=axis))


@operator("Slice", static=(1, 2, 3, 4))
def slice_(
    node: Node,
    x: Tensor,
    starts: Static | None = None,
    ends: Static | None = None,
    axes: Static | None = None,
    steps: Static | None = None,
) -> Tensor:
    first, last = (ints(starts), ints(ends)) if starts is not None else (node.ints("starts") or [], node.ints("ends") or [])
    over = ints(axes) if axes is not None else node.ints("axes") or list(range(len(first)))
    strides = ints(steps) if steps is not None else [1] * len(first)
    for start, end, axis, step in zip(first, last, over, strides, strict=True):
        length = x.shape[axis]
        begin, stop, stride = slice(start, end, step).indices(length)
        if step < 0:
            # A negative end that Python reads "from the right" has already been clamped: -1 means "past the left end".
            index = list(range(begin, stop, stride))
            x = x.index_select(axis, torch.tensor(index, dtype=torch.int64))
        else:
            window = [slice(None)] * x.ndim
            window[axis] = slice(begin, max(begin, stop), stride)
            x = x[tuple(window)]
    return x


@operator("Expand", static=(1,))
def expand(_node: Node, x: Tensor, target: Static) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(ints(target))))


@operator("Tile", static=(1,))
def tile(_node: Node, x: Tensor, repeats: Static) -> Tensor:
    return x.repeat(ints(repeats))


@operator("Pad", static=(1, 2, 3))
def pad(node: Node, x: Tensor, pads: Static | None = None, value: Static | None = None, axes: Static | None = None) -> Tensor:
    given = ints(pads) if pads is not None else node.ints("pads") or node.ints("paddings") or []
    over = [a % x.ndim for a in ints(axes)] if axes is not None else list(range(x.ndim))
    before, after = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(over):
        before[axis], after[axis] = given[place], given[place + len(over)]
    mode = node.get("mode", "constant")
    if mode == "constant":
        fill = node.get("value", 0.0) if value is None else np.asarray(value).reshape(-1)[0].item() if np.size(value) else 0.0
        around = [n for axis in reversed(range(x.ndim)) for n in (before[axis], after[axis])]
        return functional.pad(x, around, value=fill)
    for axis in range(x.ndim):
        if before[axis] or after[axis]:
            x = x.index_select(axis, _padded_index(node, mode, x.shape[axis], before[axis], after[axis]))
    return x


def _padded_index(node: Node, mode: str, length: int, before: int, after: int) -> Tensor:
    places = np.arange(-before, length + after)
    if mode == "edge":
        places = places.clip(0, length - 1)
    elif mode == "wrap":
        places = places % length
    elif mode == "reflect":
        period = max(1, 2 * (length - 1))
        places = np.abs((places + period) % period)
        places = np.where(places >= length, period - places, places)
    else:
        raise node.refuse(f"pad mode {mode!r}")
    return torch.from_numpy(places.astype(np.int64))


@operator("CenterCropPad", static=(1,))
def center_crop_pad(node: Node, x: Tensor, target: Static) -> Tensor:
    axes = node.ints("axes")
    over = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    for axis, wanted in zip(over, ints(target), strict=True):
        have = x.shape[axis]
        if have > wanted:
            x = x.narrow(axis, (have - wanted) // 2, wanted)
        elif have < wanted:
            around = [0] * (2 * x.ndim)
            left = (wanted - have) // 2
            around[2 * (x.ndim - 1 - axis)], around[2 * (x.ndim - 1 - axis) + 1] = left, wanted - have - left
            x = functional.pad(x, around)
    return x


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = node.get("blocksize")
    if node.get("mode", "DCR") == "DCR":
        return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)
    return x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // (b * b), h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = node.get("blocksize")
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 1, 3, 5, 2, 4) if node.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return blocks.permute(order).reshape(n, c * b * b, h // b, w // b)


@operator("Range", static=(0, 1, 2))
def range_(_node: Node, start: Static, limit: Static, delta: Static) -> Tensor:
    return torch.from_numpy(np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype))


@operator("EyeLike")
def eye_like(node: Node, x: Tensor) -> Tensor:
    from edgeml.exporter.importer.registry import torch_dtype

    dtype = x.dtype if node.get("dtype") is None else torch_dtype(node, node.get("dtype"))
    rows, columns = x.shape
    grid = torch.arange(columns)[None, :] - torch.arange(rows)[:, None]
    diagonal: Tensor = grid == node.get("k", 0)
    return diagonal.to(dtype)


@operator("Trilu", static=(1,))
def trilu(node: Node, x: Tensor, k: Static | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return torch.triu(x, diagonal) if node.get("upper", 1) else torch.tril(x, diagonal)


@operator("ReverseSequence", static=(1,))
def reverse_sequence(node: Node, x: Tensor, lengths: Static) -> Tensor:
    batch, time = node.get("batch_axis", 1), node.get("time_axis", 0)
    rows = []
    for row, length in zip(x.unbind(batch), ints(lengths), strict=True):
        along = time if time < batch else time - 1
        order = list(reversed(range(length))) + list(range(length, row.shape[along]))
        rows.append(row.index_select(along, torch.tensor(order)))
    return torch.stack(rows, dim=batch)
