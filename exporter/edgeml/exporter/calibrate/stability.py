"""Do two halves of the calibration samples tell the same ranges? If not, a third half would tell others still."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from edgeml.exporter.calibrate.observers import Range, headroom
from edgeml.exporter.calibrate.statistics import Statistics

LIMIT: Final = 0.1  # of the values' deviation; rounding to 8 bits alone costs 0.01 of it
NAMED: Final = 3


def unstable(first: Mapping[str, Statistics], second: Mapping[str, Statistics]) -> tuple[str, ...]:
    """A sentence, if ranges with headroom from one half of the samples would cut off much of the other half's values."""
    found = {}
    for name in first.keys() & second.keys():
        lost = max(cut_off(first[name], headroom(second[name])), cut_off(second[name], headroom(first[name])))
        if lost > LIMIT:
            found[name] = lost
    if not found:
        return ()
    named = ", ".join(
        f"{name!r} ({_text(first[name])} and {_text(second[name])})"
        for name in sorted(found, key=lambda name: (-found[name], name))[:NAMED]
    )
    more = f" and {len(found) - NAMED} more tensors" if len(found) > NAMED else ""
    worst = f"{100 * max(found.values()):.0f} %"
    sentence = (
        f"two halves of the calibration samples disagree on ranges: {named}{more}; what one half's cut off the other is up "
        f"to {worst} of its deviation: give more samples, or more alike"
    )
    return (sentence,)


def cut_off(seen: Statistics, range_: Range) -> float:
    """The rms of what lies beyond a range, over the standard deviation of all values; 0 for a constant."""
    centers, counts = seen.centers, seen.counts.astype(float)
    total = counts.sum()
    mean = float((counts * centers).sum() / total)
    deviation = math.sqrt(float((counts * (centers - mean) ** 2).sum() / total))
    if seen.is_constant or deviation <= 0.0:
        return 0.0
    beyond = (centers - range_.high).clip(min=0.0) + (range_.low - centers).clip(min=0.0)
    return math.sqrt(float((counts * beyond**2).sum() / total)) / deviation


def _text(seen: Statistics) -> str:
    return f"{seen.low:.3g} … {seen.high:.3g}"
