"""Weights rounded with nothing known, or with what calibration samples show of the inputs they are multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np

from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.quantize.layers import Floats, Layer, Moments, Weighted, watch_inputs
from edgeml.exporter.quantize.rounding import round_layer, round_to_palette
from edgeml.runtime.backends import Array

LEAST_WEIGHTS: Final = 256  # elements; below it scales and operations cost more than small weights save
BLOCK: Final = 32  # weights that share a scale at four bits: 4.5 to 5 bits a weight in all

AnyNetwork = TypeVar("AnyNetwork", bound=Weighted)


def with_rounded_weights(
    network: AnyNetwork, feeds: Feeds | None, block: Callable[[Layer, int], int | None], *, pinned: bool = False
) -> tuple[AnyNetwork, dict[str, Array]]:
    """A copy whose layers have weights of 8 or 4 bits, and the scales by the weights' names.

    `block(layer, inputs)` says how many inputs share a scale at four bits, `None` for eight bits; `pinned` as in `round_layer`.
    Biases take up what rounding shifts the means by, where there are samples to tell.
    """
    scales: dict[str, Array] = {}

    def rounded(layer: Layer, weights: Floats, moments: Moments) -> tuple[Floats, Floats]:
        inputs = int(np.prod(weights.shape[1:]))
        found, scales[layer.weights], shift = round_layer(weights, moments, block=block(layer, inputs), pinned=pinned)
        return found, shift

    return _with_weights(network, feeds, rounded), scales


def with_palettes(network: AnyNetwork, feeds: Feeds | None, size: int) -> AnyNetwork:
    """A copy whose layers have at most `size` different weights each."""
    return _with_weights(network, feeds, lambda _, weights, moments: round_to_palette(weights, moments, size))


def _with_weights(
    network: AnyNetwork, feeds: Feeds | None, rounded: Callable[[Layer, Floats, Moments], tuple[Floats, Floats]]
) -> AnyNetwork:
    copy = network.copy()
    seen = watch_inputs(network, feeds) if feeds is not None else None
    for layer in copy.layers:
        weights = copy.read(layer)
        if weights.size < LEAST_WEIGHTS:
            continue
        moments = seen.moments(layer) if seen is not None else _unknown(layer, int(np.prod(weights.shape[1:])))
        found, shift = rounded(layer, weights, moments)
        copy.write(layer, found)
        copy.write_bias(layer, copy.read_bias(layer) + shift)
    return copy


def rounding_note(feeds: Feeds | None) -> str:
    return "rounded to the nearest" if feeds is None else "rounded so that the outputs on the calibration samples move least"


def _unknown(layer: Layer, inputs: int) -> Moments:
    """Nothing is known of the inputs: every weight goes to its nearest code, no bias moves."""
    return Moments(np.zeros((layer.groups, inputs)), np.zeros((layer.groups, 0, 0)))
