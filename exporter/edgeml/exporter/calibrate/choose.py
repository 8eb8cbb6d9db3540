"""Which of several ways to quantize is best, judged on the calibration samples themselves by two-half cross check.

Each way is prepared from one half of the samples and judged on the other, and the other way round, so that none is judged on
the samples it was fitted to. Evaluation samples play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np

from edgeml.exporter.calibrate.feeds import Feeds, count, half
from edgeml.runtime.backends import Array

LEAST_SAMPLES: Final = 4  # fewer cannot be halved and still say something
SIGNIFICANT: Final = 0.98  # a later way must be better by 2 %: below that, order decides

Way = TypeVar("Way")


def output_error(reference: Sequence[Array], got: Sequence[Array]) -> float:
    """Mean over outputs of sqrt(rms error * largest error) / standard deviation; infinite if anything is not finite.

    The rms alone would take a model that is far off on one sample in a hundred, the largest alone one draw for the whole.
    """
    shares = []
    for wanted, found in zip(reference, got, strict=True):
        difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
        error = np.sqrt(np.sqrt(np.mean(difference**2)) * difference.max(initial=0.0))
        shares.append(float(error / max(float(np.std(wanted.astype(np.float64))), 1e-12)))
    mean = float(np.mean(shares)) if shares else 0.0
    return mean if np.isfinite(mean) else float("inf")


def choose(
    ways: Sequence[Way],
    quantize: Callable[[Way, Feeds], bytes],
    run: Callable[[bytes, Feeds], Sequence[Array]],
    reference: Callable[[Feeds], Sequence[Array]],
    feeds: Feeds,
) -> tuple[Way, list[float]]:
    """The way with the least error, and the error of each; the first way if there are too few samples to tell.

    `quantize` makes a model from samples, `run` gives its outputs, `reference` those of the float model.
    """
    if count(feeds) < LEAST_SAMPLES or len(ways) == 1:
        return ways[0], []
    halves = (half(feeds, 0), half(feeds, 1))
    wanted = [reference(samples) for samples in halves]
    errors = [
        sum(output_error(wanted[1 - i], run(quantize(way, halves[i]), halves[1 - i])) for i in (0, 1)) / 2 for way in ways
    ]
    best = 0
    for position in range(1, len(ways)):
        if errors[position] < errors[best] * SIGNIFICANT:
            best = position
    return ways[best], errors


def chosen_note(ways: Sequence[str], way: str, errors: Sequence[float], samples: int) -> str:
    """What was chosen and why, in plain words."""
    if not errors:
        return f"ranges by {way}: {samples} samples are too few to compare observers"
    tried = ", ".join(f"{name} {error:.3g}" for name, error in zip(ways, errors, strict=True))
    return f"ranges by {way}: the least error on the half of the samples it did not see ({tried}, in standard deviations)"
