"""The task metrics: what each says of a source and an artifact that answered the same samples, with the drop's bound.

A drop is in percentage points: of a share (accuracy, AUC, F1, a function's value) 100 * (source - artifact), of an error (MSE,
MAE) 100 * (artifact - source) / source, of R2 100 * (source - artifact).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.exporter.metric import AUTO, TOP1, Metric
from edgeml.exporter.parity import ranked
from edgeml.exporter.parity.called import CALLED_RESAMPLES, Called, load_metric, resampled
from edgeml.exporter.parity.compare import UNMEASURED, Outputs
from edgeml.exporter.parity.intervals import (
    LEAST_RESAMPLED,
    RESAMPLES,
    Drop,
    Limit,
    Statistic,
    draws,
    drop_upper,
    mean_upper,
    needed_for,
    needed_samples,
    quantile_of,
    resampled_upper,
)
from edgeml.exporter.parity.metrics import (
    Flags,
    Floats,
    agrees,
    class_scores,
    in_top,
    is_right,
    probabilities_of,
    threshold,
    top1,
)
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError

POINTS: Final = 100.0  # of a share
MOST_WORK: Final = 200_000_000  # samples x classes x resamples of an area: some ten seconds


@dataclass(frozen=True, slots=True)
class Pair:
    """Outputs (n, ...) of source and artifact for the same samples; `scores` is the output that is judged, if one is named."""

    reference: Outputs
    got: Outputs
    labels: Array | None
    scores: str | None

    def __len__(self) -> int:
        return len(next(iter(self.reference.values())))


@dataclass(frozen=True, slots=True)
class Measured:
    """`value` and `source_value` are shares (0 to 1) but for errors, which are in the output's units."""

    metric: str
    value: float
    source_value: float
    drop: Drop


