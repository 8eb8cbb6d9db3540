"""Whether what a model is fed, and how it answers, still looks like the reference: a decision without IO.

    state, verdict = step(line, state, counts, calls, seconds)      # once a window; verdict is None while nothing was compared

A `Line` is one watched distribution. Windows are added up and compared with it in blocks: a short one of `BLOCK_CALLS` calls,
which finds a shift soon, and a day, which finds it where there are few calls. PSI and Jensen-Shannon divergence must both be
beyond chance, and PSI above an effect floor.

- Chance is calibrated at export for the number of calls at hand (`Null`): a PSI of 0.1 is normal over 50 calls, not over 5,000.
- Each comparison may spend the share of `ALARMS_A_MONTH` that its time is of 30 days: by the union bound, false alarms stay
  below that sum however often is compared and however the comparisons hang together (they share one reference).
- Calls that follow each other are alike. How much windows differ from each other, beyond what independent calls would, is
  measured on the device and takes from the number of calls that count.

Arrays have a leading axis of devices: a device has one row, a simulation thousands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import erfc, log, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeml.wire.manifest import Null

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BLOCK_CALLS: Final = 900  # so that two blocks, the worst case for a shift within the first, end before 2,000 calls
DAY_S: Final = 86_400.0
DAY_CALLS: Final = 100  # fewer make histograms too coarse to be calibrated
MONTH_S: Final = 30 * DAY_S
ALARMS_A_MONTH: Final = 0.1  # false ones that a device may expect, all streams together
WARM_WINDOWS: Final = 8  # before windows can be compared with each other
FLOOR_PSI: Final = 0.1  # smaller shifts harm nobody: the usual "moderate change"
CLEAR_SHARE: Final = 0.5  # of the floor: below, an alarm ends
LONGEST_WINDOW_S: Final = 3600.0  # a clock that jumps must not buy chances
SMOOTHING: Final = 0.5  # added to each bin's count, in calls
_SCALES: Final = 2  # block and day


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One watched distribution: the reference's bins (bins,) as counts in samples, and how far chance goes.

    `streams` is how many lines the device watches; they share the false alarms.
    """

    name: str
    counts: Floats
    null: Null
    streams: int = 1
    floor_psi: float = FLOOR_PSI


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Windows added up. `shares` (devices, bins) sums each window's shares times its calls, `squares` shares squared."""

    shares: Floats
    squares: Floats
    calls: Floats
    windows: Floats
    seconds: Floats

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.shares + other.shares,
            self.squares + other.squares,
            self.calls + other.calls,
            self.windows + other.windows,
            self.seconds + other.seconds,
        )

    def without(self, rows: Bools) -> Tally:
        """Empty where `rows` says so."""
        keep = np.where(rows, 0.0, 1.0)
        return Tally(
            self.shares * keep[:, None],
            self.squares * keep[:, None],
            self.calls * keep,
            self.windows * keep,
            self.seconds * keep,
        )


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What the decision remembers, a row a device.

    `spread` is how much more windows differ from each other than independent calls would; 0 while that is unknown.
    """

    block: Tally
    day: Tally
    windows: Floats
    spread: Floats
    alarmed: Bools


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """A comparison, a row a device: `compared` says for which; `began` and `ended` where an alarm did."""

    compared: Bools
    calls: Floats
    psi: Floats
    js: Floats
    began: Bools
    ended: Bools


def start(line: Line, devices: int = 1) -> State:
    empty = _empty(devices, len(line.counts))
    return State(empty, empty, np.zeros(devices), np.zeros(devices), np.zeros(devices, np.bool_))


def step(line: Line, state: State, counts: Floats, calls: Floats, seconds: float) -> tuple[State, Verdict | None]:
    """Add one window of each device: `counts` (devices, bins) of elements, `calls` (devices,) they came from."""
    window = _tally(counts, calls, min(max(seconds, 0.0), LONGEST_WINDOW_S))
    block, day = state.block + window, state.day + window
    state = replace(state, block=block, day=day, windows=state.windows + window.windows)
    block_due = (block.calls >= BLOCK_CALLS) & (state.windows >= WARM_WINDOWS)
    day_due = (day.seconds >= DAY_S) & (day.calls >= DAY_CALLS)
    if not (block_due.any() or day_due.any()):
        return state, None
    spread = np.where(state.spread > 0, state.spread, _spread(line, day))  # that of before: this block may be a shift
    long, short = _compare(line, day, day_due, spread), _compare(line, block, block_due, spread)
    verdict = _join(line, state, short, long, (block_due, day_due))
    measured = day.windows >= WARM_WINDOWS
    return State(
        block=block.without(block_due),
        day=day.without(day_due),
        windows=state.windows,
        spread=np.where(verdict.compared & measured, _spread(line, day), state.spread),
        alarmed=(state.alarmed | verdict.began) & ~verdict.ended,
    ), verdict


def divergences(line: Line, tally: Tally) -> tuple[Floats, Floats]:
    """(PSI, Jensen-Shannon) of each device's shares q against the reference's p, both smoothed by +0.5 calls a bin.

    PSI = sum((q - p) * ln(q / p)); JS = H((p + q) / 2) - (H(p) + H(q)) / 2, in nats, at most ln 2.
    """
    p, q = _smoothed(line.counts), _smoothed(tally.shares)
    middle = (p + q) / 2
    psi = ((q - p) * np.log(q / p)).sum(axis=1)
    js = (p * np.log(p / middle) + q * np.log(q / middle)).sum(axis=1) / 2
    return psi, js


def chance(line: Line, calls: float, psi: float, js: float) -> float:
    """How likely divergences this large are over so many calls that follow the reference: the larger of both tails."""
    null = line.null
    noise = 1 / calls + 1 / null.n
    factors = (_at(null, null.psi, calls), _at(null, null.js, calls))
    weights, repeats = np.asarray(null.weights), np.asarray(null.repeats, np.float64)
    return max(
        chi_square_tail(psi / (noise * factors[0]), weights, repeats),
        chi_square_tail(8 * js / (noise * factors[1]), weights, repeats),  # JS is PSI / 8 to the second order
    )


def chi_square_tail(x: float, weights: Floats, repeats: Floats) -> float:
    """P(sum(w * X) > x), X chi-square with `repeats` degrees of freedom: Lugannani and Rice's saddlepoint (Kuonen 1999).

    Within a few percent of the true probability far out, which is where it is asked; 1 below the mean.
    """
    scale = float(weights.max())
    x, w = x / scale, weights / scale
    if x <= float(repeats @ w) * 1.01:
        return 1.0
    low, high = 0.0, 0.5
    for _ in range(60):  # K'(s) grows from the mean to infinity over [0, 1/2)
        s = (low + high) / 2
        if float((repeats * w / (1 - 2 * s * w)).sum()) < x:
            low = s
        else:
            high = s
    s = low
    cumulant = -0.5 * float((repeats * np.log1p(-2 * s * w)).sum())
    curvature = 2 * float((repeats * w**2 / (1 - 2 * s * w) ** 2).sum())
    root = sqrt(2 * max(s * x - cumulant, 1e-300))
    z = root + log(s * sqrt(curvature) / root) / root
    return 0.5 * erfc(z / sqrt(2))


def _compare(line: Line, tally: Tally, due: Bools, spread: Floats) -> tuple[Floats, Floats, Bools]:
    """(PSI, JS, whether both are beyond chance), a row a device."""
    psi, js = divergences(line, tally)
    beyond = np.zeros(len(due), np.bool_)
    for row in np.flatnonzero(due & (psi > line.floor_psi)):
        allowed = ALARMS_A_MONTH * tally.seconds[row] / MONTH_S / (_SCALES * line.streams)
        counting = float(tally.calls[row] / max(1.0, spread[row]))
        beyond[row] = chance(line, counting, float(psi[row]), float(js[row])) < allowed
    return psi, js, beyond


def _join(
    line: Line,
    state: State,
    short: tuple[Floats, Floats, Bools],
    long: tuple[Floats, Floats, Bools],
    due: tuple[Bools, Bools],
) -> Verdict:
    """One verdict of both scales: either may begin an alarm, and the one that was compared ends it."""
    block_due, day_due = due
    calls = np.where(block_due, state.block.calls, state.day.calls)
    psi, js = (np.where(block_due, a, b) for a, b in zip(short[:2], long[:2], strict=True))
    beyond = short[2] | long[2]
    compared = block_due | day_due
    null = line.null
    by_chance = (1 / np.maximum(calls, 1) + 1 / null.n) * float(np.dot(null.weights, null.repeats))
    near = psi < np.maximum(CLEAR_SHARE * line.floor_psi, 1.5 * by_chance)
    return Verdict(
        compared=compared,
        calls=calls,
        psi=psi,
        js=js,
        began=compared & beyond & ~state.alarmed,
        ended=compared & ~beyond & near & state.alarmed,
    )


def _spread(line: Line, tally: Tally) -> Floats:
    """Dispersion between windows over what independent calls would show; at least 1, and 1 for a single window.

    sum over windows of calls * (share - pooled share)^2 / p, over (windows - 1) * sum(weights).
    """
    p = _smoothed(line.counts)
    calls = np.maximum(tally.calls, 1.0)
    between = ((tally.squares - tally.shares**2 / calls[:, None]) / p).sum(axis=1)
    expected = np.maximum(tally.windows - 1, 1) * float(np.dot(line.null.weights, line.null.repeats))
    return np.asarray(np.maximum(1.0, np.where(tally.windows > 1, between / expected, 1.0)))


def _smoothed(counts: Floats) -> Floats:
    smooth = counts + SMOOTHING
    return np.asarray(smooth / smooth.sum(axis=-1, keepdims=True))


def _at(null: Null, factors: tuple[float, ...], calls: float) -> float:
    """The table's factor at so many calls, between its points by the logarithm; 1 where there is no table."""
    if not null.at:
        return 1.0
    return float(np.interp(log(max(calls, 1.0)), np.log(null.at), factors))


def _tally(counts: Floats, calls: Floats, seconds: float) -> Tally:
    elements = counts.sum(axis=1)
    heard = elements > 0
    calls = np.where(heard, calls, 0.0)
    shares = counts / np.maximum(elements, 1.0)[:, None]
    weighted = shares * calls[:, None]
    return Tally(weighted, weighted * shares, calls, heard.astype(np.float64), np.full(len(calls), seconds))


def _empty(devices: int, bins: int) -> Tally:
    row = np.zeros(devices)
    return Tally(np.zeros((devices, bins)), np.zeros((devices, bins)), row, row, row)
