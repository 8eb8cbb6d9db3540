"""When a device counts as bad by its own telemetry: the same rule for both arms, one verdict a device.

Each rule asks whether too many of the device's answers went wrong to be chance, by the exact binomial tail at `DEVICE_ALPHA`:

- `error_rate`: errors, against 1 % or 1.5 times the device's own share before the rollout
- `fallback`: answers asked of the cloud, against 5 % or 1.5 times its own share before or what export promised of the version
- `confidence`: answers below the 5 % quantile of the version's own reference, or of the version's that ran before (a model that
  is unsure of everything is unsure in its own reference too), and enough of them to matter
- `latency`: answers slower than 1.25 times the device's own 90 % quantile before

That a rule fires on a healthy device now and then, or on every device of a dark winter week, harms nobody: the stop gate
compares with the hold-back, where it fires as often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.fleet.ledger import TelemetrySum, VersionFacts
from edgeml.fleet.rollout import GuardName
from edgeml.fleet.statistics import Bools, Floats, binomial_tail, upper_bound
from edgeml.wire.sketches import RELATIVE_ERROR, Histogram, latency_bucket

BEHAVIOUR: Final[tuple[GuardName, ...]] = ("error_rate", "confidence", "fallback", "latency")
"""Guards that telemetry decides, so that the hold-back can fail them too."""
DEVICE_ALPHA: Final = 1e-3
LOW_QUANTILE: Final = 0.05
ERROR_SHARE: Final = 0.01
FALLBACK_SHARE: Final = 0.05
WORSE_THAN_BEFORE: Final = 1.5
SLOWER: Final = 1.25
CONFIDENCE_EXCESS: Final = 0.15  # a third of the answers or so has to be unsure before a device has lost its confidence
_SLOWER_BUCKETS: Final = round(math.log(SLOWER) / math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)))


@dataclass(frozen=True, slots=True)
class LowRule:
    """Answers in the first `bins` bins of a histogram with these edges are unsure; `share` of them is normal."""

    edges: tuple[float, ...]
    bins: int
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Behaviour:
    """A row a device: whether it answered often enough to be judged, and by which guards it is bad."""

    judged: Bools
    bad: dict[GuardName, Bools]


def low_rules(version: VersionFacts | None, before: VersionFacts | None) -> tuple[LowRule, ...]:
    """How to tell unsure answers of `version`, whose devices ran `before`; none without a reference."""
    own = version.confidence if version else None
    if own is None:
        return ()
    found = []
    bins, share = _low(own)
    found.append(LowRule(own.edges, bins, share))
    if before is not None and before.confidence is not None and before.confidence.edges != own.edges:
        old_bins, old_share = _low(before.confidence)
        line = before.confidence.edges[old_bins - 1]
        # only whole bins below the line are surely below it: what is left out speaks for the new version
        below = sum(edge <= line for edge in own.edges)
        if below:
            found.append(LowRule(own.edges, below, old_share))
    return tuple(found)


def _low(reference: Histogram) -> tuple[int, float]:
    """The most bins that hold at most LOW_QUANTILE of the reference (at least one), and an upper bound of their share."""
    total, seen, bins = reference.total, 0, 0
    for count in reference.counts[:-1]:
        if bins and seen + count > LOW_QUANTILE * total:
            break
        seen, bins = seen + count, bins + 1
    return bins, max(LOW_QUANTILE, upper_bound(seen, total, 0.05)) if total else 1.0


def judge(
    sums: Sequence[TelemetrySum | None],
    before: Mapping[str, TelemetrySum],
    rules: Mapping[str, tuple[LowRule, ...]],
    least_answers: int,
    promised: Mapping[str, float] | None = None,
) -> Behaviour:
    """Judge devices by what they said since, given what each said before; `None` said nothing.

    `rules` are `low_rules` by version, `promised` the share of answers that a version asks the cloud for.
    """
    expected = WORSE_THAN_BEFORE * _column([(promised or {}).get(s.version, 0.0) if s else 0.0 for s in sums])
    answers = _column([s.answers if s else 0 for s in sums])
    errors = _column([s.errors if s else 0 for s in sums])
    fallbacks = _column([s.fallbacks if s else 0 for s in sums])
    old = [before.get(s.device) if s else None for s in sums]
    asked = answers + errors
    slow, timed = _slow(sums, old)
    return Behaviour(
        judged=asked >= max(1, least_answers),
        bad={
            "error_rate": _too_many(errors, asked, _normal(old, "errors", np.full(len(sums), ERROR_SHARE))),
            "fallback": _too_many(fallbacks, answers, _normal(old, "fallbacks", np.maximum(FALLBACK_SHARE, expected))),
            "confidence": _unsure(sums, rules),
            "latency": _too_many(slow, timed, np.full(len(sums), 0.1)),
        },
    )


def _column(values: Sequence[float]) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _too_many(hits: Floats, trials: Floats, share: Floats) -> Bools:
    return np.asarray((hits > 0) & (binomial_tail(hits, trials, share) < DEVICE_ALPHA))


def _normal(old: Sequence[TelemetrySum | None], what: str, least: Floats) -> Floats:
    """What share of a device's answers may go wrong: at least `least`, more where it was so before."""
    hits = _column([(s.errors if what == "errors" else s.fallbacks) if s else 0 for s in old])
    trials = _column([(s.answers + (s.errors if what == "errors" else 0)) if s else 0 for s in old])
    return np.asarray(np.clip(WORSE_THAN_BEFORE * hits / np.maximum(trials, 1), least, 0.999))


def _unsure(sums: Sequence[TelemetrySum | None], rules: Mapping[str, tuple[LowRule, ...]]) -> Bools:
    worst = np.zeros(len(sums), dtype=np.bool_)
    most = max((len(found) for found in rules.values()), default=0)
    for turn in range(most):
        low, total, normal = np.zeros(len(sums)), np.zeros(len(sums)), np.full(len(sums), 0.5)
        for row, one in enumerate(sums):
            mine = rules.get(one.version, ()) if one else ()
            if one is None or one.confidence is None or turn >= len(mine) or one.confidence.edges != mine[turn].edges:
                continue
            low[row] = sum(one.confidence.counts[: mine[turn].bins])
            total[row], normal[row] = one.confidence.total, mine[turn].share
        matters = low >= (normal + CONFIDENCE_EXCESS) * total
        worst |= matters & _too_many(low, total, normal)
    return worst


def _slow(sums: Sequence[TelemetrySum | None], old: Sequence[TelemetrySum | None]) -> tuple[Floats, Floats]:
    """Answers slower than SLOWER times the device's own 90 % quantile before, and answers that were timed."""
    slow, timed = np.zeros(len(sums)), np.zeros(len(sums))
    for row, (one, then) in enumerate(zip(sums, old, strict=True)):
        usual = then.latency.quantile(0.9) if then and then.latency else None
        if one is None or one.latency is None or usual is None:
            continue
        line = latency_bucket(usual) + _SLOWER_BUCKETS
        timed[row] = one.latency.total
        slow[row] = sum(count for index, count in one.latency.buckets.items() if index > line)
    return slow, timed
