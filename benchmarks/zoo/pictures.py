"""Handwritten digits (scikit-learn's, 1,797 of 8 x 8) by themselves, and laid over photographs (cifar10_jpeg1000.npz).

| digits, in an order drawn once | photographs | for |
|---|---|---|
| 797 | 600 | training |
| 200 | 100 | calibration |
| 800 | 300 | evaluation |

A scene is drawn from its split's own digits and photographs alone: a crop of a photograph, and over it one digit, enlarged,
turned by up to 15 degrees, in a colour of its own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.zoo.samples import Samples, Splits, digest, need
from edgeml.runtime.backends import Array

ORDER_SEED: Final = 20
TRAIN, CALIBRATE, EVALUATE = "train", "calibrate", "evaluate"
DIGITS: Final = {TRAIN: slice(0, 797), CALIBRATE: slice(797, 997), EVALUATE: slice(997, 1797)}
PHOTOS: Final = {TRAIN: (0, 1, 2, 3, 4, 5), CALIBRATE: (6,), EVALUATE: (7, 8, 9)}  # index modulo 10
SCENES: Final = {TRAIN: 6000, CALIBRATE: 200, EVALUATE: 1500}
SEEDS: Final = {TRAIN: 1, CALIBRATE: 2, EVALUATE: 3}
PIXEL: Final = 10.0  # a pixel of the detector's 64 x 64 canvas in the units of its boxes: 0..640


@dataclass(frozen=True, slots=True)
class Scenes:
    """`image` (n, side, side, 3) in 0..1, `mask` (n, side, side) how much ink a pixel has, `box` (n, 4) as x0 y0 x1 y1."""

    image: Array
    mask: Array
    box: Array
    digit: Array
    origins: frozenset[str]


@functools.cache
def digits() -> tuple[Array, Array]:
    """(1797, 8, 8) in 0..1 and their classes, in the order of the splits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(ORDER_SEED).permutation(len(found.target))
    return (found.images[order] / 16).astype(np.float32), found.target[order].astype(np.int64)


@functools.cache
def photos() -> Array:
    with np.load(need("cifar10_jpeg1000.npz"), allow_pickle=False) as file:
        return np.asarray(file["x"])


def flat_digits() -> Splits:
    """x (n, 64)."""
    images, classes = digits()

    def part(name: str) -> Samples:
        chosen = images[DIGITS[name]]
        return Samples({"x": chosen.reshape(len(chosen), -1)}, classes[DIGITS[name]], frozenset(map(digest, chosen)))

    return Splits(*map(part, SCENES))


