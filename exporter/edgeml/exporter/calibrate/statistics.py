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
    """All values of one tensor over all samples.

    `average_low` and `average_high` are means over samples of each sample's extremes. `counts` has BINS equal bins over
    [low, high].
    """

    low: float
    high: float
    average_low: float
    average_high: float
    counts: NDArray[np.int64]

    @property
    def edges(self) -> NDArray[np.float64]:
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    @property
    def centers(self) -> NDArray[np.float64]:
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    @property
    def is_constant(self) -> bool:
        return self.low == self.high


@dataclass(slots=True)
class _Extremes:
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

    def count(self, values: Array) -> None:
        """Values beyond the extremes of the first pass count at the ends."""
        width = self.high - self.low
        position = (values.ravel().astype(np.float64) - self.low) * (BINS / width if width > 0 else 0.0)
        self.counts += np.bincount(np.clip(position.astype(np.int64), 0, BINS - 1), minlength=BINS)


def gather(run: Pass) -> dict[str, Statistics]:
    """Statistics of every float tensor that `run` shows, which is called twice.

    Raises:
        PlanError: a tensor became NaN or infinite on these samples.
    """
    seen: dict[str, _Extremes] = {}
    for number, tensors in enumerate(run()):
        for name, values in tensors.items():
            if not values.size:
                continue
            if not np.isfinite(values).all():
                raise PlanError(
                    f"tensor {name!r} is not finite on calibration sample {number}", hint="leave that sample out of --calib"
                )
            seen.setdefault(name, _Extremes()).see(values)
    for tensors in run():
        for name, values in tensors.items():
            if values.size:
                seen[name].count(values)
    return {
        name: Statistics(e.low, e.high, e.sum_low / e.samples, e.sum_high / e.samples, e.counts) for name, e in seen.items()
    }
