"""Order: argsort, top k, non-maximum suppression."""

# ruff: noqa: PLR0917 - the parameters are the operation's inputs

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgeml.exporter.mil.registry import operation


@operation("argsort")
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Equal values keep their order."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


@operation("topk")
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,  # noqa: ARG001 - sorted is one of the orders that "unsorted" allows
    return_indices: bool = True,
    output_indices_dtype: str = "int32",  # noqa: ARG001 - the result's declared type says it
) -> tuple[Tensor, ...]:
    """(values, indices); of equal values the first counts as larger."""
    places = torch.argsort(x, dim=axis, descending=not ascending, stable=True).narrow(axis, 0, k)
    values = torch.gather(x, axis, places)
    return (values, places) if return_indices else (values,)


@operation("non_maximum_suppression")
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    score_threshold: float | None = None,
    per_class_suppression: bool = False,
) -> tuple[Tensor, ...]:
    """Greedy suppression of boxes (x, y, width, height from the centre) by their best class score.

    Up to iOS 16 (`score_threshold` given): boxes (n, B, 4), scores (n, B, K); gives boxes, scores, indices, count, padded to
    `max_boxes` with zeros and index -1. From iOS 17: (n, 4, B) and (n, K, B), and no count.
    """
    if score_threshold is not None:
        return _suppress(boxes, scores, iou_threshold, score_threshold, max_boxes, per_class=per_class_suppression)
    turned = (boxes.transpose(1, 2), scores.transpose(1, 2))
    kept_boxes, kept_scores, indices, _ = _suppress(
        *turned, iou_threshold, -math.inf, max_boxes, per_class=per_class_suppression
    )
    return kept_boxes.transpose(1, 2), kept_scores.transpose(1, 2), indices


def _suppress(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_boxes: int, *, per_class: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept = [
        _survivors(item, score, iou_threshold, score_threshold, max_boxes, per_class=per_class)
        for item, score in zip(boxes, scores, strict=True)
    ]
    indices = torch.full((len(kept), max_boxes), -1, dtype=torch.int32)
    out_boxes = boxes.new_zeros(len(kept), max_boxes, boxes.shape[2])
    out_scores = scores.new_zeros(len(kept), max_boxes, scores.shape[2])
    for row, chosen in enumerate(kept):
        indices[row, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
        out_boxes[row, : len(chosen)] = boxes[row, chosen]
        out_scores[row, : len(chosen)] = scores[row, chosen]
    return out_boxes, out_scores, indices, torch.tensor([len(chosen) for chosen in kept], dtype=torch.int32)


def _survivors(boxes: Tensor, scores: Tensor, most: float, least: float, limit: int, *, per_class: bool) -> list[int]:
    best, classes = scores.max(1)
    kept: list[int] = []
    for index in torch.argsort(best, descending=True, stable=True).tolist():
        if len(kept) == limit or best[index] < least:
            break
        rivals = [other for other in kept if not per_class or classes[other] == classes[index]]
        if all(_overlap(boxes[index], boxes[other]) <= most for other in rivals):
            kept.append(index)
    return kept


def _overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two centred boxes."""
    low = torch.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = torch.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    common = float((high - low).clamp_min(0).prod())
    union = float(a[2:].prod() + b[2:].prod()) - common
    return common / union if union > 0 else 0.0
