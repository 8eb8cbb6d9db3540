"""Observers: from what was seen of a tensor to the range that its 8-bit codes cover.

Pure functions of `Statistics`. Every range holds zero, because padding and ReLU need an exact zero. A wider range rounds more
coarsely, a narrower one clips: `min_max` and `headroom` clip nothing that was seen; `average` and `percentile` forgive rare
values; `entropy` and `mse` weigh the two by what was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeml.exporter.calibrate.statistics import Statistics

LEVELS: Final = 256
PERCENTILE: Final = 99.99  # of all values, shared by the two ends
HEADROOM: Final = 1.1
LEAST_SHARE: Final = 0.3  # the narrowest clip that is tried, as a share of the end
STEPS: Final = 36  # clips tried per end: 2 % apart
ENTROPY_BINS: Final = 128  # LEVELS would leave the full range as the only candidate in a coarse histogram
SMALLEST_WIDTH: Final = 1e-6  # of a range, so that a scale is never zero

Floats = NDArray[np.float64]


class Range(NamedTuple):
    """What 8-bit codes cover; low <= 0 <= high."""

    low: float
    high: float


Observer = Callable[[Statistics], Range]


def with_zero(low: float, high: float) -> Range:
    """The range widened to hold zero and to have a width."""
    low, high = min(0.0, float(low)), max(0.0, float(high))
    return Range(low, high if high - low > SMALLEST_WIDTH else low + SMALLEST_WIDTH)


def min_max(seen: Statistics) -> Range:
    """Everything that was seen."""
    return with_zero(seen.low, seen.high)


def headroom(seen: Statistics) -> Range:
    """Everything that was seen and a tenth more at either end but zero: new samples go beyond what few have shown."""
    return with_zero(seen.low * HEADROOM, seen.high * HEADROOM)


def average(seen: Statistics) -> Range:
    """The mean over samples of each sample's extremes: what a moving average tends to, whatever the order of the samples."""
    return with_zero(seen.average_low, seen.average_high)


def percentile(seen: Statistics, percent: float = PERCENTILE) -> Range:
    """The range that leaves (100 - percent) / 2 percent of the values out at either end; ends at zero stay."""
    tail = seen.counts.sum() * (100.0 - percent) / 200.0
    cumulated = np.cumsum(seen.counts)
    first = int(np.searchsorted(cumulated, tail, side="right"))
    last = int(np.searchsorted(cumulated, cumulated[-1] - tail, side="left"))
    edges = seen.edges
    return with_zero(float(edges[min(first, len(edges) - 2)]), float(edges[min(last + 1, len(edges) - 1)]))


def mse(seen: Statistics) -> Range:
    """The range with the least squared error of values rounded to 256 levels, found by turns at the two ends on a 2 % grid."""
    occupied = seen.counts > 0
    centers, counts = seen.centers[occupied], seen.counts[occupied].astype(np.float64)
    best = with_zero(seen.low, seen.high)
    shares = np.linspace(1.0, LEAST_SHARE, STEPS)
    both = best.low < 0.0 < best.high
    for _ in range(2 if both else 1):
        if best.high > 0.0:
            best = min((Range(best.low, seen.high * s) for s in shares), key=lambda r: squared_error(centers, counts, r))
        if best.low < 0.0:
            best = min((Range(seen.low * s, best.high) for s in shares), key=lambda r: squared_error(centers, counts, r))
    return with_zero(*best)


def squared_error(values: Floats, weights: Floats, range_: Range) -> float:
    """Sum of weights * (value - its nearest of the 256 levels of a range that holds zero exactly)^2."""
    scale = (range_.high - range_.low) / (LEVELS - 1)
    if scale <= 0.0:
        return float(np.sum(weights * values**2))
    zero = np.round(-range_.low / scale)
    code = np.clip(np.round(values / scale) + zero, 0, LEVELS - 1)
    return float(np.sum(weights * (values - (code - zero) * scale) ** 2))


def entropy(seen: Statistics) -> Range:
    """The range whose 128-bin form loses the least information (Kullback-Leibler) about the clipped distribution.

    As in TensorRT (Migacz, "8-bit inference", 2017), on the magnitude: values beyond the clip count at the clip. Both ends are
    scaled alike. Degenerate: one occupied bin gives the full range.
    """
    magnitudes, limit = _magnitudes(seen)
    total = len(magnitudes)
    candidates = range(ENTROPY_BINS, total + 1, ENTROPY_BINS // 16)
    best = min(candidates, key=lambda bins: (_divergence(magnitudes, bins), -bins), default=total)
    end = limit * best / total
    return with_zero(max(seen.low, -end), min(seen.high, end))


def _magnitudes(seen: Statistics) -> tuple[Floats, float]:
    """The histogram of |value| in as many bins, and where it ends; values near zero say nothing about clipping."""
    limit = max(abs(seen.low), abs(seen.high))
    bins = len(seen.counts)
    index = np.minimum((np.abs(seen.centers) / (limit or 1.0) * bins).astype(np.int64), bins - 1)
    magnitudes = np.bincount(index, weights=seen.counts, minlength=bins).astype(np.float64)
    magnitudes[0] = 0.0
    return magnitudes, limit


def _divergence(magnitudes: Floats, bins: int) -> float:
    """KL(P || Q): P is the first `bins` bins with the rest at the last, Q the same mass in ENTROPY_BINS groups."""
    kept = magnitudes[:bins]
    p = kept.copy()
    p[-1] += magnitudes[bins:].sum()
    group = np.arange(bins) * ENTROPY_BINS // bins
    occupied = kept > 0
    mass = np.bincount(group, weights=kept, minlength=ENTROPY_BINS)
    number = np.bincount(group, weights=occupied, minlength=ENTROPY_BINS)
    q = np.where(occupied, mass[group] / np.maximum(number[group], 1), 0.0)
    if not q.sum() or not p.sum():
        return 0.0 if bins == len(magnitudes) else float("inf")
    p, q = p / p.sum(), q / q.sum()
    lost = (p > 0) & (q == 0)
    smooth = np.where(lost, 1e-9, q)
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / smooth[p > 0])))


OBSERVERS: Final[dict[str, Observer]] = {
    "min-max": min_max,
    "mse": mse,
    "percentile": percentile,
    "entropy": entropy,
    "headroom": headroom,
    "average": average,
}
