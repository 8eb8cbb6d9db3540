"""What was seen of each tensor, gathered sample by sample in constant memory.

Two passes over the samples: the first finds extremes, the second counts into a histogram between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError

BINS: Final = 2048

Pass = Callable[[], Iterable[Mapping[str, Array]]]
"""One run over the samples: for each, tensor name -> values."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """All values of one tensor over some samples.

    `average_low` and `average_high` are means over samples of each sample's extremes. `counts` has BINS equal bins over `span`,
    which holds low and high.
    """

    low: float
    high: float
    average_low: float
    average_high: float
    span: tuple[float, float]
    counts: NDArray[np.int64]

    @property
    def edges(self) -> NDArray[np.float64]:
        return np.linspace(*self.span, len(self.counts) + 1)

    @property
    def centers(self) -> NDArray[np.float64]:
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    @property
    def is_constant(self) -> bool:
        return self.low == self.high


@dataclass(slots=True)
class _Part:
    """What one part of the samples shows of a tensor."""

    low: float = np.inf
    high: float = -np.inf
    sum_low: float = 0.0
    sum_high: float = 0.0
    samples: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def see(self, values: Array) -> None:
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.sum_low, self.sum_high = self.sum_low + low, self.sum_high + high
        self.samples += 1

    def count(self, values: Array, span: tuple[float, float]) -> None:
        width = span[1] - span[0]
        position = (values.ravel() - np.float32(span[0])) * np.float32(BINS / width if width > 0 else 0.0)
        self.counts += np.bincount(np.clip(position.astype(np.int32), 0, BINS - 1), minlength=BINS)


class Seen:
    """What samples show of every tensor, kept by parts: sample i belongs to part i modulo `parts`."""

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._tensors: dict[str, list[_Part]] = {}

    def without(self, left_out: int | None = None) -> dict[str, Statistics]:
        """Statistics by tensor over all parts but one."""
        return {name: self._merged(parts, left_out, _span(parts)) for name, parts in self._tensors.items()}

    def half(self, number: int) -> dict[str, Statistics]:
        """Statistics over the parts of an even number (0) or an odd one (1): two sets of samples that share none."""
        halves = {name: parts[number::2] for name, parts in self._tensors.items()}
        return {
            name: self._merged(parts, None, _span(self._tensors[name]))
            for name, parts in halves.items()
            if any(part.samples for part in parts)
        }

    def see(self, number: int, tensors: Mapping[str, Array]) -> None:
        for name, values in tensors.items():
            if not values.size:
                continue
            if not np.isfinite(values).all():
                raise PlanError(
                    f"tensor {name!r} is not finite on calibration sample {number}", hint="leave that sample out of --calib"
                )
            parts = self._tensors.setdefault(name, [_Part() for _ in range(self._parts)])
            parts[number % self._parts].see(values)

    def count(self, number: int, tensors: Mapping[str, Array]) -> None:
        for name, values in tensors.items():
            if values.size:
                parts = self._tensors[name]
                parts[number % self._parts].count(values, _span(parts))

    @staticmethod
    def _merged(parts: list[_Part], left_out: int | None, span: tuple[float, float]) -> Statistics:
        kept = [part for i, part in enumerate(parts) if i != left_out and part.samples]
        samples = sum(part.samples for part in kept)
        return Statistics(
            low=min(part.low for part in kept),
            high=max(part.high for part in kept),
            average_low=sum(part.sum_low for part in kept) / samples,
            average_high=sum(part.sum_high for part in kept) / samples,
            span=span,
            counts=np.sum([part.counts for part in kept], axis=0),
        )


def _span(parts: list[_Part]) -> tuple[float, float]:
    return min(part.low for part in parts), max(part.high for part in parts)


def gather(run: Pass, parts: int = 1, also: Callable[[int, Mapping[str, Array]], None] | None = None) -> Seen:
    """What `run`, which is called twice, shows of every float tensor; `also` is given each sample, too.

    Raises:
        PlanError: a tensor became NaN or infinite on these samples.
    """
    seen = Seen(parts)
    for number, tensors in enumerate(run()):
        seen.see(number, tensors)
        if also is not None:
            also(number, tensors)
    for number, tensors in enumerate(run()):
        seen.count(number, tensors)
    return seen
