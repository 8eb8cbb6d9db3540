"""Calibration samples that cannot say what a device will see: too few, copies of each other, constant, or of another scale."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeml.exporter.samples import Samples
from edgeml.runtime.backends import Array

ENOUGH: Final = 100  # below it ranges still move by whole steps from draw to draw
COPIES: Final = 0.1  # a share of copies that is worth a word
FLAT: Final = 0.1  # of samples that hold one value only
OUTSIDE: Final = 0.05  # of evaluation values beyond everything that was calibrated on


def sample_warnings(calibration: Samples, evaluation: Samples | None) -> tuple[str, ...]:
    """Sentences for the report: what is odd about the samples, in numbers, and the way out."""
    found = [*_few(calibration), *_copies(calibration)]
    for name, values in calibration.inputs.items():
        found += _flat(name, values)
        if evaluation is not None:
            found += _outside(name, values, evaluation.inputs[name])
    if evaluation is not None and (shared := evaluation.overlap(calibration)):
        found.append(
            f"{shared} of {len(evaluation)} evaluation samples are calibration samples too: the drop is measured on what "
            "ranges were fitted to; keep them apart"
        )
    return tuple(found)


def _few(samples: Samples) -> list[str]:
    if len(samples) >= ENOUGH:
        return []
    return [f"{len(samples)} calibration samples are few: give {ENOUGH} to 500, drawn from what the device will see"]


def _copies(samples: Samples) -> list[str]:
    copies = len(samples) - samples.distinct()
    if copies <= COPIES * len(samples):
        return []
    return [f"{copies} of {len(samples)} calibration samples are copies of others and add nothing; give different ones"]


def _flat(name: str, values: Array) -> list[str]:
    """Inputs of a single number per sample are flat by nature: only all of them being equal is odd."""
    rows = values.reshape(len(values), -1)
    if len(rows) > 1 and bool(np.all(rows == rows[:1])):
        held = f"all its values are {rows[0, 0]}" if bool(np.all(rows == rows[0, 0])) else "every sample is the same"
        return [f"input {name!r} never changes over the calibration samples ({held}): no range can be told from it"]
    flat = int(np.sum(np.all(rows == rows[:, :1], axis=1))) if rows.shape[1] > 1 else 0
    if flat <= FLAT * len(rows):
        return []
    return [f"{flat} of {len(rows)} calibration samples hold one value only in input {name!r}; are they real recordings?"]


def _outside(name: str, calibrated: Array, judged: Array) -> list[str]:
    if calibrated.dtype.kind not in "fiu" or not calibrated.size:
        return []
    low, high = float(calibrated.min()), float(calibrated.max())
    share = float(np.mean((judged < low) | (judged > high)))
    if share <= OUTSIDE:
        return []
    ends = f"{float(judged.min()):.3g} … {float(judged.max()):.3g}"
    seen = f"{low:.3g} … {high:.3g}"
    return [
        f"{100 * share:.0f} % of the evaluation values of {name!r} ({ends}) are outside the calibrated {seen}; scale both alike"
    ]
