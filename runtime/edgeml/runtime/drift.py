"""Whether what a model is fed, and how it answers, still looks like the reference: a decision without IO.

    state, verdict = step(line, state, counts, calls, seconds)      # once a window; verdict is None while nothing was compared

A `Line` is one watched distribution. Windows are added up and compared with it in blocks: a short one of `BLOCK_CALLS` calls,
which finds a shift soon, and a day, which finds it where there are few calls. PSI must be above an effect floor. Beyond chance
must be either PSI and the Jensen-Shannon divergence, which see any change, or the mean rank, which sees with far fewer samples
that all values moved one way.

- Chance is calibrated at export for the number of calls at hand (`Null`): a PSI of 0.1 is normal over 50 calls, not over 5,000.
- Each comparison may spend the share of `ALARMS_A_MONTH` that its time is of 30 days: by the union bound, false alarms stay
  below that sum however often is compared and however the comparisons hang together (they share one reference).
- Calls that follow each other are alike. How much blocks differ from each other, beyond what independent calls would, is
  measured on the device and counts as chance. Before there are blocks enough, it is how much batches differ from the one
  before, the largest such step left out: a shift is one step, and so does not excuse itself.

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
BATCH_CALLS: Final = 100  # before there are blocks enough, batches show how alike calls are
WARM: Final = 8  # batches before anything is compared, and blocks before they replace batches
ALIKE_BEYOND: Final = 3.0  # calls may resemble each other over longer than a batch, and neighbouring batches do too
SURE: Final = 3.0  # standard deviations from which on a dispersion is no accident
FLOOR_PSI: Final = 0.1  # smaller shifts harm nobody: the usual "moderate change"
CLEAR_SHARE: Final = 0.5  # of the floor: below, an alarm ends
LONGEST_WINDOW_S: Final = 3600.0  # a clock that jumps must not buy chances
SMOOTHING: Final = 0.5  # added to each bin's count, in calls
_SCALES: Final = 2  # block and day
_WAYS: Final = 2  # of an ordered line to be beyond chance: divergences, mean rank


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One watched distribution: the reference's counts (bins,) in samples (or a row a device), and how far chance goes.

    `streams` is how many lines the device watches; they share the false alarms. The bins of an ordered line are of growing
    values; those of classes are not.
    """

    name: str
    counts: Floats
    null: Null
    streams: int = 1
    floor_psi: float = FLOOR_PSI
    is_ordered: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Windows added up: `shares` (devices, bins) sums each window's shares times its calls."""

    shares: Floats
    calls: Floats
    seconds: Floats

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.shares + other.shares, self.calls + other.calls, self.seconds + other.seconds)

    def without(self, rows: Bools) -> Tally:
        """Empty where `rows` says so."""
        keep = np.where(rows, 0.0, 1.0)
        return Tally(self.shares * keep[:, None], self.calls * keep, self.seconds * keep)


