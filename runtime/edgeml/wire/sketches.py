"""Counters that add: the same windows merge on a device, a gateway and in the fleet.

`Histogram` has edges frozen in the manifest. `LatencySketch` is a DDSketch (Masson, Rim, Lee, VLDB 2019): buckets grow by
gamma = (1 + a) / (1 - a), so that every quantile it gives is within a relative error a of the true one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from edgeml.wire.structs import learn

RELATIVE_ERROR: Final = 0.01
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)
_SMALLEST_S: Final = 1e-7  # faster than any inference; such values share a bucket


class Histogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts between edges: `counts[i]` holds edges[i-1] <= x < edges[i], open at both ends, so len(edges) + 1 counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) + 1} counts, got {len(self.counts)}")
        if any(count < 0 for count in self.counts):
            raise ValueError("a count is negative")
        if any(not a < b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges do not grow")

    @property
    def total(self) -> int:
        return sum(self.counts)

    def __add__(self, other: Histogram) -> Histogram:
        if self.edges != other.edges:
            raise ValueError("histograms with different edges do not add")
        return Histogram(self.edges, tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @classmethod
    def of(cls, values: Iterable[float], edges: Sequence[float]) -> Histogram:
        counts = [0] * (len(edges) + 1)
        for value in values:
            counts[bisect_right(edges, value)] += 1
        return cls(tuple(edges), tuple(counts))


class InputSketch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one input of a model was fed: counts by the reference's bins, and what was wrong with the values.

    `outside` counts elements beyond the reference's range (they are in the outer bins too), `nan` those that are no number (in
    no bin), `constant` calls whose elements were all the same (for an input of one element: the same as in the call before).
    """

    calls: int
    counts: tuple[int, ...]
    nan: int = 0
    outside: int = 0
    constant: int = 0

    @property
    def elements(self) -> int:
        return sum(self.counts) + self.nan

    def __add__(self, other: InputSketch) -> InputSketch:
        if len(self.counts) != len(other.counts):
            raise ValueError("sketches with different bins do not add")
        return InputSketch(
            calls=self.calls + other.calls,
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            nan=self.nan + other.nan,
            outside=self.outside + other.outside,
            constant=self.constant + other.constant,
        )


class LatencySketch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts by bucket index i, holding seconds in (gamma^(i-1), gamma^i]; 1 % relative error."""

    buckets: dict[int, int] = {}

    @property
    def total(self) -> int:
        return sum(self.buckets.values())

    def __add__(self, other: LatencySketch) -> LatencySketch:
        merged = dict(self.buckets)
        for index, count in other.buckets.items():
            merged[index] = merged.get(index, 0) + count
        return LatencySketch(merged)

    def quantile(self, q: float) -> float | None:
        """Seconds at rank q in [0, 1], within 1 %; `None` when empty."""
        total = self.total
        if total == 0:
            return None
        rank = q * (total - 1)
        seen = 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen > rank:
                return 2 * _GAMMA**index / (_GAMMA + 1)
        raise AssertionError("counts do not add up")


def latency_bucket(seconds: float) -> int:
    """The bucket of `LatencySketch` that a latency falls in."""
    return math.ceil(math.log(max(seconds, _SMALLEST_S)) / _LOG_GAMMA)


learn(__name__)
