"""Metrics of zoo models as `edgeml export --metric` takes them: (outputs, labels) to one value a sample, 1 is best."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def overlap(outputs: Mapping[str, Floats], labels: Floats) -> Floats:
    """Intersection over union of the mask above a half."""
    got = next(iter(outputs.values()))
    mine, truth = got.reshape(len(got), -1) > 0.5, labels.reshape(len(got), -1) > 0.5
    return np.asarray((mine & truth).sum(axis=1) / np.maximum(1, (mine | truth).sum(axis=1)), np.float64)


def found(outputs: Mapping[str, Floats], labels: Floats) -> Floats:
    """1 where the best-scored cell names the digit, and its box overlaps the true one by half: (n, 4 + 10, cells)."""
    got = next(iter(outputs.values()))
    scores = got[:, 4:]
    cell = scores.max(axis=1).argmax(axis=1)
    each = np.arange(len(got))
    box, digit = got[each, :4, cell], scores[each, :, cell].argmax(axis=1)
    low, high = np.maximum(box[:, :2], labels[:, :2]), np.minimum(box[:, 2:], labels[:, 2:4])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = [np.prod(np.clip(one[:, 2:4] - one[:, :2], 0, None), axis=1) for one in (box, labels)]
    return np.asarray((digit == labels[:, 4]) & (both > 0.5 * (areas[0] + areas[1] - both)), np.float64)


def both_read(outputs: Mapping[str, Floats], labels: Floats) -> Floats:
    """1 where each of two outputs names its label: (n, 2)."""
    right = [got.argmax(axis=1) == labels[:, at] for at, got in enumerate(outputs.values())]
    return np.asarray(np.logical_and(*right), np.float64)


def retrieved(outputs: Mapping[str, Floats], labels: Floats) -> Floats:
    """1 where the nearest other sample, by cosine, has the same label."""
    got = next(iter(outputs.values()))
    unit = got / np.maximum(np.linalg.norm(got, axis=1, keepdims=True), 1e-12)
    near = unit @ unit.T
    np.fill_diagonal(near, -2)
    return np.asarray(labels[near.argmax(axis=1)] == labels, np.float64)
