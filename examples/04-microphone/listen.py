"""Hears keywords in wav files, or from a microphone:  python listen.py BUNDLE (--microphone | WAV...)

The features are MFCCs as mlcommons/tiny computes them with TensorFlow: frames of 30 ms every 20 ms, periodic Hann window,
magnitudes of a 512-point FFT, 40 triangles on the mel scale from 20 to 4000 Hz, log(energy + 1e-6), ten of a scaled DCT-II.
"""

import argparse
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeml.runtime import load

RATE_HZ = 16_000
FRAME, FRAME_HOP, FFT = 480, 320, 512
MELS, COEFFICIENTS = 40, 10
LOWEST_HZ, HIGHEST_HZ = 20.0, 4000.0
HOP = RATE_HZ // 2  # a word that is cut by one window is whole in the next
LEAST_SCORE = 0.8
NO_KEYWORD = {"silence", "unknown"}
QUIET = 0.01  # of full scale

Sound = NDArray[np.float32]


def from_file(path: str) -> Iterator[Sound]:
    with wave.open(path) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE_HZ, 1, 2):
            sys.exit(f"{path}: expected 16 kHz, mono, 16 bit; convert it with `sox {path} -r 16000 -c 1 -b 16 new.wav`")
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / np.float32(32768)
    for start in range(0, len(sound) - RATE_HZ + 1, HOP):
        yield sound[start : start + RATE_HZ]


def from_microphone() -> Iterator[Sound]:
    import sounddevice  # type: ignore[import-not-found,import-untyped,unused-ignore]  # pip install sounddevice

    sound = np.zeros(RATE_HZ, np.float32)
    with sounddevice.InputStream(RATE_HZ, HOP, channels=1, dtype="float32") as stream:
        while True:
            sound = np.concatenate([sound[HOP:], stream.read(HOP)[0][:, 0]])
            yield sound


def listen(bundle: str, sources: list[Iterator[Sound]]) -> None:
    keywords = windows = quiet = 0
    with load(bundle) as model:
        (name,) = (spec.name for spec in model.manifest.signature.inputs)
        for source in sources:
            for second, sound in enumerate(source):
                windows += 1
                if np.abs(sound).max() < QUIET:  # the features are scaled by the loudest sample: silence would be noise
                    quiet += 1
                    continue
                result = model.run({name: mfcc(sound)})
                if result.label in NO_KEYWORD or result.score is None or result.score < LEAST_SCORE:
                    continue
                keywords += 1
                print(f"{second * HOP / RATE_HZ:6.1f} s  {result.label}  {result.score:.0%}")
    print(f"{keywords} keywords in {windows} windows of a second, {quiet} of them quiet")


def mfcc(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """`sound`: one second, any scale; it is divided by its own maximum, as in training."""
    sound = sound / max(float(sound.max()), 1e-9)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::FRAME_HOP] * window
    energies = np.abs(np.fft.rfft(frames, FFT)) @ _mel_triangles()
    return np.asarray(np.log(energies + 1e-6) @ _dct(), np.float32)[:, :, None]


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(hertz / 700.0))


def _mel_triangles() -> NDArray[np.float64]:
    """(bins, mels); the bin of 0 Hz belongs to none."""
    lowest, highest = _mel(np.array([LOWEST_HZ, HIGHEST_HZ]))
    edges = np.linspace(lowest, highest, MELS + 2)
    bins = _mel(np.linspace(0, RATE_HZ / 2, FFT // 2 + 1))[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0.0, np.minimum(rise, fall))
    triangles[0] = 0.0
    return np.asarray(triangles)


def _dct() -> NDArray[np.float64]:
    """(mels, coefficients)."""
    position = (np.arange(MELS) + 0.5)[:, None] * np.arange(COEFFICIENTS)
    return np.asarray(2 * np.cos(np.pi * position / MELS) / np.sqrt(2 * MELS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("wav", nargs="*")
    parser.add_argument("--microphone", action="store_true")
    given = parser.parse_args()
    if not Path(given.bundle).exists():
        print(f"no {given.bundle}: prepare.py makes it where the published keyword spotter is found")
        sys.exit(0)
    listen(given.bundle, [from_microphone()] if given.microphone else [from_file(path) for path in given.wav])
