"""How far a share of samples may be from the share of all others: bounds of the long run, and of a field to come."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeml.exporter.parity.metrics import Floats

MISS: Final = 0.05  # how often a one-sided bound may be wrong


def low_bound(shares: Floats, count: int, miss: float = MISS) -> Floats:
    """Clopper and Pearson's lower bound of shares; of a mean of values between 0 and 1 it is rather below that."""
    from scipy.special import betaincinv  # the beta distribution's quantile, without all that comes with scipy.stats

    hits = shares * count
    return np.where(hits > 0, betaincinv(np.maximum(hits, 1e-9), count - hits + 1, miss), 0.0)


def high_bound(shares: Floats, count: int, miss: float = MISS) -> Floats:
    return 1.0 - low_bound(1.0 - shares, count, miss)


def least_share(goal: float, count: int, miss: float = MISS) -> float:
    """The least share of samples whose lower bound is no lower than `goal`; above 1 if no share's is."""
    from scipy.special import betaincinv

    low, high = 0.0, float(count)
    if betaincinv(high, 1.0, miss) < goal:
        return 2.0
    for _ in range(50):  # bisection: the bound grows with the share
        middle = (low + high) / 2
        low, high = (middle, high) if betaincinv(middle, count - middle + 1, miss) < goal else (low, middle)
    return high / count


def field_interval(share: float, count: int, miss: float = MISS) -> tuple[float, float]:
    """Where the share of `count` further samples lies but for `miss` of all times, if it was `share` of `count`.

    The bounds of Thatcher (J. Royal Statistical Society B 26, 1964), to a field what Clopper and Pearson's are to the long run.
    With x = share * count, the number of hits in the field is beta-binomial, of Beta(x, count - x + 1) for the lower bound and
    of Beta(x + 1, count - x) for the upper one. A larger field lies nearer to the long run, and so within these bounds too.
    """
    hits = share * count
    low = _quantile(hits, count - hits + 1, count, miss / 2)
    return low / count, _quantile(hits + 1, count - hits, count, 1 - miss / 2) / count


def _quantile(a: float, b: float, count: int, level: float) -> int:
    """Of a beta-binomial: the fewest hits that at least `level` of all fields do not exceed."""
    from scipy.special import betaln

    if a <= 0 or b <= 0:
        return 0 if a <= 0 else count
    hits = np.arange(count + 1)
    ways = -betaln(hits + 1, count - hits + 1) - np.log(count + 1)  # ln of "count choose hits"
    shares = np.exp(ways + betaln(hits + a, count - hits + b) - betaln(a, b))
    return min(count, int(np.searchsorted(np.cumsum(shares), level)))
