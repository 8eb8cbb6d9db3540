"""Quantiles of calls that were made in rounds, with intervals that know calls of one round go together.

A process that happened to be laid out badly in memory, or a neighbour that was busy, slows a whole round. So the bootstrap
draws rounds first and calls within them, and its percentiles are taken further out, as few rounds ask for: the expanded
percentile interval of Hesterberg, "What Teachers Should Know About the Bootstrap" (2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Final, TypeVar

import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.bench.records import Interval, Verdict

DRAWS: Final = 1000
SEED: Final = 0  # the interval is a function of the times alone
STUDENT: Final = (
    math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
)  # fmt: skip
"""97.5 % quantiles of Student's t by degrees of freedom."""
FAR: Final = 1.96  # the same beyond the table, where the difference is under 0.17

Rounds = Sequence[Array]
"""Seconds of each call, an array (calls,) a round."""
Drawn = TypeVar("Drawn")


def quantiles(rounds: Rounds, shares: Sequence[float]) -> tuple[Interval, ...]:
    """The quantiles of all calls at these shares, rising."""
    calls = _Calls(rounds)
    return _intervals(len(rounds), calls.all, calls.draw, lambda drawn: np.quantile(drawn, shares))


def median_ratio(over: Rounds, under: Rounds) -> Interval:
    """median(over) / median(under), where round i of both ran side by side."""
    tops, bottoms = _Calls(over), _Calls(under)

    def draw(generator: np.random.Generator, chosen: Array) -> tuple[Array, Array]:
        return tops.draw(generator, chosen), bottoms.draw(generator, chosen)

    def ratio(pair: tuple[Array, Array]) -> Array:
        return np.atleast_1d(np.median(pair[0]) / np.median(pair[1]))

    return _intervals(len(over), (tops.all, bottoms.all), draw, ratio)[0]


def verdict(ratio: Interval) -> Verdict:
    if ratio.low > 1:
        return "slower"
    return "faster" if ratio.high < 1 else "no difference shown"


class _Calls:
    """All calls in one array, of which a bootstrap draws: whole rounds, and as many calls of each as it had."""

    def __init__(self, rounds: Rounds) -> None:
        self.all = np.concatenate(rounds)
        self._lengths = np.array([len(seconds) for seconds in rounds])
        self._starts = np.cumsum(self._lengths) - self._lengths

    def draw(self, generator: np.random.Generator, chosen: Array) -> Array:
        lengths = self._lengths[chosen]
        within = (generator.random(lengths.sum()) * np.repeat(lengths, lengths)).astype(np.int64)
        drawn: Array = self.all[np.repeat(self._starts[chosen], lengths) + within]
        return drawn


def _intervals(
    rounds: int,
    whole: Drawn,
    draw: Callable[[np.random.Generator, Array], Drawn],
    statistics: Callable[[Drawn], Array],
) -> tuple[Interval, ...]:
    """What `statistics` says of everything, between the tails of what it says of draws."""
    generator = np.random.default_rng(SEED)
    drawn = [statistics(draw(generator, generator.integers(rounds, size=rounds))) for _ in range(DRAWS)]
    tail = _tail(rounds)
    lows, highs = np.quantile(drawn, [tail, 1 - tail], axis=0)
    found = zip(statistics(whole), lows, highs, strict=True)
    return tuple(Interval(float(v), float(min(low, v)), float(max(high, v))) for v, low, high in found)


def _tail(rounds: int) -> float:
    """The share of draws to leave out at each end: Phi(-sqrt(n / (n - 1)) t)."""
    if rounds < 2:
        return 0.025  # of one round, the calls are all there is
    student = STUDENT[rounds - 1] if rounds <= len(STUDENT) else FAR
    return NormalDist().cdf(-math.sqrt(rounds / (rounds - 1)) * student)
