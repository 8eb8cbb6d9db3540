"""What can be wrong with one layer's weights, whatever file they are in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

import numpy as np

from edgeml.runtime.backends import Array

LAYERS: Final = 4  # of each model, spread over its depth
SCALE: Final = 1.05
T = TypeVar("T")

SILENT: Final = "one channel of a layer silent"
EXCHANGED: Final = "two channels of a layer exchanged"
OTHER_VERSION: Final = "a layer of another version"
GATES: Final = "two gates of a layer exchanged"
SCALED: Final = "a layer's scale off by 5 %"
ONE_SCALE: Final = "a layer's scales by channel taken as one"
NO_BIAS: Final = "a layer without its bias"
NO_ACTIVATION: Final = "a layer without its activation"
STUCK_INPUT: Final = "the input's zero point stuck at 0"
STUCK_READ: Final = "a layer's zero point stuck at 0 where it reads"
STUCK_WRITTEN: Final = "a layer's zero point stuck at 0 where it writes"
CUT: Final = "every layer rounds down"
PADDING: Final = "padding at the other end"
JOIN: Final = "inputs of a join exchanged"
BRAIN_FLOAT: Final = "weights cut to bfloat16"
SATURATED: Final = "pairs of products saturate in 16 bits"


def spread(items: Sequence[T], count: int = LAYERS) -> list[T]:
    if len(items) <= count:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, count).astype(int)]


def damaged(values: Array, axis: int) -> Iterator[tuple[str, Array]]:
    """Weights of one layer, `axis` its output channels: of those that go silent one is the loudest, one in the middle."""
    moved = np.moveaxis(values, axis, 0)
    count = len(moved)
    order = np.abs(moved.astype(np.float64)).reshape(count, -1).sum(axis=1).argsort()
    loudest, middle = int(order[-1]), int(order[count // 2])
    for channel in sorted({loudest, middle}):
        silent = moved.copy()
        silent[channel] = 0
        yield SILENT, np.moveaxis(silent, 0, axis)
    if count > 1:
        exchanged = moved.copy()
        other = (loudest + count // 2) % count
        exchanged[[loudest, other]] = exchanged[[other, loudest]]
        yield EXCHANGED, np.moveaxis(exchanged, 0, axis)
    noise = np.random.default_rng(5).normal(0, 0.3 * float(values.astype(np.float64).std()), values.shape)
    limits = (-127, 127) if values.dtype.kind in "iu" else (-np.inf, np.inf)
    other_version = np.clip(np.round(values + noise) if values.dtype.kind in "iu" else values + noise, *limits)
    yield OTHER_VERSION, other_version.astype(values.dtype)


def gates_exchanged(values: Array, axis: int, gates: int) -> Array:
    """The first two of `gates` blocks along `axis` change places."""
    blocks = np.split(np.moveaxis(values, axis, 0), gates)
    return np.moveaxis(np.concatenate([blocks[1], blocks[0], *blocks[2:]]), 0, axis)


def cut(values: Array) -> Array:
    """Floats without the 16 bits that bfloat16 does not have."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(values.dtype)
