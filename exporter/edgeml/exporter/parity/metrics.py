"""Measures of agreement between a source and an artifact, each with its formula.

Arrays are (n, ...): one row a sample. Everything is computed in float64; callers have refused non-finite values before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeml.runtime.backends import Array

TIE_SHARE: Final = 1e-6  # of the output range; engines of one float32 model differ by 2e-7 on softmax heads
_PROBABILITY_SUM: Final = 1e-2  # rows that add up to 1 within this are probabilities: int8 softmax heads round each class

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def spread(values: Array) -> float:
    """Max - min: the unit that errors are given in. For a constant output its magnitude, for all zeros 1."""
    low, high = float(np.min(values)), float(np.max(values))
    return high - low or abs(high) or 1.0


def max_abs(reference: Array, got: Array) -> float:
    """Max |got - reference| / spread(reference), over samples and elements."""
    return float(np.max(np.abs(_float(got) - _float(reference)))) / spread(reference)


def relative_rms(reference: Array, got: Array) -> float:
    """sqrt(mean (got - reference)^2) / std(reference); of a constant reference, over its spread instead."""
    truth = _float(reference)
    error = float(np.sqrt(np.mean((_float(got) - truth) ** 2)))
    return error / (float(np.std(truth)) or spread(reference))


def correlation(reference: Array, got: Array) -> float:
    """Pearson's r over all elements; 1 if both are constant and equal, 0 if only one is constant."""
    a, b = _float(reference).ravel(), _float(got).ravel()
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    if scale == 0.0:
        return float(np.array_equal(reference, got))
    return float(a @ b) / scale


def class_scores(values: Array) -> Floats | None:
    """An output as (n, classes), if one axis of a sample counts classes; `None` for maps, sequences and integers."""
    if values.dtype.kind != "f" or sum(axis > 1 for axis in values.shape[1:]) > 1:
        return None
    return _float(values).reshape(len(values), -1)


def are_probabilities(values: Array) -> bool:
    """Whether each row is a distribution over at least two classes (or, of one element, lies in [0, 1])."""
    scores = class_scores(values)
    if scores is None or scores.min() < -TIE_SHARE or scores.max() > 1 + _PROBABILITY_SUM:
        return False
    return scores.shape[1] == 1 or bool(np.all(np.abs(scores.sum(axis=1) - 1) < _PROBABILITY_SUM))


def class_output(outputs: Mapping[str, Array]) -> str | None:
    """The output that holds class scores: the first of probabilities, else the first with one axis of two or more."""
    scores = {name: found for name, values in outputs.items() if (found := class_scores(values)) is not None}
    for name in scores:
        if are_probabilities(outputs[name]):
            return name
    return next((name for name, found in scores.items() if found.shape[1] > 1), None)


def threshold(reference: Array) -> float:
    """Where a single score changes class: 0.5 for probabilities, 0 for logits."""
    return 0.5 if are_probabilities(reference) else 0.0


def top1(scores: Floats, cut: float = 0.5) -> NDArray[np.int64]:
    """The class of each row: the first largest score, as a device picks it; a single score is class 1 above `cut`."""
    if scores.shape[1] == 1:
        return (scores[:, 0] > cut).astype(np.int64)
    return np.asarray(scores.argmax(axis=1), dtype=np.int64)


def agrees(reference: Array, got: Array) -> Flags:
    """Per sample: is the artifact's top-1 class one that the source holds for its best?

    The source's best classes are those within `TIE_SHARE` of its output range of its largest score. Where the source itself
    separates two classes by less than float32 rounding, its choice is an accident of summation order, and either is right. The
    artifact gets no such grace: its class is what a device would answer.
    """
    truth, mine = class_scores(reference), class_scores(got)
    if truth is None or mine is None:
        raise ValueError("no axis of classes")
    noise, cut = TIE_SHARE * spread(truth), threshold(reference)
    chosen = top1(mine, cut)
    if truth.shape[1] == 1:
        return np.asarray((top1(truth, cut) == chosen) | (np.abs(truth[:, 0] - cut) <= noise), dtype=np.bool_)
    chosen_score = np.take_along_axis(truth, chosen[:, None], axis=1)[:, 0]
    return np.asarray(chosen_score >= truth.max(axis=1) - noise, dtype=np.bool_)


def is_right(scores: Array, labels: Array, cut: float) -> Flags:
    """Per sample: is the top-1 class the label? Ties get no grace."""
    found = class_scores(scores)
    if found is None:
        raise ValueError("no axis of classes")
    return np.asarray(top1(found, cut) == labels, dtype=np.bool_)


def in_top(scores: Floats, labels: Array, k: int) -> Flags:
    """Per sample: is the label among the k best classes? Of equal scores the first class comes first, as in `top1`."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.asarray((order == labels[:, None]).any(axis=1), dtype=np.bool_)


def probabilities_of(values: Array, like: Array | None = None) -> Floats:
    """Probabilities (n, classes) of an output; a single score p becomes the pair 1 - p, p.

    Logits go through a softmax (one logit: a sigmoid). `like` is the output that says whether these are logits.
    """
    scores = class_scores(values)
    if scores is None:
        raise ValueError("no axis of classes")
    if not are_probabilities(values if like is None else like):
        if scores.shape[1] == 1:
            scores = 0.5 * (1 + np.tanh(scores / 2))
        else:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
    return np.hstack([1 - scores, scores]) if scores.shape[1] == 1 else scores


def _float(values: Array) -> Floats:
    return np.asarray(values, dtype=np.float64)
