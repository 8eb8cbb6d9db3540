"""Channels of one output that differ in size: boxes in pixels joined with scores in 0..1 are bounded each in their own units.

One bound for both would be a share of the larger: half the range of a score is lost in the rounding of a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.runtime.backends import Array

MIXED: Final = 20.0  # times that the largest channel is larger than the smallest
MOST: Final = 256  # channels; a longer axis is time or space
SMALLEST: Final = 1e-3  # of the largest: what a channel that is almost always 0 says is rounding
LARGER: Final = 2.0  # times that kernels may differ more, of the largest channel, where sizes are taken into account


@dataclass(frozen=True, slots=True)
class Units:
    """What values (samples, ...) are divided by, for each index along `axis`; the largest is 1. Empty: nothing."""

    axis: int | None = None
    sizes: tuple[float, ...] = ()

    def of(self, values: Array) -> Array:
        if self.axis is None:
            return values
        along = [1] * values.ndim
        along[self.axis] = len(self.sizes)
        return np.asarray(values / np.reshape(self.sizes, along))


ONE: Final = Units()


def units_of(values: Array, differences: Sequence[Array]) -> Units:
    """The channels' sizes where they are mixed, and where kernels differ by shares of them: `differences`, as `values`.

    Of several axes it is the one whose sizes lie farthest apart. Where small channels are as noisy as large ones (the elements
    of an embedding that hardly move), their size says nothing of what is healthy.
    """
    found = max((_along(values, axis) for axis in range(1, values.ndim)), key=_ratio, default=ONE)
    if _ratio(found) < MIXED:
        return ONE
    plain = max((float(np.abs(difference).max()) for difference in differences), default=0.0)
    scaled = max((float(np.abs(found.of(difference)).max()) for difference in differences), default=0.0)
    return found if scaled <= LARGER * plain else ONE


def _along(values: Array, axis: int) -> Units:
    if not 2 <= values.shape[axis] <= MOST:
        return ONE
    others = tuple(other for other in range(values.ndim) if other != axis)
    sizes = np.abs(values).max(axis=others)
    shares = np.maximum(sizes / (sizes.max() or 1.0), SMALLEST)
    return Units(axis, tuple(float(f"{share:.3g}") for share in shares))


def _ratio(units: Units) -> float:
    return max(units.sizes) / min(units.sizes) if units.sizes else 1.0