def classified(pair: Pair, metric: Metric, limit: Limit) -> Measured:
    """A classification: top-1 (with labels: accuracy, without: agreement with the source), top-k, AUC or F1.

    Raises:
        PlanError: the metric needs labels or classes that are not there.
    """
    assert pair.scores is not None, "a classification has an output of scores"
    reference, got, labels = pair.reference[pair.scores], pair.got[pair.scores], pair.labels
    cut = threshold(reference)
    if labels is None or labels.dtype.kind != "i":
        if metric.needs_labels:
            raise missing_labels(metric, "class numbers")
        return _right("top1_agreement", np.ones(len(pair), np.bool_), agrees(reference, got), limit)
    check_labels(reference, labels)
    if metric in {AUTO, TOP1}:
        return _right("top1_accuracy", is_right(reference, labels, cut), is_right(got, labels, cut), limit)
    before, after = probabilities_of(reference), probabilities_of(got, like=reference)
    if metric.kind == "top":
        if metric.k >= before.shape[1]:
            raise PlanError(
                f"--metric top{metric.k}", expected=f"less than the model's {before.shape[1]} classes", got=str(metric.k)
            )
        hits = [in_top(values, labels, metric.k) for values in (before, after)]
        return _right(f"top{metric.k}_accuracy", hits[0], hits[1], limit)
    if len(np.unique(labels)) < 2:
        raise PlanError(f"--metric {metric.name} of samples that all have one label", expected="samples of two classes or more")
    if metric.kind == "auc":
        areas = [ranked.area_under_curve(values, labels) for values in (before, after)]
        work = len(pair) * before.shape[1]  # of one resample; of very many classes fewer are drawn
        resamples = max(CALLED_RESAMPLES, min(RESAMPLES, MOST_WORK // work))
        return _whole(metric.name, areas, labels, limit, resamples=resamples)
    classes = [1] if before.shape[1] == 2 else np.unique(labels).tolist()
    scores = [ranked.f1(top1(values), labels, classes) for values in (before, after)]
    return _whole(metric.name, scores, labels, limit)


def regressed(pair: Pair, metric: Metric, limit: Limit) -> Measured:
    """A regression: R2 (of the targets, without them to the source), mean squared or mean absolute error.

    Raises:
        PlanError: an error needs targets, and there are none.
    """
    targets = targets_of(pair)
    if metric.kind in {"mse", "mae"}:
        if targets is None:
            raise missing_labels(metric, "targets of the output's shape")
        return _error(metric.kind, pair, targets, limit)
    if targets is not None:
        name, truth = targets
        scale = float(np.var(truth))
        before, after = _squared(pair.reference[name], truth) / scale, _squared(pair.got[name], truth) / scale
        return _lost("r2", before, after, limit)
    names = [pair.scores] if pair.scores is not None else list(pair.reference)
    parts = [
        _squared(pair.got[n], pair.reference[n]) / (float(np.var(pair.reference[n].astype(np.float64))) or 1.0) for n in names
    ]
    after = max(parts, key=np.mean)  # the output that lost most
    return _lost("r2_to_source", np.zeros_like(after), after, limit)


def called(pair: Pair, metric: Metric, limit: Limit) -> Measured:
    """The user's function: right and wrong as for accuracies, one value a sample by their mean, one number by resampling.

    Raises:
        PlanError: no labels, or the function raised or returned something else.
    """
    if pair.labels is None:
        raise missing_labels(metric, "what the function compares with")
    function = load_metric(metric.path, metric.function)
    before, after = function(pair.reference, pair.labels), function(pair.got, pair.labels)
    if isinstance(before, float) or isinstance(after, float):
        if not (isinstance(before, float) and isinstance(after, float)):
            raise PlanError(f"{function.what} returned one number for one model and one a sample for the other")
        return _called_whole(function, pair, (before, after), limit)
    if before.dtype.kind == after.dtype.kind == "b":
        if function.sign > 0:
            return _right(metric.function, before, after, limit)
        right = _right(metric.function, ~before, ~after, limit)
        return Measured(metric.function, 1 - right.value, 1 - right.source_value, right.drop)
    difference = POINTS * function.sign * (before.astype(np.float64) - after.astype(np.float64))
    drop = _mean_drop(difference, limit)
    return Measured(metric.function, float(np.mean(after)), float(np.mean(before)), drop)


def missing_labels(metric: Metric, expected: str) -> PlanError:
    return PlanError(
        f"--metric {metric.name} without labels", expected=f"{expected} in 'y' of the samples", got="none that fit"
    )


def check_labels(reference: Array, labels: Array) -> None:
    """Raises:
    PlanError: a class number the output does not have.
    """
    found = class_scores(reference)
    classes = max(2, found.shape[1]) if found is not None else 0
    if labels.ndim != 1 or labels.min() < 0 or labels.max() >= classes:
        raise PlanError(
            "labels in 'y' are outside the model's classes",
            expected=f"0 … {classes - 1}",
            got=f"{labels.min()} … {labels.max()}",
            hint="number the classes as the model's output does",
        )


def targets_of(pair: Pair) -> tuple[str, Floats] | None:
    """The output that the labels are targets of; `None` if they fit none or never vary."""
    labels = pair.labels
    if labels is None or float(np.var(labels)) == 0.0:
        return None
    for candidate in [pair.scores] if pair.scores is not None else list(pair.reference):
        if labels.size == pair.reference[candidate].size:
            return candidate, labels.astype(np.float64).reshape(pair.reference[candidate].shape)
    return None


def _right(name: str, before: Flags, after: Flags, limit: Limit) -> Measured:
    """Shares of samples answered rightly, bounded by Tango's interval."""
    count, z = len(before), quantile_of(limit.tail)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    needed = needed_samples(lost, won, count, limit.budget / POINTS, z) if limit.budget is not None else None
    drop = Drop(POINTS * (lost - won) / count, POINTS * drop_upper(lost, won, count, z), needed)
    return Measured(name, float(after.mean()), float(before.mean()), drop)


def _lost(name: str, before: Floats, after: Floats, limit: Limit) -> Measured:
    """1 - the mean of a loss per sample."""
    drop = _mean_drop(POINTS * (after - before), limit)
    return Measured(name, 1.0 - float(after.mean()), 1.0 - float(before.mean()), drop)


def _mean_drop(difference: Floats, limit: Limit) -> Drop:
    points, upper = float(difference.mean()), mean_upper(difference, tail=limit.tail)
    return Drop(points, upper, needed_for(points, upper, len(difference), limit.budget))


def _whole(name: str, both: Sequence[Statistic], strata: Array, limit: Limit, *, resamples: int = RESAMPLES) -> Measured:
    """A metric that is no mean, of the source and of the artifact, by resampling."""
    before, after = both
    one = np.ones((1, len(strata)))
    source_value, value = float(before(one)[0]), float(after(one)[0])
    points = POINTS * (source_value - value)

    def drop(weights: Floats) -> Floats:
        return np.asarray(POINTS * (before(weights) - after(weights)))

    upper = resampled_upper(drop, strata, tail=limit.tail, resamples=resamples)
    return Measured(name, value, source_value, Drop(points, upper, needed_for(points, upper, len(strata), limit.budget)))


def _error(kind: str, pair: Pair, targets: tuple[str, Floats], limit: Limit) -> Measured:
    """MSE = mean (got - y)^2, MAE = mean |got - y|; the drop is how much larger it is than the source's, in percent.

    Where the source makes no error at all, the unit is the targets' variance (MSE) or deviation (MAE) instead.
    """
    name, truth = targets
    loss = _squared if kind == "mse" else _absolute
    before, after = loss(pair.reference[name], truth), loss(pair.got[name], truth)
    instead = float(np.var(truth) if kind == "mse" else np.std(truth))

    def growth(weights: Floats) -> Floats:
        own = weights @ before / len(before)
        return np.asarray(POINTS * (weights @ after / len(before) - own) / np.where(own > 0, own, instead))

    points = float(growth(np.ones((1, len(before))))[0])
    upper = resampled_upper(growth, np.zeros(len(before)), tail=limit.tail)
    drop = Drop(points, upper, needed_for(points, upper, len(before), limit.budget))
    return Measured(kind, float(after.mean()), float(before.mean()), drop)


def _called_whole(function: Called, pair: Pair, values: tuple[float, float], limit: Limit) -> Measured:
    labels = pair.labels
    assert labels is not None, "a function is called with labels"
    points = POINTS * function.sign * (values[0] - values[1])
    upper = UNMEASURED
    if len(pair) >= LEAST_RESAMPLED:
        strata = labels if labels.ndim == 1 and labels.dtype.kind == "i" else np.zeros(len(pair))
        parts = draws(strata, resamples=CALLED_RESAMPLES)
        drops = [
            POINTS
            * function.sign
            * (resampled(function, pair.reference, labels, part) - resampled(function, pair.got, labels, part))
            for part in parts
        ]
        upper = max(points, float(np.quantile(np.concatenate(drops), 1 - limit.tail, method="inverted_cdf")))
    name = function.what.rpartition(":")[2]
    return Measured(name, values[1], values[0], Drop(points, upper, needed_for(points, upper, len(pair), limit.budget)))


def _squared(got: Array, truth: Array) -> Floats:
    """Mean squared difference of each sample (n,)."""
    error = (got.astype(np.float64) - truth.astype(np.float64)) ** 2
    return np.asarray(error.reshape(len(error), -1).mean(axis=1))


def _absolute(got: Array, truth: Array) -> Floats:
    """Mean absolute difference of each sample (n,)."""
    error = np.abs(got.astype(np.float64) - truth.astype(np.float64))
    return np.asarray(error.reshape(len(error), -1).mean(axis=1))
