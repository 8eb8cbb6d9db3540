"""Static int8, the same for every format: equalize, round, range, choose.

Ways to quantize are judged by cross-validation on the calibration samples; the best is done again with all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from edgeml.exporter.calibrate.checks import calibration_notes
from edgeml.exporter.calibrate.choose import LEAST_SAMPLES, first_good, judge
from edgeml.exporter.calibrate.feeds import Feeds, count, outputs
from edgeml.exporter.calibrate.observers import OBSERVERS
from edgeml.exporter.calibrate.statistics import Statistics, gather
from edgeml.exporter.quantize.equalize import equalized
from edgeml.exporter.quantize.layers import Network, moments
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.quantize.rounding import round_layer
from edgeml.runtime.backends import Array


class Way(NamedTuple):
    """One way to quantize."""

    observer: str
    equalize: bool

    def __str__(self) -> str:
        return f"{self.observer} with channels equalized" if self.equalize else self.observer


PLAIN: Final = Way("mse", equalize=False)
WORTH: Final = 0.98  # equalizing must take away 2 % of the error
# Widest first: samples that nobody has seen go beyond what these show, and that shows in no error measured here.
# Percentile, entropy and average clip more than mse does, without its reason.
OBSERVERS_TRIED: Final = ("headroom", "min-max", "mse")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What all observers share: the rounded network, its weights' scales, and what was seen of its tensors."""

    network: Network
    scales: Mapping[str, Array]
    seen: Mapping[str, Statistics]


class Bench:
    """Quantizes one network in many ways, and keeps what ways have in common."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._prepared: dict[tuple[str, bool], _Prepared] = {}

    def quantize(self, way: Way, feeds: Feeds) -> bytes:
        found = self.prepared(way, feeds)
        ranges = {name: OBSERVERS[way.observer](seen) for name, seen in found.seen.items()}
        return found.network.quantized(ranges, found.scales)

    def prepared(self, way: Way, feeds: Feeds) -> _Prepared:
        key = (_identity(feeds), way.equalize)
        if key not in self._prepared:
            network = equalized(self.network, feeds) if way.equalize else self.network
            seen = gather(network.watch(feeds))
            self._prepared[key] = _Prepared(*_rounded(network, feeds), seen)
        return self._prepared[key]

    def run(self, model: bytes, feeds: Feeds) -> list[Array]:
        return outputs(self.network.open(model), feeds)


def _identity(feeds: Feeds) -> str:
    return hashlib.sha256(
        b"".join(name.encode() + np.ascontiguousarray(feeds[name]).tobytes() for name in sorted(feeds))
    ).hexdigest()


def _rounded(network: Network, feeds: Feeds) -> tuple[Network, dict[str, Array]]:
    copy, scales = network.copy(), {}
    seen = moments(network, feeds)
    for layer in network.layers:
        weights, scales[layer.weights], shift = round_layer(network.read(layer), seen[layer.weights])
        copy.write(layer, weights)
        copy.write_bias(layer, network.read_bias(layer) + shift)
    return copy, scales


def to_int8(network: Network, model: bytes, feeds: Feeds) -> Quantized:
    """The best int8 form of `model`, whose network this is."""
    bench, samples = Bench(network), count(feeds)
    way, note = PLAIN, f"ranges by {PLAIN}; {samples} samples are too few to compare with others"
    if samples >= LEAST_SAMPLES:

        def judged(ways: tuple[Way, ...]) -> dict[Way, float]:
            errors = judge(ways, bench.quantize, bench.run, lambda some: bench.run(model, some), feeds)
            return dict(zip(ways, errors, strict=True))

        other = PLAIN._replace(equalize=True)
        errors = judged((PLAIN, other) if network.links else (PLAIN,))
        equalize = errors.get(other, float("inf")) < errors[PLAIN] * WORTH
        ways = tuple(Way(observer, equalize) for observer in OBSERVERS_TRIED)
        errors |= judged(tuple(way for way in ways if way not in errors))
        way = ways[first_good([errors[way] for way in ways])]
        note = _note(way, errors)
    return Quantized(bench.quantize(way, feeds), (note, *calibration_notes(bench.prepared(way, feeds).seen, samples)))


def _note(way: Way, errors: Mapping[Way, float]) -> str:
    listed = ", ".join(f"{name} {100 * error:.2g} %" for name, error in errors.items())
    return f"ranges by {way}, chosen by the error on calibration samples held out ({listed} of the outputs' deviation)"
