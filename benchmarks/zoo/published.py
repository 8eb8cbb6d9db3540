"""MLPerf Tiny's five published models with samples that they know: what their scores are measured on.

| model | samples |
|---|---|
| kws, ic | the published 1,000; every fifth calibrates, the rest evaluate |
| vww | the CIFAR photographs, each pixel repeated 3 x 3, in 0..1; split alike; no persons are marked: agreement is the score |
| sww | spectra (30, 1, 40) of spoken digits in the range of the benchmark's own 45; agreement is the score |
| ad | five frames of 128 mel bands from the middle of spoken digits at a tenth of full scale, in decibels; to be given back |

Spoken digits are split by recording as in `sounds`. The autoencoder knows machines:
of speech it gives back less than half the variance.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from benchmarks.zoo import sounds
from benchmarks.zoo.samples import Samples, Splits, digest, need
from edgeml.runtime.backends import Array

AD_RATE, AD_WINDOW, AD_HOP, AD_BANDS, AD_FRAMES = 16_000, 1024, 512, 128, 5
AD_LEVEL = 0.1  # of full scale; louder speech leaves the range of -85 to 15 dB that the model was calibrated for
SWW_BANDS, SWW_FRAMES = 40, 30
SWW_LOW, SWW_HIGH = -12.0, 4.0  # natural log of mel power that become 0 and 0.95, where the benchmark's own spectra lie


def kws() -> Splits:
    return _fifths("kws01.npz")


def ic() -> Splits:
    return _fifths("cifar10_jpeg1000.npz")


def vww() -> Splits:
    with np.load(need("cifar10_jpeg1000.npz"), allow_pickle=False) as file:
        x = np.repeat(np.repeat(file["x"], 3, axis=1), 3, axis=2)
    return _split(x.astype(np.float32) / np.float32(255), None)


def sww() -> Splits:
    def feature(waves: Array) -> dict[str, Array]:
        starts = 400 + np.arange(SWW_FRAMES) * 240
        hann = np.hanning(sounds.WINDOW + 1)[:-1]
        power = np.abs(np.fft.rfft(waves[:, starts[:, None] + np.arange(sounds.WINDOW)] * hann)) ** 2
        mel = np.log(power @ sounds.mel_bank(SWW_BANDS, sounds.WINDOW, sounds.RATE).T + 1e-6)
        return {"x": (np.clip((mel - SWW_LOW) / (SWW_HIGH - SWW_LOW), 0, 1) * 0.95).astype(np.float32)[:, :, None, :]}

    return _unlabelled(sounds.splits(feature))


def ad() -> Splits:
    def feature(waves: Array) -> dict[str, Array]:
        length = AD_WINDOW + AD_HOP * (AD_FRAMES - 1)
        start = (2 * sounds.LENGTH - length) // 2 + np.arange(AD_FRAMES) * AD_HOP
        hann = AD_LEVEL * np.hanning(AD_WINDOW + 1)[:-1]
        at = np.arange(2 * sounds.LENGTH) / 2
        doubled = np.stack([np.interp(at, np.arange(sounds.LENGTH), wave) for wave in waves])  # to 16 kHz
        power = np.abs(np.fft.rfft(doubled[:, start[:, None] + np.arange(AD_WINDOW)] * hann)) ** 2
        mel = 10 * np.log10(power @ sounds.mel_bank(AD_BANDS, AD_WINDOW, AD_RATE).T + 1e-8)
        return {"x": mel.reshape(len(waves), -1).astype(np.float32)}

    made = sounds.splits(feature)
    calibrate, evaluate = (Samples(part.inputs, part.inputs["x"], part.origins) for part in (made.calibrate, made.evaluate))
    return Splits(None, calibrate, evaluate)


def _fifths(name: str) -> Splits:
    with np.load(need(name), allow_pickle=False) as file:
        return _split(file["x"].astype(np.float32), file["y"].astype(np.int64))


def _split(x: Array, y: Array | None) -> Splits:
    fifth = np.arange(len(x)) % 5 == 0

    def part(chosen: Array) -> Samples:
        return Samples({"x": x[chosen]}, None if y is None else y[chosen], frozenset(map(digest, x[chosen])))

    return Splits(None, part(fifth), part(~fifth))


def _unlabelled(made: Splits) -> Splits:
    calibrate, evaluate = (Samples(part.inputs, None, part.origins) for part in (made.calibrate, made.evaluate))
    return Splits(None, calibrate, evaluate)


PATHS: Final = {
    "kws": "mlperf-tiny/kws_dscnn_savedmodel",
    "ic": "mlperf-tiny/ic_resnet8.h5",
    "vww": "mlperf-tiny/vww_mobilenetv1.h5",
    "sww": "mlperf-tiny/sww_ds_tcn.h5",
    "ad": "mlperf-tiny/ad_autoencoder.h5",
    "ic-tflite": "mlperf-tiny/ic_resnet8_ref_fp32.tflite",
}
