"""How well each sample was answered, 0 to 1: what a zoo model's score is the mean of.

A function is given the first output (n, ...), the samples, and the source's own first output.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.zoo.samples import Samples
from edgeml.runtime.backends import Array

Score = Callable[[Array, Samples, Array], Array]


def top1(got: Array, samples: Samples, _: Array) -> Array:
    """1 where the largest score is the label's."""
    return np.asarray(got.reshape(len(got), -1).argmax(axis=1) == _labels(samples), np.float64)


def agreement(got: Array, _: Samples, source: Array) -> Array:
    """1 where the largest score is the source's."""
    return np.asarray(got.reshape(len(got), -1).argmax(axis=1) == source.reshape(len(got), -1).argmax(axis=1), np.float64)


def explained(got: Array, samples: Samples, _: Array) -> Array:
    """1 - squared error over the labels' variance (of all samples): its mean is R2. Without labels, the input is the target."""
    target = samples.labels if samples.labels is not None else next(iter(samples.inputs.values()))
    truth = np.asarray(target, np.float64).reshape(len(got), -1)
    return np.asarray(1 - ((got.reshape(len(got), -1) - truth) ** 2).mean(axis=1) / truth.var(), np.float64)


def overlap(got: Array, samples: Samples, _: Array) -> Array:
    """Intersection over union of the mask above a half."""
    mine, truth = got.reshape(len(got), -1) > 0.5, _labels(samples).reshape(len(got), -1) > 0.5
    return np.asarray((mine & truth).sum(axis=1) / np.maximum(1, (mine | truth).sum(axis=1)), np.float64)


def found(got: Array, samples: Samples, _: Array) -> Array:
    """1 where the best-scored cell names the digit, and its box overlaps the true one by half: (n, 4 + 10, cells)."""
    labels = _labels(samples)
    scores = got[:, 4:]
    cell = scores.max(axis=1).argmax(axis=1)
    each = np.arange(len(got))
    box, digit = got[each, :4, cell], scores[each, :, cell].argmax(axis=1)
    low, high = np.maximum(box[:, :2], labels[:, :2]), np.minimum(box[:, 2:], labels[:, 2:4])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = [np.prod(np.clip(one[:, 2:4] - one[:, :2], 0, None), axis=1) for one in (box, labels)]
    return np.asarray((digit == labels[:, 4]) & (both > 0.5 * (areas[0] + areas[1] - both)), np.float64)


def retrieved(got: Array, samples: Samples, _: Array) -> Array:
    """1 where the nearest other sample, by cosine, has the same label."""
    unit = got / np.maximum(np.linalg.norm(got, axis=1, keepdims=True), 1e-12)
    near = unit @ unit.T
    np.fill_diagonal(near, -2)
    labels = _labels(samples)
    return np.asarray(labels[near.argmax(axis=1)] == labels, np.float64)


def _labels(samples: Samples) -> Array:
    assert samples.labels is not None, "a score by labels needs them"
    return samples.labels
