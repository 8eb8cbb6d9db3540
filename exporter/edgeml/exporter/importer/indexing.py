"""Gathering, scattering and selecting by index."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.importer.registry import Node, Static, ints, operator


def _wrapped(index: Tensor, length: int) -> Tensor:
    """ONNX counts negative indices from the end."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + length, index)


@operator("Gather")
def gather(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    places = _wrapped(index, x.shape[axis])
    taken = x.index_select(axis, places.reshape(-1))
    return taken.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return torch.gather(x, axis, _wrapped(index, x.shape[axis]))


@operator("GatherND")
def gather_nd(node: Node, x: Tensor, index: Tensor) -> Tensor:
    batch = node.get("batch_dims", 0)
    depth = index.shape[-1]
    lead = list(x.shape[:batch])
    flat_x = x.reshape(math.prod(lead), *x.shape[batch:])
    flat_index = index.reshape(math.prod(lead), -1, depth)
    rows = []
    for data, places in zip(flat_x.unbind(0), flat_index.unbind(0), strict=True):
        rows.append(data[tuple(_wrapped(places[:, i], data.shape[i]) for i in range(depth))])
    return torch.stack(rows).reshape(*index.shape[:-1], *x.shape[batch + depth :])


_REDUCTION = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", "Scatter")
def scatter_elements(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis, reduction = node.get("axis", 0), node.get("reduction", "none")
    places = _wrapped(index, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, places, updates)
    return torch.scatter_reduce(x, axis, places, updates, reduce=_REDUCTION[reduction])


@operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    reduction, depth = node.get("reduction", "none"), index.shape[-1]
    strides = [math.prod(x.shape[i + 1 : depth]) for i in range(depth)]
    flat = sum((_wrapped(index[..., i], x.shape[i]) * strides[i] for i in range(depth)), torch.zeros((), dtype=torch.int64))
    rows = x.reshape(math.prod(x.shape[:depth]), -1)
    places = flat.reshape(-1, 1).expand(-1, rows.shape[1])
    new = updates.reshape(-1, rows.shape[1])
    if reduction == "none":
        return rows.scatter(0, places, new).reshape(x.shape)
    return rows.scatter_reduce(0, places, new, reduce=_REDUCTION[reduction]).reshape(x.shape)


@operator("TensorScatter")
def tensor_scatter(node: Node, past: Tensor, update: Tensor, write: Tensor | None = None) -> Tensor:
    axis = node.get("axis", -2) % past.ndim
    circular = node.get("mode", "linear") == "circular"
    rows = []
    for number, (old, new) in enumerate(zip(past.unbind(0), update.unbind(0), strict=True)):
        start = 0 if write is None else int(write[number])
        places = torch.arange(start, start + new.shape[axis - 1])
        rows.append(old.index_copy(axis - 1, places % old.shape[axis - 1] if circular else places, new))
    return torch.stack(rows)


@operator("OneHot", static=(1,))
def one_hot(node: Node, index: Tensor, depth: Static, values: Tensor) -> Tensor:
    size, axis = int(np.asarray(depth).reshape(-1)[0]), node.get("axis", -1)
    places = index.to(torch.int64)
    hit = (torch.where(places < 0, places + size, places).unsqueeze(-1) == torch.arange(size)) & (
        (places >= -size) & (places < size)
    )[..., None]
    return torch.where(hit, values[1], values[0]).movedim(-1, axis)


@operator("TopK", static=(1,))
def top_k(node: Node, x: Tensor, k: Static | None = None) -> tuple[Tensor, Tensor]:
    axis, count = node.get("axis", -1), int(node.get("k") if k is None else np.asarray(k).reshape(-1)[0])
    # A stable sort keeps the lower index first among equals, as ONNX asks.
    values, index = torch.sort(x, dim=axis, descending=bool(node.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), index.narrow(axis, 0, count)


@operator("ArgMax", "ArgMin")
def arg_extreme(node: Node, x: Tensor) -> Tensor:
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    last = bool(node.get("select_last_index", 0))
    x = torch.flip(x, [axis]) if last else x
    place: Tensor = torch.argmax(x, axis, keep) if node.operator == "ArgMax" else torch.argmin(x, axis, keep)
    return x.shape[axis] - 1 - place if last else place


@operator("NonZero")
def non_zero(_node: Node, x: Tensor) -> Tensor:
    return torch.nonzero(x).T


@operator("Compress", static=(1,))
def compress(node: Node, x: Tensor, condition: Static) -> Tensor:
    keep = torch.from_numpy(np.flatnonzero(condition).astype(np.int64))
    axis = node.get("axis")
    return x.reshape(-1).index_select(0, keep) if axis is None else x.index_select(axis, keep)


@operator("Unique")
def unique(node: Node, x: Tensor) -> tuple[Tensor, ...]:
    axis = node.get("axis")
    found: Any = np.unique(x.numpy(), return_index=True, return_inverse=True, return_counts=True, axis=axis)
    values, first, inverse, counts = (np.asarray(part) for part in found)
    inverse = inverse.reshape(-1)
    if not node.get("sorted", 1):
        order = np.argsort(first)
        place = np.argsort(order)
        values, first, counts = np.take(values, order, axis=axis or 0), first[order], counts[order]
        inverse = place[inverse]
    return tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in (values, first, inverse, counts))


@operator("NonMaxSuppression", static=(2, 3, 4))
def non_max_suppression(
    node: Node,
    boxes: Tensor,
    scores: Tensor,
    most: Static | None = None,
    overlap: Static | None = None,
    least: Static | None = None,
) -> Tensor:
    limit = 0 if most is None else int(most.reshape(-1)[0])
    iou = 0.0 if overlap is None else float(overlap.reshape(-1)[0])
    threshold = -math.inf if least is None else float(least.reshape(-1)[0])
    corners = _corners(boxes, center=bool(node.get("center_point_box", 0)))
    kept: list[tuple[int, int, int]] = []
    for batch, label in itertools.product(range(scores.shape[0]), range(scores.shape[1])):
        chosen = _suppress(corners[batch], scores[batch, label], limit, iou, threshold)
        kept += [(batch, label, box) for box in chosen]
    return torch.tensor(kept, dtype=torch.int64).reshape(-1, 3)


def _corners(boxes: Tensor, *, center: bool) -> Tensor:
    if center:
        x, y, w, h = boxes.unbind(-1)
        return torch.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _suppress(boxes: Tensor, scores: Tensor, limit: int, iou: float, threshold: float) -> list[int]:
    chosen: list[int] = []
    for index in torch.sort(scores, descending=True, stable=True).indices.tolist():
        if float(scores[index]) <= threshold or len(chosen) >= limit:
            break
        if all(_overlap(boxes[index], boxes[other]) <= iou for other in chosen):
            chosen.append(index)
    return chosen


def _overlap(a: Tensor, b: Tensor) -> float:
    shared = torch.clamp(torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2]), min=0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
    return float(shared / union) if float(union) > 0 else 0.0


@operator("Col2Im", static=(1, 2))
def col2im(node: Node, x: Tensor, image: Static, block: Static) -> Tensor:
    sizes, kernel = ints(image), ints(block)
    if len(sizes) != 2:
        raise node.refuse(f"expected 2 spatial axes, got {len(sizes)}")
    pads = node.ints("pads") or [0, 0, 0, 0]
    padded = [sizes[i] + pads[i] + pads[i + 2] for i in range(2)]
    dilation, stride = tuple(node.ints("dilations") or [1, 1]), tuple(node.ints("strides") or [1, 1])
    folded = functional.fold(x, tuple(padded), tuple(kernel), dilation=dilation, stride=stride)
    return folded[..., pads[0] : padded[0] - pads[2], pads[1] : padded[1] - pads[3]]
