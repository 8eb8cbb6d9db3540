"""How far a histogram strays from its reference by chance: the calibration of drift tests, found from the samples themselves.

Elements of one sample go together (a dark picture is dark all over), so counts are no multinomial draw. Samples are what is
independent: the covariance of their shares gives the weights of the chi-square sum that PSI follows over many calls, and
resampling whole samples gives how much larger its quantiles are over few.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeml.runtime.drift import SMOOTHING, Line, Tally, chi_square_tail, divergences
from edgeml.wire.manifest import Null

Floats = NDArray[np.float64]

CALLS: Final = (100, 300, 1000, 3000, 10_000)  # where the table has points
DRAWS: Final = 500  # resampled histograms a point
TAIL: Final = 0.02  # the quantile that the factors are taken at: about the farthest that 500 draws know
MOST_SAMPLES: Final = 1000  # resampled from; more change nothing at this precision
SMALLEST_WEIGHT: Final = 1e-3  # of the largest; what is below is counted at this weight

_DIGITS: Final = 6


def make_nulls(shares: Mapping[str, Floats], *, seed: int) -> dict[str, Null]:
    """Calibrations by stream. `shares[stream]` (n, bins) holds, for each sample, the share of its elements in each bin.

    Streams of fewer than two samples have none: nothing is known of their chance.
    """
    known = {stream: rows for stream, rows in shares.items() if len(rows) > 1}
    draws = _Draws(seed)
    return {stream: make_null(rows, draws) for stream, rows in known.items()}


def make_null(rows: Floats, draws: _Draws) -> Null:
    """The calibration of one stream; see `make_nulls`."""
    weights, repeats = _grouped(chi_square_weights(rows))
    thinned = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_SAMPLES)).astype(int))]
    factors = [_factors(thinned, calls, draws, weights, repeats) for calls in CALLS]
    return Null(
        n=len(rows),
        weights=tuple(float(f"{weight:.{_DIGITS}g}") for weight in weights),
        repeats=tuple(int(count) for count in repeats),
        at=CALLS,
        psi=tuple(psi for psi, _ in factors),
        js=tuple(js for _, js in factors),
    )


def chi_square_weights(rows: Floats) -> Floats:
    """Weights w of PSI over c calls, (1/c + 1/n) * sum(w * chi-square): eigenvalues of D^-1/2 C D^-1/2, largest first.

    C is the covariance of the samples' shares (n, bins), D the smoothed mean share of each bin. Independent counts give ones.
    """
    mean = rows.sum(axis=0) + SMOOTHING
    scaled = (rows - rows.mean(axis=0)) / np.sqrt(mean / mean.sum())
    values = np.linalg.eigvalsh(scaled.T @ scaled / len(rows))[::-1][: rows.shape[1] - 1]  # shares add to 1: one is 0
    return np.asarray(np.maximum(values, 0.0))


class _Draws:
    """The same resampled samples for every stream of one reference; drawn once, by `seed`."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kept: dict[tuple[int, int], Floats] = {}

    def __call__(self, calls: int, samples: int) -> Floats:
        """(DRAWS, samples): how often each sample is among so many calls."""
        key = (calls, samples)
        if key not in self._kept:
            chance = np.random.default_rng([self._seed, calls, samples])
            self._kept[key] = chance.multinomial(calls, np.full(samples, 1 / samples), DRAWS).astype(np.float64)
        return self._kept[key]


def _factors(rows: Floats, calls: int, draws: _Draws, weights: Floats, repeats: Floats) -> tuple[float, float]:
    """How much the true 98 % quantiles of PSI and 8 JS exceed the chi-square sum's, both with a reference as large as this."""
    n = len(rows)
    references = draws(n, n) @ rows
    stray = draws(calls, n)[::-1] @ rows  # reversed: where calls == n, the draws are the references' own
    line = Line("", references, Null(n, (1.0,), (1,)))  # a reference of its own for every draw
    every = np.full(DRAWS, float(calls))
    psi, js = divergences(line, Tally(stray, every, every))
    expected = (1 / calls + 1 / n) * quantile(TAIL, weights, repeats)
    return _factor(float(np.quantile(psi, 1 - TAIL)) / expected), _factor(float(np.quantile(8 * js, 1 - TAIL)) / expected)


def _factor(ratio: float) -> float:
    return max(1.0, float(f"{ratio:.3g}"))


def quantile(tail: float, weights: Floats, repeats: Floats) -> float:
    """The x that the chi-square sum exceeds with probability `tail`."""
    low = high = float(repeats @ weights)
    while chi_square_tail(high, weights, repeats) > tail:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if chi_square_tail(middle, weights, repeats) > tail else (low, middle)
    return high


def _grouped(values: Floats) -> tuple[Floats, Floats]:
    """Distinct weights and how often each occurs; small ones are raised to `SMALLEST_WEIGHT` of the largest."""
    largest = float(values.max()) if len(values) else 0.0
    if largest <= 0.0:
        return np.ones(1), np.ones(1)
    raised = np.maximum(values, SMALLEST_WEIGHT * largest)
    rounded = np.asarray([float(f"{value:.2g}") for value in raised])
    rounded = np.where(rounded < raised, np.asarray([float(f"{value * 1.05:.2g}") for value in raised]), rounded)
    weights, repeats = np.unique(rounded, return_counts=True)
    return weights[::-1], repeats[::-1].astype(np.float64)
