"""What calibration samples should make a person look twice, in plain words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from edgeml.exporter.calibrate.statistics import Pass, Statistics
from edgeml.runtime.backends import Array

NAMED: Final = 5
FLOAT16_LIMIT: Final = 6.0e4  # a margin below 65504, the largest float16


def calibration_notes(statistics: Mapping[str, Statistics]) -> tuple[str, ...]:
    """A note on tensors that never change: no range can be told from them."""
    constant = sorted(name for name, seen in statistics.items() if seen.is_constant)
    return (f"never changes over the calibration samples: {_list(constant)}",) if constant else ()


def overflow_warnings(beyond: Mapping[str, float]) -> tuple[str, ...]:
    """What came of values that float16 does not hold, named with their largest magnitude."""
    if not beyond:
        return ()
    named = [f"{name!r} ({value:.3g})" for name, value in sorted(beyond.items(), key=lambda item: -item[1])]
    listed = ", ".join(named[:NAMED]) + (f" and {len(named) - NAMED} more" if len(named) > NAMED else "")
    return (f"beyond {FLOAT16_LIMIT:g}, about the most that float16 holds, and so kept float32: {listed}; scale them down",)


def beyond_float16(run: Pass) -> dict[str, float]:
    """The largest magnitude of each float tensor that float16 does not hold, over one run."""
    found: dict[str, float] = {}
    for tensors in run():
        note_beyond(found, tensors)
    return found


def note_beyond(found: dict[str, float], tensors: Mapping[str, Array]) -> None:
    """Add what one sample shows to `found`."""
    for name, values in tensors.items():
        if values.size and (largest := max(float(values.max()), -float(values.min()))) > FLOAT16_LIMIT:
            found[name] = max(found.get(name, 0.0), largest)


def _list(names: Collection[str]) -> str:
    shown = [repr(name) for name in list(names)[:NAMED]]
    return ", ".join(shown) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