def noisy_digits() -> Splits:
    """x (n, 16, 16, 1): a digit enlarged twice with noise and a bar of 3 rows missing; the labels are the clean digit."""
    images, _ = digits()

    def part(name: str) -> Samples:
        chance = np.random.default_rng(SEEDS[name])
        chosen = images[DIGITS[name]]
        times = max(1, SCENES[name] // 2 // len(chosen))
        clean = np.repeat(np.repeat(np.tile(chosen, (times, 1, 1)), 2, axis=1), 2, axis=2)[..., None]
        noisy = clean + chance.normal(0, 0.25, clean.shape).astype(np.float32)
        rows = chance.integers(0, 13, len(clean))[:, None] + np.arange(3)
        noisy[np.arange(len(clean))[:, None], rows] = 0
        return Samples({"x": noisy.astype(np.float32)}, clean, frozenset(map(digest, chosen)))

    return Splits(*map(part, SCENES))


def photos_first() -> Splits:
    return photo_digits(channels_first=True)


def photos_last() -> Splits:
    return photo_digits(channels_first=False)


def photo_digits(*, channels_first: bool) -> Splits:
    """x (n, 32, 32, 3) or (n, 3, 32, 32) in 0..1; the class is the digit's."""

    def part(name: str) -> Samples:
        made = scenes(name, side=32, least=22, most=30)
        x = made.image.transpose(0, 3, 1, 2) if channels_first else made.image
        return Samples({"x": np.ascontiguousarray(x)}, made.digit, made.origins)

    return Splits(*map(part, SCENES))


def masks() -> Splits:
    """x (n, 3, 32, 32), labels (n, 1, 32, 32): 1 where the digit covers the photograph."""

    def part(name: str) -> Samples:
        made = scenes(name, side=32, least=16, most=28)
        target = (made.mask > 0.4).astype(np.float32)[:, None]
        return Samples({"x": np.ascontiguousarray(made.image.transpose(0, 3, 1, 2))}, target, made.origins)

    return Splits(*map(part, SCENES))


def two_digits() -> Splits:
    """x (n, 3, 32, 64): two scenes side by side; labels (n, 2): the left digit and the right one."""

    def part(name: str) -> Samples:
        made = scenes(name, side=32, least=22, most=30)
        other = np.random.default_rng(SEEDS[name]).permutation(len(made.digit))
        both = np.concatenate([made.image, made.image[other]], axis=2).transpose(0, 3, 1, 2)
        return Samples({"x": np.ascontiguousarray(both)}, np.stack([made.digit, made.digit[other]], axis=1), made.origins)

    return Splits(*map(part, SCENES))


def boxes() -> Splits:
    """x (n, 3, 64, 64), labels (n, 5): the digit's box in 0..640, and its class."""

    def part(name: str) -> Samples:
        made = scenes(name, side=64, least=20, most=40)
        target = np.concatenate([made.box * PIXEL, made.digit[:, None]], axis=1).astype(np.float32)
        return Samples({"x": np.ascontiguousarray(made.image.transpose(0, 3, 1, 2))}, target, made.origins)

    return Splits(*map(part, SCENES))


@functools.lru_cache(maxsize=4)
def scenes(name: str, *, side: int, least: int, most: int) -> Scenes:
    """The split's scenes; a digit is `least` to `most` pixels wide."""
    chance = np.random.default_rng(SEEDS[name])
    images, classes = (values[DIGITS[name]] for values in digits())
    behind = photos()[np.isin(np.arange(len(photos())) % 10, PHOTOS[name])]
    count = SCENES[name]
    which, back = chance.integers(0, len(images), count), chance.integers(0, len(behind), count)
    size = chance.integers(least, most + 1, count)
    corner = (chance.uniform(0, 1, (count, 2)) * (side - size)[:, None]).astype(int)
    angle = np.deg2rad(chance.uniform(-15, 15, count))
    image = np.empty((count, side, side, 3), np.float32)
    mask, box = np.zeros((count, side, side), np.float32), np.empty((count, 4), np.float32)
    for i in range(count):
        ink = _turned(images[which[i]], int(size[i]), float(angle[i]))
        y, x = corner[i]
        mask[i, y : y + size[i], x : x + size[i]] = ink
        rows, columns = (np.flatnonzero(mask[i].max(axis=axis) > 0.4) for axis in (1, 0))
        box[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        image[i] = _over(_enlarged(behind[back[i]], side), mask[i], chance)
    origins = {digest(images[w]) for w in np.unique(which)} | {digest(behind[b]) for b in np.unique(back)}
    return Scenes(image, mask, box, classes[which], frozenset(origins))


def _turned(digit: Array, size: int, angle: float) -> Array:
    """A digit (8, 8) enlarged to (size, size) by linear interpolation and turned around its centre."""
    at = (np.arange(size) + 0.5) / size * 8 - 4
    y, x = np.meshgrid(at, at, indexing="ij")
    c, s = np.cos(angle), np.sin(angle)
    v, u = c * y - s * x + 3.5, s * y + c * x + 3.5
    padded = np.pad(digit, 2)
    v, u = np.clip(v + 2, 0, 10.999), np.clip(u + 2, 0, 10.999)
    v0, u0 = v.astype(int), u.astype(int)
    dv, du = v - v0, u - u0
    return np.asarray(
        (padded[v0, u0] * (1 - dv) + padded[v0 + 1, u0] * dv) * (1 - du)
        + (padded[v0, u0 + 1] * (1 - dv) + padded[v0 + 1, u0 + 1] * dv) * du,
        np.float32,
    )


def _enlarged(photo: Array, side: int) -> Array:
    at = np.arange(side) * 32 // side
    return np.asarray(photo[at][:, at] / np.float32(255), np.float32)


def _over(photo: Array, mask: Array, chance: np.random.Generator) -> Array:
    """The photograph at half its contrast under a digit of a colour far from the photograph's mean."""
    dull = photo * 0.5 + 0.25
    mean = dull.mean(axis=(0, 1))
    colour = np.clip(np.where(mean > 0.5, 0.1, 0.9) + chance.uniform(-0.2, 0.2, 3), 0, 1)
    ink = np.minimum(mask * 1.5, 1)[..., None]
    return np.asarray(dull * (1 - ink) + colour * ink, np.float32)
