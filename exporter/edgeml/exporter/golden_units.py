"""Channels of one output that differ in size: boxes in pixels joined with scores in 0..1 are bounded each in their own units.

One bound for both would be a share of the larger: half the range of a score is lost in the rounding of a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.runtime.backends import Array

MIXED: Final = 20.0  # times that the largest unit is larger than the smallest
MOST: Final = 256  # channels; a longer axis is time or space
SMALLEST: Final = 1e-3  # of the largest: what a channel that is almost always 0 says is rounding


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


def units_of(values: Array, differences: Sequence[Array], allowed: float = 0.0) -> Units:
    """The channels' sizes where they are mixed: of several axes, that whose sizes lie farthest apart.

    `differences` between kernels, as `values`, bound a unit from below: where small channels are as noisy as large ones (the
    elements of an embedding that hardly move), their size says nothing of what is healthy. So no channel is held to more than
    it shows here. What is far below the difference that every board is `allowed` in any case counts for nothing.
    """
    found = max((_along(values, differences, allowed, axis) for axis in range(1, values.ndim)), key=_ratio, default=ONE)
    return found if _ratio(found) >= MIXED else ONE


def _along(values: Array, differences: Sequence[Array], allowed: float, axis: int) -> Units:
    if not 2 <= values.shape[axis] <= MOST:
        return ONE
    sizes = _largest(values, axis)
    shares = np.maximum(sizes / (sizes.max() or 1.0), SMALLEST)
    if differences:
        noise = np.max([_largest(difference, axis) for difference in differences], axis=0)
        shares = np.maximum(shares, noise / (noise.max() + allowed or 1.0))
    return Units(axis, tuple(float(f"{share:.3g}") for share in shares))


def _largest(values: Array, axis: int) -> Array:
    """The largest magnitude of each channel."""
    return np.asarray(np.abs(values).max(axis=tuple(other for other in range(values.ndim) if other != axis)))


def _ratio(units: Units) -> float:
    return max(units.sizes) / min(units.sizes) if units.sizes else 1.0