@dataclass(frozen=True, slots=True, eq=False)
class Scatter:
    """How tallies differ from each other: `shares` and `calls` added up, squares of shares over calls, and their number."""

    shares: Floats
    squares: Floats
    calls: Floats
    tallies: Floats

    def plus(self, tally: Tally, rows: Bools) -> Scatter:
        """With one more tally where `rows` says so."""
        take = np.where(rows, 1.0, 0.0)
        shares = tally.shares * take[:, None]
        squares = shares**2 / np.maximum(tally.calls, 1.0)[:, None]
        return Scatter(self.shares + shares, self.squares + squares, self.calls + tally.calls * take, self.tallies + take)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """How tallies differ from the one before: `last` of them, squares added up (devices,), the largest, and their number."""

    last: Tally
    squares: Floats
    largest: Floats
    steps: Floats

    def plus(self, line: Line, tally: Tally, rows: Bools) -> Steps:
        """With one more tally where `rows` says so.

        A step is (1/a + 1/b)^-1 * sum((s - t)^2 / p) of shares s, t over a and b calls: of independent calls sum(weights) in
        the mean, half a tally's own dispersion twice (von Neumann 1941).
        """
        old, new = np.maximum(self.last.calls, 1.0), np.maximum(tally.calls, 1.0)
        moved = tally.shares / new[:, None] - self.last.shares / old[:, None]
        size = (moved**2 / _smoothed(line.counts)).sum(axis=1) * old * new / (old + new)
        size = np.where(rows & (self.last.calls > 0), size, 0.0)
        last = self.last.without(rows) + tally.without(~rows)
        return Steps(last, self.squares + size, np.maximum(self.largest, size), self.steps + (size > 0))


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What the decision remembers, a row a device: what is being added up, and how batches and blocks differed so far.

    `excess` (devices, 2) is what being alike added to that, before the last block and after it; NaN while unknown.
    """

    batch: Tally
    block: Tally
    day: Tally
    batches: Steps
    blocks: Scatter
    excess: Floats
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
    row, bins = np.zeros(devices), np.zeros((devices, line.counts.shape[-1]))
    tally, scatter = Tally(bins, row, row), Scatter(bins, bins, row, row)
    return State(
        tally, tally, tally, Steps(tally, row, row, row), scatter, np.full((devices, 2), np.nan), np.zeros(devices, np.bool_)
    )


def step(line: Line, state: State, counts: Floats, calls: Floats, seconds: float) -> tuple[State, Verdict | None]:
    """Add one window of each device: `counts` (devices, bins) of elements, `calls` (devices,) they came from."""
    window = _tally(counts, calls, min(max(seconds, 0.0), LONGEST_WINDOW_S))
    batch, block, day = state.batch + window, state.block + window, state.day + window
    full = batch.calls >= BATCH_CALLS
    batches = state.batches.plus(line, batch, full) if full.any() else state.batches
    state = replace(state, batch=batch.without(full) if full.any() else batch, block=block, day=day, batches=batches)
    warm = batches.steps >= WARM - 1
    block_due = warm & (block.calls >= BLOCK_CALLS)
    day_due = warm & (day.seconds >= DAY_S) & (day.calls >= DAY_CALLS)
    if not (block_due.any() or day_due.any()):
        return state, None
    blocks = state.blocks.plus(block, block_due)
    measured = _excess(line, batches, blocks)
    # as it was before the last block: a shift that began in that one must not pass for the device's own ups and downs
    known = np.where(np.isnan(state.excess[:, 0]), state.excess[:, 1], state.excess[:, 0])
    excess = np.where(np.isnan(known), measured, known)
    verdict = _verdict(line, state, excess, (block_due, day_due))
    return replace(
        state,
        block=block.without(block_due),
        day=day.without(day_due),
        blocks=blocks,
        excess=np.where(block_due[:, None], np.stack([state.excess[:, 1], measured], axis=1), state.excess),
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


def rank_shift(line: Line, tally: Tally) -> Floats:
    """How far each device's mean rank r is from the reference's: (r - 1/2)^2 over the variance of one call's rank.

    The rank of a bin is the reference's share below it and half its own (Bross's ridit, 1958), so that r is near the chance
    that a value of the device exceeds one of the reference.
    """
    p, q = _smoothed(line.counts), _smoothed(tally.shares)
    ranks = np.cumsum(p, axis=-1) - p / 2
    variance = (p * ranks**2).sum(axis=-1) - 0.25
    return np.asarray(((q - p) * ranks).sum(axis=-1) ** 2 / np.maximum(variance, 1e-12))


def chance_of_shift(line: Line, calls: float, shift: float, excess: float = 0.0) -> float:
    """How likely a `rank_shift` this large is over so many calls that follow the reference: the tail of one chi-square.

    No direction varies more than the largest weight says, and what calls being alike adds may all lie in this one.
    """
    null = line.null
    noise = 1 / calls + 1 / null.n
    return erfc(sqrt(shift / (2 * (null.weights[0] * noise + excess / calls) * _at(null, null.psi, calls))))


def chance(line: Line, calls: float, psi: float, js: float, excess: float = 0.0) -> float:
    """How likely divergences this large are over so many calls that follow the reference: the larger of both tails.

    `excess` is the part of the dispersion that calls being alike adds. It is taken to lie all in one direction, where it makes
    large values likeliest.
    """
    null = line.null
    noise = 1 / calls + 1 / null.n
    factors = (_at(null, null.psi, calls), _at(null, null.js, calls))
    weights = np.asarray([null.weights[0] + excess / calls / noise, *null.weights])
    repeats = np.asarray([1, null.repeats[0] - 1, *null.repeats[1:]], np.float64)
    return max(
        chi_square_tail(psi / (noise * factors[0]), weights, repeats),
        chi_square_tail(8 * js / (noise * factors[1]), weights, repeats),  # JS is PSI / 8 to the second order
    )


def chi_square_tail(x: float, weights: Floats, repeats: Floats) -> float:
    """P(sum(w * X) > x), X chi-square with `repeats` degrees of freedom: Lugannani and Rice's saddlepoint (Kuonen 1999).

    Within a tenth of the true probability and rather above it; 1 below the mean.
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


