"""MLPerf Tiny's five published models with real samples, kept apart for calibration and for evaluation.

Each recipe writes two .npz files and gives their paths; benchmarks use them too. What the data is: the data folder's README.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CALIBRATE_EVERY: Final = 5  # sample i calibrates where i % 5 == 0, and judges elsewhere
VWW_SIDE: Final = 96  # pixels; CIFAR's 32 enlarged three times
VWW_EVALUATION_EVERY: Final = 4  # of the judging samples: the interpreter takes tens of milliseconds for each
AD_RECORDINGS: Final = 450
AD_CALIBRATION: Final = 200
AD_FRAMES, AD_MELS, AD_WINDOW, AD_HOP = 5, 128, 1024, 512  # as MLPerf Tiny's anomaly detection
AD_RATE_HZ: Final = 16_000  # what its mel scale is built for
FULL_SCALE: Final = 32_768.0  # of int16


@dataclass(frozen=True, slots=True)
class Samples:
    calibration: Path
    evaluation: Path


@dataclass(frozen=True, slots=True)
class Published:
    """A published model. `path` is under the models folder; `make` writes its samples from the data folder."""

    name: str
    path: str
    make: Callable[[Path, Path], Samples]


def kws(data: Path, folder: Path) -> Samples:
    """1,000 MFCC windows of spoken commands, 12 classes."""
    with np.load(data / "kws01.npz", allow_pickle=False) as file:
        return _split(folder, "kws", file["x"], file["y"])


def ic(data: Path, folder: Path) -> Samples:
    """1,000 CIFAR-10 test images, 0..255 as the model takes them."""
    with np.load(data / "cifar10_jpeg1000.npz", allow_pickle=False) as file:
        return _split(folder, "ic", file["x"], file["y"])


def vww(data: Path, folder: Path) -> Samples:
    """CIFAR photos enlarged to 96 x 96 and scaled to 0..1; no labels, so agreement with the source judges."""
    with np.load(data / "cifar10_jpeg1000.npz", allow_pickle=False) as file:
        small = file["x"]
    chosen = np.arange(len(small))
    judging = chosen[chosen % CALIBRATE_EVERY != 0][::VWW_EVALUATION_EVERY]
    times = VWW_SIDE // small.shape[1]

    def enlarged(index: NDArray[np.int64]) -> Floats:
        large = small[index].repeat(times, axis=1).repeat(times, axis=2)
        return np.asarray(large / np.float32(255), dtype=np.float32)

    return _write(folder, "vww", {"x": enlarged(chosen[chosen % CALIBRATE_EVERY == 0])}, {"x": enlarged(judging)})


def sww(data: Path, folder: Path) -> Samples:
    """MLPerf Tiny's own 45 windows for the streaming wake word, 3 classes."""
    with np.load(data / "sww_calibration.npz", allow_pickle=False) as file:
        return _split(folder, "sww", file["specs"].astype(np.float32), file["labels"].astype(np.int64))


def ad(data: Path, folder: Path) -> Samples:
    """Five frames of 128 log-mel bands from the middle of spoken digits; the model gives back its input."""
    with np.load(data / "fsdd.npz", allow_pickle=False) as file:
        sound, offset = file["samples"], file["offset"]
    least = AD_WINDOW + (AD_FRAMES - 1) * AD_HOP
    long_enough = np.flatnonzero(np.diff(offset) * 2 >= least)
    picked = long_enough[np.linspace(0, len(long_enough) - 1, AD_RECORDINGS).astype(int)]
    spectra = np.stack([_log_mel(sound[offset[i] : offset[i + 1]], least) for i in picked])
    order = np.random.default_rng(0).permutation(AD_RECORDINGS)  # recordings are stored digit by digit
    return _write(folder, "ad", {"x": spectra[order[:AD_CALIBRATION]]}, {"x": spectra[order[AD_CALIBRATION:]]})


MODELS: Final = (
    Published("kws", "kws_dscnn_savedmodel", kws),
    Published("ic", "ic_resnet8.h5", ic),
    Published("vww", "vww_mobilenetv1.h5", vww),
    Published("sww", "sww_ds_tcn.h5", sww),
    Published("ad", "ad_autoencoder.h5", ad),
)


def _split(folder: Path, name: str, x: NDArray[np.generic], y: NDArray[np.int64]) -> Samples:
    calibrates = np.arange(len(x)) % CALIBRATE_EVERY == 0
    return _write(folder, name, {"x": x[calibrates], "y": y[calibrates]}, {"x": x[~calibrates], "y": y[~calibrates]})


def _write(
    folder: Path, name: str, calibration: dict[str, NDArray[np.generic]], evaluation: dict[str, NDArray[np.generic]]
) -> Samples:
    made = Samples(folder / f"{name}-calibration.npz", folder / f"{name}-evaluation.npz")
    for path, arrays in ((made.calibration, calibration), (made.evaluation, evaluation)):
        np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy types the keywords as its own flag
    return made


def _log_mel(recording: NDArray[np.int16], least: int) -> Floats:
    """10 log10 of mel power, frame after frame: (640,). 8 kHz is doubled to 16 kHz by linear interpolation."""
    sound = recording.astype(np.float64) / FULL_SCALE
    doubled = np.interp(np.arange(2 * len(sound)) / 2, np.arange(len(sound)), sound)
    start = (len(doubled) - least) // 2
    window = np.hanning(AD_WINDOW + 1)[:-1]
    frames = [doubled[start + i * AD_HOP : start + i * AD_HOP + AD_WINDOW] * window for i in range(AD_FRAMES)]
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    return (10 * np.log10(power @ _mel_bands().T + np.finfo(np.float32).eps)).astype(np.float32).reshape(-1)


def _mel_bands() -> NDArray[np.float64]:
    """Triangles of equal area on the mel scale 2595 log10(1 + f / 700): (mels, window / 2 + 1)."""
    top = 2595 * np.log10(1 + AD_RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, AD_MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(AD_WINDOW, 1 / AD_RATE_HZ)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None])
