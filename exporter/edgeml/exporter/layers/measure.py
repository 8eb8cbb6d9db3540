"""How far one tensor is from another, each measure with its formula; both (n, ...) and real."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeml.exporter.parity.metrics import correlation, max_abs
from edgeml.runtime.backends import Array

SILENT_DB: Final = 200.0  # stands for no difference at all; float32 holds 150 dB
DEAF_DB: Final = -200.0  # and for something that is not finite


def signal_to_noise_db(reference: Array, got: Array) -> float:
    """20 log10 (std(reference) / rms(got - reference)), within +-`SILENT_DB`.

    A constant reference is measured by its root mean square instead.
    """
    truth, mine = reference.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(mine).all():
        return DEAF_DB
    noise = float(np.sqrt(np.mean((mine - truth) ** 2)))
    signal = float(np.std(truth)) or float(np.sqrt(np.mean(truth**2)))
    if noise == 0.0:
        return SILENT_DB
    return DEAF_DB if signal == 0.0 else min(SILENT_DB, max(DEAF_DB, 20 * math.log10(signal / noise)))


def alike_by_channel(reference: Array, got: Array, axis: int) -> float:
    """The mean over channels of Pearson's r, each weighed by its variance in the reference; 0 if anything is not finite.

    A factor for each channel, as equalizing leaves it, does not count.
    """
    a, b = _by_channel(reference, axis), _by_channel(got, axis)
    if not np.isfinite(b).all() or not np.isfinite(a).all():
        return 0.0
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    power, both = (a * a).sum(axis=1), np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    r = np.divide((a * b).sum(axis=1), both, out=np.zeros(len(a)), where=both > 0)
    return float(r @ power / power.sum()) if power.sum() > 0 else 0.0


def channel_gains(reference: Array, got: Array, axis: int) -> NDArray[np.float64]:
    """The factor on each channel that brings the reference nearest to `got`, shaped to broadcast; 1 if it is not positive."""
    a, b = _by_channel(reference, axis), _by_channel(got, axis)
    square = (a * a).sum(axis=1)
    gains = np.divide((a * b).sum(axis=1), square, out=np.ones(len(a)), where=square > 0)
    gains = np.where(gains > 0, gains, 1.0)
    return np.asarray(gains.reshape([-1 if i == axis else 1 for i in range(got.ndim)]))


def _by_channel(values: Array, axis: int) -> NDArray[np.float64]:
    moved = np.moveaxis(values, axis, 0)
    return moved.reshape(len(moved), -1).astype(np.float64)


def own_signal_to_noise_db(out_db: float, read_db: Sequence[float]) -> float | None:
    """The signal to noise that an operator alone would leave: its output's noise power less the largest that it reads.

    -10 log10 (10^(-out / 10) - max 10^(-read / 10)); `None` if its output is no noisier than what it reads.
    """
    added = 10 ** (-out_db / 10) - max((10 ** (-one / 10) for one in read_db), default=0.0)
    return -10 * math.log10(added) if added > 10 ** (-SILENT_DB / 10) else None


def decibels(value: float | None) -> str:
    """As people read it."""
    if value is None:
        return "-"
    return "equal" if value >= SILENT_DB else "not finite" if value <= DEAF_DB else f"{round(value, 1) + 0.0:.1f}"


def cosine(reference: Array, got: Array) -> float:
    """The angle's cosine, reference . got / (|reference| |got|); 1 if both are zero, 0 if one is or anything is not finite."""
    a, b = reference.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    if not np.isfinite(b).all():
        return 0.0
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float(not a.any() and not b.any())


def largest(reference: Array, got: Array) -> float | None:
    """Max |got - reference| in units of the reference's range; `None` if anything is not finite."""
    return max_abs(reference, got) if np.isfinite(got).all() else None


def alike(reference: Array, got: Array) -> float:
    """Pearson's r, 0 if anything is not finite."""
    return correlation(reference, got) if np.isfinite(got).all() and np.isfinite(reference).all() else 0.0
