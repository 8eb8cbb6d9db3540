"""Which of several ways to quantize is best, judged on the calibration samples themselves by cross-validation.

Each way is prepared from three quarters of the samples and judged on the rest, four times over, so that none is judged on
samples it was fitted to. Evaluation samples play no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from edgeml.exporter.calibrate.feeds import Feeds, part
from edgeml.runtime.backends import Array

LEAST_SAMPLES: Final = 32  # fewer would choose by chance
FOLDS: Final = 4
TIE: Final = 1.125  # errors nearer than this on a hundred samples are a draw
SMALLEST: Final = 1e-12  # a standard deviation to divide by

Way = TypeVar("Way")


class Differences:
    """How far one model's outputs are from another's, gathered sample by sample in constant memory."""

    def __init__(self) -> None:
        self._outputs: list[_Sums] = []

    def add(self, wanted: Sequence[Array], got: Sequence[Array]) -> None:
        """Outputs of one sample, or of several."""
        if not self._outputs:
            self._outputs = [_Sums() for _ in wanted]
        for sums, a, b in zip(self._outputs, wanted, got, strict=True):
            sums.add(a.astype(np.float64), b.astype(np.float64))

    def error(self) -> float:
        """Mean over outputs of rms error / standard deviation; infinite if anything is not finite."""
        shares = [math.sqrt(sums.squares / sums.count) / max(sums.deviation, SMALLEST) for sums in self._outputs if sums.count]
        mean = sum(shares) / len(shares) if shares else 0.0
        return mean if math.isfinite(mean) else math.inf


@dataclass(slots=True)
class _Sums:
    """Of one output: squared differences, and mean and spread of what was wanted (Chan, Golub and LeVeque, 1979)."""

    count: int = 0
    squares: float = 0.0
    mean: float = 0.0
    spread: float = 0.0

    def add(self, wanted: Array, got: Array) -> None:
        if not wanted.size:
            return
        mean, total = float(wanted.mean()), self.count + wanted.size
        self.squares += float(np.sum((got - wanted) ** 2))
        self.spread += float(np.sum((wanted - mean) ** 2)) + (mean - self.mean) ** 2 * self.count * wanted.size / total
        self.mean += (mean - self.mean) * wanted.size / total
        self.count = total

    @property
    def deviation(self) -> float:
        return math.sqrt(self.spread / self.count)


def output_error(reference: Sequence[Array], got: Sequence[Array]) -> float:
    """Mean over outputs of rms error / standard deviation; infinite if anything is not finite."""
    differences = Differences()
    differences.add(reference, got)
    return differences.error()


def judge(
    ways: Sequence[Way],
    quantize: Callable[[Way, int], bytes],
    run: Callable[[bytes, Feeds], Iterable[Sequence[Array]]],
    reference: Callable[[Feeds], Iterable[Sequence[Array]]],
    feeds: Feeds,
    *,
    folds: Sequence[int] = range(FOLDS),
    parts: int = FOLDS,
) -> list[float]:
    """The error of each way, on samples it was not made from.

    `quantize(way, fold)` makes a model from all samples but every `parts`-th from `fold` on, `run` gives its outputs sample by
    sample, `reference` those of the float model.
    """
    found = [Differences() for _ in ways]
    for fold in folds:
        held = part(feeds, fold, parts)
        runs = [run(quantize(way, fold), held) for way in ways]
        for wanted, *answers in zip(reference(held), *runs, strict=True):
            for differences, got in zip(found, answers, strict=True):
                differences.add(wanted, got)
    return [differences.error() for differences in found]


def first_good(errors: Sequence[float]) -> int:
    """The position of the first error that is no worse than the least but for chance: what comes first is preferred."""
    least = min(errors)
    return next(position for position, error in enumerate(errors) if error <= least * TIE)