def _verdict(line: Line, state: State, excess: Floats, due: tuple[Bools, Bools]) -> Verdict:
    """One verdict of both scales: either may begin an alarm; values are the block's where both were compared."""
    block_due, day_due = due
    short, long = divergences(line, state.block), divergences(line, state.day)
    beyond = _beyond(line, state.block, short, excess, block_due & ~state.alarmed)
    beyond |= _beyond(line, state.day, long, excess, day_due & ~state.alarmed)
    calls = np.where(block_due, state.block.calls, state.day.calls)
    psi, js = (np.where(block_due, a, b) for a, b in zip(short, long, strict=True))
    most = np.maximum(calls, 1.0)
    by_chance = (1 / most + 1 / line.null.n) * float(np.dot(line.null.weights, line.null.repeats)) + excess / most
    near = psi < np.maximum(CLEAR_SHARE * line.floor_psi, 1.5 * by_chance)
    compared = block_due | day_due
    return Verdict(compared, calls, psi, js, began=beyond, ended=compared & near & state.alarmed)


def _beyond(line: Line, tally: Tally, found: tuple[Floats, Floats], excess: Floats, due: Bools) -> Bools:
    """Where PSI is beyond the floor, and both divergences or the mean rank are beyond chance."""
    psi, js = found
    beyond = np.zeros(len(due), np.bool_)
    candidates = np.flatnonzero(due & (psi > line.floor_psi))
    shift = rank_shift(line, tally) if line.is_ordered and len(candidates) else np.zeros(len(due))
    for row in candidates:
        allowed = ALARMS_A_MONTH * tally.seconds[row] / MONTH_S / (_SCALES * line.streams * (_WAYS if line.is_ordered else 1))
        calls, alike = float(tally.calls[row]), float(excess[row])
        tail = chance(line, calls, float(psi[row]), float(js[row]), alike)
        if line.is_ordered:
            tail = min(tail, chance_of_shift(line, calls, float(shift[row]), alike))
        beyond[row] = tail < allowed
    return beyond


def _excess(line: Line, batches: Steps, blocks: Scatter) -> Floats:
    """How much more blocks differ from each other than blocks of independent calls would; 0 where that may be an accident."""
    steps = np.maximum(batches.steps - 1, 1.0)  # without the largest, which may be where the stream shifted
    early = _beyond_independent(line, (batches.squares - batches.largest) / steps, steps * 2 / 3)  # neighbours share a tally
    pooled = blocks.shares**2 / np.maximum(blocks.calls, 1.0)[:, None]
    freedom = np.maximum(blocks.tallies - 1, 1.0)
    spread = ((blocks.squares - pooled) / _smoothed(line.counts)).sum(axis=1) / freedom
    return np.where(blocks.tallies >= WARM, _beyond_independent(line, spread, freedom), ALIKE_BEYOND * early)


def _beyond_independent(line: Line, found: Floats, freedom: Floats) -> Floats:
    """A dispersion calls * (share - mean share)^2 / p, summed over bins, less what independent calls show.

    That is sum(weights), with the variance 2 * sum(weights^2) / freedom.
    """
    weights, repeats = np.asarray(line.null.weights), np.asarray(line.null.repeats)
    expected, deviation = float(weights @ repeats), np.sqrt(2 * float(weights**2 @ repeats) / freedom)
    return np.where(found > expected + SURE * deviation, found - expected, 0.0)


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
    calls = np.where(elements > 0, calls, 0.0)
    return Tally(counts * (calls / np.maximum(elements, 1.0))[:, None], calls, np.full(len(calls), seconds))
