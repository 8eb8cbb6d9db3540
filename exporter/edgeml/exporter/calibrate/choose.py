"""Which of several ways to quantize is best, judged on the calibration samples themselves by cross-validation.

Each way is prepared from three quarters of the samples and judged on the rest, four times over, so that none is judged on
samples it was fitted to. Evaluation samples play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np

from edgeml.exporter.calibrate.feeds import Feeds, part
from edgeml.runtime.backends import Array

LEAST_SAMPLES: Final = 32  # fewer would choose by chance
FOLDS: Final = 4
TIE: Final = 1.125  # errors nearer than this on a hundred samples are a draw
SMALLEST: Final = 1e-12  # a standard deviation to divide by

Way = TypeVar("Way")


def output_error(reference: Sequence[Array], got: Sequence[Array]) -> float:
    """Mean over outputs of rms error / standard deviation; infinite if anything is not finite."""
    shares = []
    for wanted, found in zip(reference, got, strict=True):
        a, b = wanted.astype(np.float64), found.astype(np.float64)
        shares.append(float(np.sqrt(np.mean((b - a) ** 2))) / max(float(np.std(a)), SMALLEST))
    mean = float(np.mean(shares)) if shares else 0.0
    return mean if np.isfinite(mean) else float("inf")


def judge(
    ways: Sequence[Way],
    quantize: Callable[[Way, int], bytes],
    run: Callable[[bytes, Feeds], Sequence[Array]],
    reference: Callable[[Feeds], Sequence[Array]],
    feeds: Feeds,
) -> list[float]:
    """The error of each way, on samples it was not made from.

    `quantize(way, fold)` makes a model from all samples but every FOLDS-th from `fold` on, `run` gives its outputs, `reference`
    those of the float model.
    """
    held = [part(feeds, fold, FOLDS) for fold in range(FOLDS)]
    wanted = _joined([reference(samples) for samples in held])
    return [output_error(wanted, _joined([run(quantize(way, i), held[i]) for i in range(FOLDS)])) for way in ways]


def _joined(folds: Sequence[Sequence[Array]]) -> list[Array]:
    """Each output over the samples of all folds."""
    return [np.concatenate(parts) for parts in zip(*folds, strict=True)]


def first_good(errors: Sequence[float]) -> int:
    """The position of the first error that is no worse than the least but for chance: what comes first is preferred."""
    least = min(errors)
    return next(position for position, error in enumerate(errors) if error <= least * TIE)
