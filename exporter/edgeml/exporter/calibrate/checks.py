"""What calibration samples should make a person look twice, in plain words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np

from edgeml.exporter.calibrate.statistics import Pass, Statistics

LEAST_SAMPLES: Final = 100  # below it ranges still move by whole steps from draw to draw
FLOAT16_LIMIT: Final = 6.0e4  # a margin below 65504, the largest float16


def calibration_notes(statistics: Mapping[str, Statistics], samples: int) -> tuple[str, ...]:
    """Notes on too few samples and on tensors that never change or would overflow as float16."""
    notes = []
    if samples < LEAST_SAMPLES:
        notes.append(f"calibrated on {samples} samples; {LEAST_SAMPLES} or more give steadier ranges")
    if constant := sorted(name for name, seen in statistics.items() if seen.is_constant):
        notes.append(f"never changes over the calibration samples: {_list(constant)}")
    large = sorted(name for name, seen in statistics.items() if max(-seen.low, seen.high) > FLOAT16_LIMIT)
    if large:
        notes.append(f"beyond {FLOAT16_LIMIT:g}, would overflow as float16: {_list(large)}")
    return tuple(notes)


def beyond_float16(run: Pass) -> dict[str, float]:
    """The largest magnitude of each float tensor that float16 does not hold, over one run."""
    found: dict[str, float] = {}
    for tensors in run():
        for name, values in tensors.items():
            if values.size and (largest := float(np.abs(values).max())) > FLOAT16_LIMIT:
                found[name] = max(found.get(name, 0.0), largest)
    return found


def _list(names: Collection[str]) -> str:
    shown = [repr(name) for name in list(names)[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
