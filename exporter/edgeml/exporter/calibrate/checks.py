"""What calibration samples should make a person look twice, in plain words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from edgeml.exporter.calibrate.statistics import Statistics

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


def _list(names: Collection[str]) -> str:
    shown = [repr(name) for name in list(names)[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
