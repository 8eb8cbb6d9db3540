"""Calibration and evaluation samples for MLPerf Tiny's five models, as `benchmarks/int8_peers.py` uses them.

| model | samples |
|---|---|
| kws, resnet8 | the published 1,000; every fifth calibrates, the rest evaluate |
| vww | the CIFAR photos, each pixel repeated 3 x 3 to 96 x 96, scaled to 0..1; split alike |
| sww | the 45 calibration spectra of the benchmark; split alike: 9 and 36 |
| ad | log-mel spectra of spoken digits, one from the middle of a recording: 200 of the training split, 250 of the test split |

An anomaly detection spectrum is 5 frames of 128 mel bands, 10 log10(power + 1e-8): Hann windows of 1,024 samples at 8 kHz,
256 apart; bands evenly spaced on the mel scale from 0 to 4 kHz.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.runtime.backends import Array

FILES: Final = {
    "kws": "kws01.npz",
    "resnet8": "cifar10_jpeg1000.npz",
    "vww": "cifar10_jpeg1000.npz",
    "sww": "sww_calibration.npz",
}
RATE: Final = 8000
WINDOW: Final = 1024
HOP: Final = 256
BANDS: Final = 128
FRAMES: Final = 5
CALIBRATING: Final = 200


@dataclass(frozen=True, slots=True)
class Split:
    """Samples without a batch axis of their own; `labels` are of `evaluate`."""

    calibrate: Array
    evaluate: Array
    labels: Array | None = None


def load(name: str, folder: Path) -> Split:
    if name == "ad":
        return _spectra(folder / "fsdd.npz")
    data = np.load(folder / FILES[name], allow_pickle=False)
    x: Array = np.asarray(data["specs"] if name == "sww" else data["x"], np.float32)
    labels: Array | None = data["labels"] if name == "sww" else data["y"]
    if name == "vww":
        x, labels = np.repeat(np.repeat(x, 3, axis=1), 3, axis=2) / np.float32(255), None  # no persons are marked
    fifth = np.arange(len(x)) % 5 == 0
    return Split(x[fifth], x[~fifth], None if labels is None else labels[~fifth])


def _spectra(path: Path) -> Split:
    data = np.load(path, allow_pickle=False)
    sound, offset, index = data["samples"], data["offset"], data["index"]
    test = np.flatnonzero(index < 5)
    test = test[np.arange(len(test)) % 6 != 5]  # 250 of 300
    train = np.flatnonzero(index >= 5)
    train = train[:: len(train) // CALIBRATING][:CALIBRATING]
    bank = _mel_bank()

    def spectra(recordings: Array) -> Array:
        return np.stack([_spectrum(sound[offset[i] : offset[i + 1]], bank) for i in recordings])

    return Split(spectra(train), spectra(test))


def _spectrum(sound: Array, bank: Array) -> Array:
    length = WINDOW + HOP * (FRAMES - 1)
    wave = sound.astype(np.float64) / 32768
    wave = np.pad(wave, (0, max(0, length - len(wave))))
    start = (len(wave) - length) // 2
    hann = np.hanning(WINDOW + 1)[:-1]
    frames = np.stack([wave[start + i * HOP : start + i * HOP + WINDOW] * hann for i in range(FRAMES)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    flat: Array = (10 * np.log10(power @ bank.T + 1e-8)).reshape(-1).astype(np.float32)
    return flat


def _mel_bank() -> Array:
    """Triangles (BANDS, WINDOW / 2 + 1): mel = 2595 log10(1 + f / 700)."""
    edges = 700 * (10 ** (np.linspace(0.0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2) / 2595) - 1)
    f = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank: Array = np.maximum(0.0, np.minimum((f - low) / (middle - low), (high - f) / (high - middle)))
    return bank
