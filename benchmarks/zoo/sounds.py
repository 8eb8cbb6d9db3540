"""Spoken digits (fsdd.npz, 3,000 recordings of six speakers at 8 kHz) as wave, log-mel and MFCC.

| recordings of a speaker and digit | for |
|---|---|
| 0-24 | evaluation, 1,500 in all |
| 25-28 | calibration, 240 |
| 29-49 | training, 1,260 |

A recording is put in the middle of one second of silence (longer ones lose both ends) and divided by its peak. A spectrum is
49 frames of 32 mel bands, natural log of power + 1e-6: Hann windows of 256 samples, 160 apart. MFCC are the first 10
coefficients of an orthonormal DCT-II of it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.zoo.samples import Samples, Splits, digest, need
from edgeml.runtime.backends import Array

RATE: Final = 8000
LENGTH: Final = 8000
WINDOW: Final = 256
HOP: Final = 160
FRAMES: Final = 49
BANDS: Final = 32
CEPSTRA: Final = 10
FLOOR: Final = 1e-6
EVALUATE: Final = range(25)
CALIBRATE: Final = range(25, 29)
TRAIN: Final = range(29, 50)
Feature = Callable[[Array], dict[str, Array]]


@functools.cache
def recordings() -> tuple[Array, Array, Array, tuple[str, ...], Array]:
    """Waves (n, LENGTH) in -1..1, digit (n,), index (n,), digest of each recording, and its seconds (n,)."""
    with np.load(need("fsdd.npz"), allow_pickle=False) as file:
        sound, offset, label, index = (file[key] for key in ("samples", "offset", "label", "index"))
    cut = [sound[start:end] for start, end in itertools.pairwise(offset)]
    return np.stack([_second(one) for one in cut]), label, index, tuple(map(digest, cut)), np.diff(offset) / RATE


def _second(sound: Array) -> Array:
    wave = sound.astype(np.float32) / max(1, int(np.abs(sound.astype(np.int64)).max()))
    start = max(0, (len(wave) - LENGTH) // 2)
    wave = wave[start : start + LENGTH]
    before = (LENGTH - len(wave)) // 2
    return np.pad(wave, (before, LENGTH - len(wave) - before))


def splits(feature: Feature) -> Splits:
    """The recordings as `feature` makes inputs of waves (n, LENGTH)."""
    waves, label, index, origins, _ = recordings()

    def part(chosen: range) -> Samples:
        at = np.flatnonzero(np.isin(index, chosen))
        return Samples(feature(waves[at]), label[at], frozenset(origins[i] for i in at))

    return Splits(part(TRAIN), part(CALIBRATE), part(EVALUATE))


def as_waves() -> Splits:
    return splits(wave)


def as_mel() -> Splits:
    return splits(mel)


def as_mel_rows() -> Splits:
    return splits(mel_rows)


def as_mfcc() -> Splits:
    return splits(mfcc)


def as_mfcc_rows() -> Splits:
    return splits(mfcc_rows)


def as_stretched() -> Splits:
    return splits(stretched)


def wave(waves: Array) -> dict[str, Array]:
    """x (n, 1, LENGTH)."""
    return {"x": waves[:, None, :]}


def mel(waves: Array) -> dict[str, Array]:
    """x (n, 1, FRAMES, BANDS), scaled to about -2..2."""
    return {"x": (log_mel(waves)[:, None] + 6) / 4}


def mel_rows(waves: Array) -> dict[str, Array]:
    """x (n, FRAMES, BANDS), scaled alike: for networks that read frame after frame."""
    return {"x": (log_mel(waves) + 6) / 4}


def mfcc(waves: Array) -> dict[str, Array]:
    """x (n, FRAMES, CEPSTRA, 1) as it comes, about -80..40: MLPerf's layout."""
    return {"x": cepstra(waves)[..., None]}


def mfcc_rows(waves: Array) -> dict[str, Array]:
    """x (n, CEPSTRA, FRAMES), as it comes."""
    return {"x": np.ascontiguousarray(cepstra(waves).transpose(0, 2, 1))}


def stretched(waves: Array) -> dict[str, Array]:
    """`spectrum` (n, 1, 32, BANDS): what is above silence, stretched to 32 frames; `facts` (n, 3): seconds, rms, crossings.

    Stretching loses how long the word was, which the facts give back.
    """
    loud = np.abs(waves) > 0.02
    first, last = loud.argmax(axis=1), LENGTH - loud[:, ::-1].argmax(axis=1)
    at = np.linspace(np.minimum(first // HOP, FRAMES - 2), np.clip(last // HOP, 1, FRAMES - 1), 32).T  # (n, 32) frames
    whole = at.astype(int)
    part = (at - whole)[..., None]
    rows = log_mel(waves)
    number = np.arange(len(rows))[:, None]
    spectrum = rows[number, whole] * (1 - part) + rows[number, np.minimum(whole + 1, FRAMES - 1)] * part
    crossings = (np.diff(np.signbit(waves), axis=1)).mean(axis=1)
    facts = np.stack([(last - first) / RATE, np.sqrt((waves**2).mean(axis=1)), crossings], axis=1)
    return {"spectrum": ((spectrum[:, None] + 6) / 4).astype(np.float32), "facts": facts.astype(np.float32)}


def log_mel(waves: Array) -> Array:
    """(n, FRAMES, BANDS) float32."""
    starts = np.arange(FRAMES) * HOP
    hann = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    bank = mel_bank(BANDS, WINDOW, RATE).T
    parts = []
    for some in np.array_split(waves, max(1, len(waves) // 256)):
        frames = some[:, starts[:, None] + np.arange(WINDOW)] * hann
        parts.append(np.log((np.abs(np.fft.rfft(frames)) ** 2) @ bank + FLOOR).astype(np.float32))
    return np.concatenate(parts)


def cepstra(waves: Array) -> Array:
    """(n, FRAMES, CEPSTRA) float32."""
    k, band = np.arange(CEPSTRA)[:, None], np.arange(BANDS)[None]
    basis = np.sqrt(2 / BANDS) * np.cos(np.pi * k * (2 * band + 1) / (2 * BANDS))
    basis[0] /= np.sqrt(2)
    return np.asarray(log_mel(waves) @ basis.T, np.float32)


def mel_bank(bands: int, window: int, rate: int) -> Array:
    """Triangles (bands, window / 2 + 1) evenly spaced on mel = 2595 log10(1 + f / 700), from 0 to half the rate."""
    edges = 700 * (10 ** (np.linspace(0.0, 2595 * np.log10(1 + rate / 2 / 700), bands + 2) / 2595) - 1)
    f = np.arange(window // 2 + 1) * rate / window
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.asarray(np.maximum(0.0, np.minimum((f - low) / (middle - low), (high - f) / (high - middle))))
