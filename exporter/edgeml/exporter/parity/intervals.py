"""Bounds of a drop between source and artifact, which answered the same samples: paired and one-sided, of level 1 - tail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from edgeml.exporter.parity.compare import UNMEASURED
from edgeml.exporter.parity.metrics import Floats
from edgeml.runtime.backends import Array

TAIL: Final = 0.05  # the chance that a bound is too low
Z95: Final = 1.6448536269514722  # the normal distribution's 95 % quantile
RESAMPLES: Final = 2000
LEAST_SAMPLES: Final = 8  # fewer give no bound of a mean
LEAST_RESAMPLED: Final = 30  # fewer give no bound of what is not a mean
NEEDED_LIMIT: Final = 10_000_000  # samples nobody has: said as "not by more samples"
_CHUNK: Final = 4_000_000  # weights held at once

Statistic = Callable[[Floats], Floats]
"""Weights (draws, n) of the samples -> the metric of each draw (draws,)."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A drop in percentage points, its upper bound, and how many samples would settle a budget (`None`: no number would)."""

    points: float
    upper: float
    needed_n: int | None


@dataclass(frozen=True, slots=True)
class Limit:
    """What a drop is held to: `budget` in points (`None`: nothing), by a bound that is too low with chance `tail`."""

    budget: float | None
    tail: float = TAIL


def quantile_of(tail: float) -> float:
    """The normal distribution's 1 - tail quantile."""
    return Z95 if tail == TAIL else NormalDist().inv_cdf(1 - tail)


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


def mean_upper(values: Floats, seed: int = 0, tail: float = TAIL) -> float:
    """Upper bound of the mean of `values` (n,).

    Studentized bootstrap: mean - t * s / sqrt(n), where t is the `tail` quantile of (mean* - mean) / (s* / sqrt(n)) over
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
    low = float(np.quantile(ratios, tail, method="inverted_cdf"))
    return mean - low * deviation if math.isfinite(low) else UNMEASURED


def draws(strata: Array, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Floats]:
    """How often each sample is drawn, in parts of (draws, n): with replacement, within each group that `strata` (n,) names."""
    generator, count = np.random.default_rng(seed), len(strata)
    groups = [np.flatnonzero(strata == group) for group in np.unique(strata)]
    parts, rows = [], max(1, _CHUNK // count)
    for start in range(0, resamples, rows):
        weights = np.zeros((min(rows, resamples - start), count))
        for at in groups:
            weights[:, at] = generator.multinomial(len(at), np.full(len(at), 1 / len(at)), len(weights))
        parts.append(weights)
    return parts


def resampled_upper(drop: Statistic, strata: Array, *, seed: int = 0, tail: float = TAIL, resamples: int = RESAMPLES) -> float:
    """Upper bound of a drop that is no mean over samples (the area under a curve, F1).

    The 1 - tail quantile of the drop over paired resamples: both models are scored on the same draw (the bootstrap's percentile
    interval; Efron and Tibshirani, 1993, chapter 13.3). Draws keep the size of every group in `strata` (n,), so that no class
    vanishes. Where the two models give the same on every draw the bound is the estimate; fewer than `LEAST_RESAMPLED` samples
    give `UNMEASURED`.
    """
    if len(strata) < LEAST_RESAMPLED:
        return UNMEASURED
    values = np.concatenate([drop(weights) for weights in draws(strata, seed=seed, resamples=resamples)])
    estimate = float(drop(np.ones((1, len(strata))))[0])
    return max(estimate, float(np.quantile(values, 1 - tail, method="inverted_cdf")))


def needed_samples(lost: int, won: int, count: int, budget: float, z: float = Z95) -> int | None:
    """How many samples bring `drop_upper` down to `budget` (a share) at the rates seen; `None`: no number does."""

    def decides(n: int) -> bool:
        return drop_upper(lost * n / count, won * n / count, n, z) <= budget

    if (lost - won) / count >= budget or not decides(NEEDED_LIMIT):
        return None
    low, high = count - 1, NEEDED_LIMIT
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def needed_for(points: float, upper: float, count: int, budget: float | None) -> int | None:
    """How many samples bring a bound down to the budget, if its distance from the estimate shrinks with the root of n."""
    if budget is None or not points < budget < upper < UNMEASURED:
        return None
    return min(math.ceil(count * ((upper - points) / (budget - points)) ** 2), NEEDED_LIMIT)
