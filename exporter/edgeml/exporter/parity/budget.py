"""The accuracy budget: is the drop small enough, and do these samples prove it?

Source and artifact answer the same samples, so the drop is bounded by *paired* statistics, one-sided at 95 %:

- accuracy and agreement: Tango's score interval for paired proportions (`drop_upper`);
- regression: the studentized bootstrap of the mean paired difference, with a fixed seed (`mean_upper`).

Upper bound <= budget passes; point estimate > budget fails; between the two these samples cannot tell, and `needed_n` says
how many of the same kind would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from edgeml.exporter.parity.compare import UNMEASURED, Outputs, TaskKind
from edgeml.exporter.parity.metrics import Floats, agrees, class_output, class_scores, is_right, threshold
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Status, Task

Z95: Final = 1.6448536269514722  # the normal distribution's 95 % quantile
POINTS: Final = 100.0  # of a share
RESAMPLES: Final = 2000
LEAST_SAMPLES: Final = 8  # fewer give no bound of a mean
NEEDED_LIMIT: Final = 10_000_000  # samples nobody has: said as "not by more samples"


@dataclass(frozen=True, slots=True)
class Drop:
    """A drop in percentage points, its upper bound, and how many samples would settle a budget (`None`: no number would)."""

    points: float
    upper: float
    needed_n: int | None


def score(
    reference: Outputs,
    got: Outputs,
    labels: Array | None,
    *,
    task: TaskKind,
    budget: float | None,
    data: Literal["eval", "calibration"] = "eval",
    scores: str | None = None,
) -> Task:
    """The task metric of source and artifact on the same samples, and the verdict.

    | metric | labels | value |
    |---|---|---|
    | `top1_accuracy` | class numbers | share of samples whose top-1 class is the label |
    | `top1_agreement` | none | share of samples whose top-1 class is the source's; source_value 1 |
    | `r2` | targets of the output's shape | 1 - mean (got - y)^2 / var(y) |
    | `r2_to_source` | none | 1 - mean (got - source)^2 / var(source), the share of the source's variance kept; source_value 1 |

    Args:
        reference: the source's outputs (n, ...), finite.
        got: the artifact's outputs, of the same contract.
        labels: as `Samples.labels`; targets that fit no output are not used.
        task: which metrics to choose from.
        budget: the accepted drop in percentage points; `None` passes any.
        data: which samples these are.
        scores: the output that is judged; found if not given.

    Raises:
        PlanError: labels outside the output's classes.
    """
    if task == "classify" and (name := scores or class_output(reference)) is not None:
        metric, value, source_value, drop = _classified(reference[name], got[name], labels, budget)
    else:
        metric, value, source_value, drop = _regressed(reference, got, labels, scores, budget)
    status = verdict(drop, budget)
    return Task(
        metric=metric,
        value=value,
        source_value=source_value,
        drop=drop.points,
        upper95=drop.upper,
        n=len(next(iter(reference.values()))),
        status=status,
        budget=budget,
        needed_n=drop.needed_n if status == "inconclusive" else None,
        data=data,
    )


def verdict(drop: Drop, budget: float | None) -> Status:
    if budget is None or drop.upper <= budget:
        return "pass"
    return "fail" if drop.points > budget else "inconclusive"


def drop_upper(lost: float, won: float, count: float, z: float = Z95) -> float:
    """Upper bound of the drop p_lost - p_won of paired answers.

    `lost` samples are right in the source and wrong in the artifact, `won` the other way; `count` is all of them. The bound is
    the largest D with (lost - won - n D) / sqrt(n (2 q + D (1 - D))) >= -z, where q is the maximum-likelihood estimate of p_won
    under p_lost - p_won = D: q = (sqrt(B^2 - 4 A C) - B) / (2 A), A = 2 n, B = -lost - won + (2 n - lost + won) D,
    C = -won D (1 - D) (T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 1998, 891-908). With `won` = 0 it is Wilson's bound of lost / n; with no
    disagreement at all it is z^2 / (n + z^2), not 0.
    """
    from scipy.optimize import brentq  # takes a second to import

    def distance(drop: float) -> float:
        a, b, c = 2 * count, -lost - won + (2 * count - lost + won) * drop, -won * drop * (1 - drop)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = max(count * (2 * q + drop * (1 - drop)), 0.0)
        return lost - won - count * drop + z * math.sqrt(variance)

    estimate = (lost - won) / count
    if estimate >= 1.0:
        return 1.0
    # Just above the estimate the distance is positive (at it, it may be 0); at a drop of 1 it is lost - won - n < 0.
    return float(brentq(distance, estimate + 1e-9, 1.0, xtol=1e-12))


def mean_upper(values: Floats, seed: int = 0) -> float:
    """Upper 95 % bound of the mean of `values` (n,).

    Studentized bootstrap: mean - t_05 * s / sqrt(n), where t_05 is the 5 % quantile of (mean* - mean) / (s* / sqrt(n)) over
    resamples (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 12.5). Squared errors are skewed, which
    it follows and a t interval does not. Equal values give themselves; fewer than `LEAST_SAMPLES` give `UNMEASURED`.
    """
    count = len(values)
    if count < LEAST_SAMPLES:
        return UNMEASURED
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    if deviation == 0.0:
        return mean
    generator = np.random.default_rng(seed)
    ratios = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = values[generator.integers(0, count, count)]
        error = float(drawn.std(ddof=1))
        ratios[index] = (float(drawn.mean()) - mean) / error if error > 0 else -np.inf if drawn.mean() < mean else np.inf
    low = float(np.quantile(ratios, 0.05, method="inverted_cdf"))
    return mean - low * deviation if math.isfinite(low) else UNMEASURED


def needed_samples(lost: int, won: int, count: int, budget: float) -> int | None:
    """How many samples bring `drop_upper` down to `budget` (a share) at the rates seen; `None`: no number does."""

    def decides(n: int) -> bool:
        return drop_upper(lost * n / count, won * n / count, n) <= budget

    if (lost - won) / count >= budget or not decides(NEEDED_LIMIT):
        return None
    low, high = count - 1, NEEDED_LIMIT
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _classified(reference: Array, got: Array, labels: Array | None, budget: float | None) -> tuple[str, float, float, Drop]:
    count = len(reference)
    if labels is not None and labels.dtype.kind == "i":
        _check_labels(reference, labels)
        cut = threshold(reference)
        before, after = is_right(reference, labels, cut), is_right(got, labels, cut)
        metric = "top1_accuracy"
    else:
        before, after = np.ones(count, dtype=np.bool_), agrees(reference, got)
        metric = "top1_agreement"
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    needed = needed_samples(lost, won, count, budget / POINTS) if budget is not None else None
    drop = Drop(POINTS * (lost - won) / count, POINTS * drop_upper(lost, won, count), needed)
    return metric, float(after.mean()), float(before.mean()), drop


def _check_labels(reference: Array, labels: Array) -> None:
    found = class_scores(reference)
    classes = max(2, found.shape[1]) if found is not None else 0
    if labels.min() < 0 or labels.max() >= classes:
        raise PlanError(
            "labels in 'y' are outside the model's classes",
            expected=f"0 … {classes - 1}",
            got=f"{labels.min()} … {labels.max()}",
            hint="number the classes as the model's output does",
        )


def _regressed(
    reference: Outputs, got: Outputs, labels: Array | None, name: str | None, budget: float | None
) -> tuple[str, float, float, Drop]:
    targets = _targets(reference, labels, name)
    if targets is not None:
        name, truth = targets
        scale = float(np.var(truth))
        before, after = _squared(reference[name], truth) / scale, _squared(got[name], truth) / scale
        metric = "r2"
    else:
        names = [name] if name is not None else list(reference)
        parts = [_squared(got[n], reference[n]) / (float(np.var(reference[n].astype(np.float64))) or 1.0) for n in names]
        after = max(parts, key=np.mean)  # the output that lost most
        before, metric = np.zeros_like(after), "r2_to_source"
    difference = POINTS * (after - before)
    points, upper = float(difference.mean()), mean_upper(difference)
    needed = None
    if budget is not None and points < budget < upper < UNMEASURED:
        # The bound's distance from the estimate shrinks with the root of n.
        needed = min(math.ceil(len(difference) * ((upper - points) / (budget - points)) ** 2), NEEDED_LIMIT)
    return metric, 1.0 - float(after.mean()), 1.0 - float(before.mean()), Drop(points, upper, needed)


def _targets(reference: Outputs, labels: Array | None, name: str | None) -> tuple[str, Floats] | None:
    """The output that `labels` are targets of; `None` if they fit none or never vary."""
    if labels is None or float(np.var(labels)) == 0.0:
        return None
    for candidate in [name] if name is not None else list(reference):
        if labels.size == reference[candidate].size:
            return candidate, labels.astype(np.float64).reshape(reference[candidate].shape)
    return None


def _squared(got: Array, truth: Array) -> Floats:
    """Mean squared difference of each sample (n,)."""
    error = (got.astype(np.float64) - truth.astype(np.float64)) ** 2
    return np.asarray(error.reshape(len(error), -1).mean(axis=1))
