"""Equalizes the channels of an activation, so that one scale fits them all.

A ReLU network does not change if a channel is divided by s where it is made and its weights multiplied by s where it is read
(Nagel et al., "Data-free quantization", 2019). One scale per tensor serves its largest channel; small ones are left few levels.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.quantize.layers import Floats, Layer, Network, channel_ranges

STRENGTH: Final = 0.5  # s = (range / largest range)^0.5: half way, since weights have one scale for all input channels, too
LEAST_RANGE: Final = 1e-3  # of the largest: a channel that is never active is not blown up


def equalized(network: Network, feeds: Feeds) -> Network:
    """A copy of a network that computes the same with channels nearer to each other in range."""
    copy = network.copy()
    ranges = channel_ranges(network, feeds)
    for link in network.links:
        factors = scale_factors(ranges[link.producer.activation])
        weights = copy.read(link.producer)
        copy.write(link.producer, weights / _along(factors, 0, weights.ndim))
        copy.write_bias(link.producer, copy.read_bias(link.producer) / factors)
        for consumer in link.consumers:
            weights = copy.read(consumer)
            copy.write(consumer, weights * _for_inputs(factors, consumer, weights))
    return copy


def scale_factors(ranges: Floats) -> Floats:
    """What to divide each channel by: (range / largest)^STRENGTH, so that the largest stays; ones if nothing is active."""
    largest = float(ranges.max(initial=0.0))
    if largest <= 0.0:
        return np.ones_like(ranges)
    return np.maximum(ranges / largest, LEAST_RANGE) ** STRENGTH


def _for_inputs(factors: Floats, layer: Layer, weights: Floats) -> Floats:
    """The factors of a layer's inputs, shaped to its weights; a depthwise layer's output channels stand for its inputs."""
    if layer.groups == 1:
        return _along(factors, 1, weights.ndim)
    return _along(np.repeat(factors, len(weights) // layer.groups), 0, weights.ndim)


def _along(factors: Floats, axis: int, rank: int) -> Floats:
    return factors.reshape([-1 if i == axis else 1 for i in range(rank)])
