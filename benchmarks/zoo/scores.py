"""How well each sample was answered, 0 to 1: what a zoo model's score is the mean of.

A function is given the first output (n, ...), the samples, and the source's own first output.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.zoo import metrics
from benchmarks.zoo.samples import Samples
from edgeml.runtime.backends import Array

Score = Callable[[Array, Samples, Array], Array]


def top1(got: Array, samples: Samples, _: Array) -> Array:
    """1 where the largest score is the label's."""
    return np.asarray(got.reshape(len(got), -1).argmax(axis=1) == _labels(samples), np.float64)


def top1_left(got: Array, samples: Samples, _: Array) -> Array:
    """1 where the largest score is the first of the labels: of two outputs, the first."""
    return np.asarray(got.argmax(axis=1) == _labels(samples)[:, 0], np.float64)


def agreement(got: Array, _: Samples, source: Array) -> Array:
    """1 where the largest score is the source's."""
    return np.asarray(got.reshape(len(got), -1).argmax(axis=1) == source.reshape(len(source), -1).argmax(axis=1), np.float64)


def explained(got: Array, samples: Samples, _: Array) -> Array:
    """1 - squared error over the labels' variance (of all samples): its mean is R2. Without labels, the input is the target."""
    target = samples.labels if samples.labels is not None else next(iter(samples.inputs.values()))
    truth = np.asarray(target, np.float64).reshape(len(got), -1)
    return np.asarray(1 - ((got.reshape(len(got), -1) - truth) ** 2).mean(axis=1) / truth.var(), np.float64)


def overlap(got: Array, samples: Samples, _: Array) -> Array:
    return metrics.overlap({"mask": got}, _labels(samples))


def found(got: Array, samples: Samples, _: Array) -> Array:
    return metrics.found({"cells": got}, _labels(samples))


def retrieved(got: Array, samples: Samples, _: Array) -> Array:
    return metrics.retrieved({"direction": got}, _labels(samples))


def _labels(samples: Samples) -> Array:
    assert samples.labels is not None, "a score by labels needs them"
    return samples.labels
