"""Real images for the meter-reading camera: scikit-learn's bundled handwritten digits, split once and for all.

The 1,797 images (8 x 8 grey values, UCI Optical Recognition of Handwritten Digits) are shuffled with a fixed seed and cut
into four parts that never mix: train, calibrate, evaluate and field. The first three are as the workshop's camera sees
them. The field part is seen through the housing of a real meter: dim light, a grey background and sensor noise.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 1797
TRAIN, CALIBRATE, EVALUATE = 800, 200, 450  # the other 347 are the field
GREY_LEVELS = 16.0  # the data set's own range is 0..16

Images = NDArray[np.float32]
Digits = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """Images (n, 1, 8, 8) float32 in 0..1, and their digits (n,)."""

    x: Images
    y: Digits


@dataclass(frozen=True, slots=True)
class Parts:
    train: Part
    calibrate: Part
    evaluate: Part
    field: Part


def parts() -> Parts:
    """The four parts, disjoint, the same on every machine."""
    from sklearn.datasets import load_digits

    bundled: Any = load_digits()
    x = (bundled.images / GREY_LEVELS).astype(np.float32)[:, None]
    y = bundled.target.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(x))
    cuts = np.cumsum([TRAIN, CALIBRATE, EVALUATE])
    train, calibrate, evaluate, field = (Part(x[index], y[index]) for index in np.split(order, cuts))
    return Parts(train, calibrate, evaluate, Part(through_the_housing(field.x, np.random.default_rng(7)), field.y))


def through_the_housing(x: Images, rng: np.random.Generator) -> Images:
    """What a camera inside a meter sees: contrast 0.25 to 0.6, background up to 0.4, noise of 0.02, clipped to 0..1."""
    contrast = rng.uniform(0.25, 0.6, (len(x), 1, 1, 1))
    background = rng.uniform(0.1, 0.4, (len(x), 1, 1, 1))
    noise = rng.normal(0.0, 0.02, x.shape)
    return np.clip(background + contrast * x + noise, 0.0, 1.0).astype(np.float32)


def write(folder: Path) -> None:
    """Writes calib.npz, eval.npz and field.npz as `edgeml export` and `edgeml run` read them.

    Calibration and evaluation hold workshop images and the same images through the housing, half and half, as a careful
    engineer would; `eval-workshop.npz` and `calib-workshop.npz` hold only the first half, as a hasty one would.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = parts()
    rng = np.random.default_rng(8)
    for name, part in (("calib", split.calibrate), ("eval", split.evaluate)):
        seen = through_the_housing(part.x, rng)
        mixed = np.where((np.arange(len(part.x)) % 2 == 0)[:, None, None, None], part.x, seen)
        np.savez(folder / f"{name}.npz", image=mixed, y=part.y)
        np.savez(folder / f"{name}-workshop.npz", image=part.x, y=part.y)
    np.savez(folder / "field.npz", image=split.field.x, y=split.field.y)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
