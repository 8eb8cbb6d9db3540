"""The arithmetic of gates: evidence that may be looked at any time, and exact bounds that may be looked at once.

**Coin flips** (`coin_log_e`). Devices of a wave and of the hold-back are put into blocks by their hash. If the new version were
at most `tolerance` times as bad, then of m bad devices in a block of c canary and d hold-back devices, canary ones would be no
more likely than drawing m from an urn where each canary device weighs `tolerance` and each hold-back device 1. For one canary
device and one bad device that is a coin with theta0 = tolerance / (tolerance + d). The likelihood ratio against an urn with
weight r has expectation at most 1 (monotone likelihood ratio in the count), so its product over blocks, averaged over the grid
r, is an e-process: it ever reaches 1 / alpha with chance at most alpha (Ville), however often it is looked at. The blocks make
exposure predictable where arms grow unevenly, and keep strata apart (Turner, Ly, Grünwald: safe tests for 2 x 2 tables, arXiv
2106.02693; Lindon, Malek: counting processes, arXiv 2205.14762).

**Ceilings** (`ceiling_log_e`). The same mixture against a fixed share p0, for events that the hold-back cannot have.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RATIOS: Final[tuple[float, ...]] = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
"""Odds of a bad device on the new version against the old one, that the evidence is tried for."""


def coin_log_e(
    canary: ArrayLike, control: ArrayLike, canary_bad: ArrayLike, control_bad: ArrayLike, *, tolerance: float
) -> Floats:
    """Log likelihood ratio of each block for each of `RATIOS`: shape (*blocks, 7). Sum over blocks, then `log_mean_exp`.

    `canary` and `control` count the devices of each block, one of the two at most 1 (see `blocks`), `canary_bad` and
    `control_bad` the bad ones among them; `tolerance` is the odds ratio that still counts as no worse. A block with nobody on
    one side, nobody bad or everybody bad says nothing: 0.
    """
    c, d, x, y = np.broadcast_arrays(
        *(np.asarray(a, dtype=np.float64)[..., None] for a in (canary, control, canary_bad, control_bad))
    )
    if np.any((c > 1) & (d > 1)):
        raise ValueError("a block has one device on one side")
    alternatives = np.asarray(RATIOS)
    log_ratio = _log_urn(c, d, x, y, alternatives) - _log_urn(c, d, x, y, np.asarray(tolerance))
    says_something = (c > 0) & (d > 0) & (x + y > 0) & (x + y < c + d)
    return np.where(says_something, log_ratio, 0.0)


def _log_urn(c: Floats, d: Floats, x: Floats, y: Floats, odds: Floats) -> Floats:
    """Log P(x | x + y = m bad) from an urn of c weighing `odds` and d weighing 1, where c or d is 1.

    c = 1: P(x=1) = odds m / (odds m + d - m + 1).  d = 1: P(y=1) = m / (m + odds (c - m + 1)).
    """
    m = x + y
    one_canary = c <= 1
    hit = np.where(one_canary, odds * m, m)
    miss = np.where(one_canary, d - m + 1, odds * (c - m + 1))
    drawn = np.where(one_canary, x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = hit / (hit + miss)
        return np.asarray(np.where(drawn > 0, np.log(share), np.log1p(-share)))


def ceiling_log_e(bad: ArrayLike, devices: ArrayLike, *, ceiling: float) -> Floats:
    """Log likelihood ratio of `bad` of `devices` at r times the odds of `ceiling`, for each of `RATIOS`: shape (..., 7)."""
    x = np.asarray(bad, dtype=np.float64)[..., None]
    n = np.asarray(devices, dtype=np.float64)[..., None]
    ratios = np.asarray(RATIOS)
    worse = ratios * ceiling / (1 - ceiling + ratios * ceiling)
    return np.asarray(x * np.log(worse / ceiling) + (n - x) * np.log((1 - worse) / (1 - ceiling)))


def log_mean_exp(log_e: ArrayLike) -> Floats:
    """Log of the mean over the last axis (the grid of alternatives), safe for large numbers."""
    values = np.asarray(log_e, dtype=np.float64)
    top = np.max(values, axis=-1, keepdims=True)
    return np.asarray((top + np.log(np.mean(np.exp(values - top), axis=-1, keepdims=True)))[..., 0])


def blocks(stratum: Ints, canary: Bools, order: Floats) -> Ints:
    """The block of each device: inside a stratum the smaller arm has one device a block, the other is dealt out evenly.

    Membership follows from `order` (the hash) alone, so it knows nothing of who turned out bad and does not move while devices
    settle. Strata with one arm only are pooled, so that a site of one device still counts.
    """
    lone = _one_armed(stratum, canary)
    stratum = np.where(lone, -1, stratum)
    result = np.zeros(len(stratum), dtype=np.int64)
    first = 0
    for name in np.unique(stratum):
        inside = stratum == name
        sides = [np.flatnonzero(inside & canary), np.flatnonzero(inside & ~canary)]
        few = max(1, min(len(side) for side in sides))
        for side in sides:
            ranked = side[np.argsort(order[side], kind="stable")]
            result[ranked] = first + np.arange(len(ranked)) * few // max(1, len(ranked))
        first += few
    return result


def _one_armed(stratum: Ints, canary: Bools) -> Bools:
    names, index = np.unique(stratum, return_inverse=True)
    canaries = np.bincount(index, weights=canary, minlength=len(names))
    members = np.bincount(index, minlength=len(names))
    return np.asarray(((canaries == 0) | (canaries == members))[index])


def upper_bound(bad: int, n: int, alpha: float) -> float:
    """Exact one-sided Clopper-Pearson bound: the share is below it with confidence 1 - alpha. 1 where nothing was seen."""
    if bad >= n:
        return 1.0
    return float(special.betaincinv(bad + 1, n - bad, 1 - alpha))


def needed_n(limit: float, alpha: float, bad: int = 0) -> int:
    """The fewest devices, `bad` of them bad, whose `upper_bound` is at most `limit`."""
    low, high = bad, max(1, bad)
    while upper_bound(bad, high, alpha) > limit:
        low, high = high, high * 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if upper_bound(bad, middle, alpha) <= limit else (middle, high)
    return high


def binomial_tail(k: ArrayLike, n: ArrayLike, p: float | Floats) -> Floats:
    """P(X >= k) for X ~ Binomial(n, p), elementwise; 1 for k = 0."""
    hits, trials = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    tail: Any = special.betainc(np.maximum(hits, 1), np.maximum(trials - hits + 1, 1e-300), p)
    return np.asarray(np.where(hits <= 0, 1.0, tail))


def one_in(log_e: float) -> int:
    """N of "less than once in N rollouts": the evidence rounded down to two digits, from 1 to a thousand million."""
    if log_e >= math.log(1e9):
        return 1_000_000_000
    value = math.exp(log_e)
    if value < 10:
        return max(1, int(value))
    digit = 10 ** (int(math.log10(value)) - 1)
    return int(value // digit * digit)
