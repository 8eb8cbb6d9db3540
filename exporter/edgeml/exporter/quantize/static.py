"""Static int8 and int16, the same for every format: equalize, round, range, choose.

Ways to quantize are judged by cross-validation on the calibration samples; the best is done again with all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from edgeml.exporter.calibrate.checks import calibration_notes
from edgeml.exporter.calibrate.choose import FOLDS, LEAST_SAMPLES, first_good, judge
from edgeml.exporter.calibrate.feeds import Feeds, answers, count, outputs
from edgeml.exporter.calibrate.observers import OBSERVERS
from edgeml.exporter.calibrate.stability import unstable
from edgeml.exporter.calibrate.statistics import Seen, Statistics, gather
from edgeml.exporter.precision import Ranges
from edgeml.exporter.quantize.equalize import equalized
from edgeml.exporter.quantize.joins import apart
from edgeml.exporter.quantize.layers import Inputs, Network
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
WIDE: Final = Way("headroom", equalize=False)  # 16 bits have codes to spare: nothing is clipped, nothing compared
UNSEEN: Final = Way("headroom", equalize=False)  # few samples show too little of every range to clip it or to level channels
WORTH: Final = 0.98  # equalizing must take away 2 % of the error
# Widest first: samples that nobody has seen go beyond what these show, and that shows in no error measured here.
# Percentile, entropy and average clip more than mse does, without its reason.
OBSERVERS_TRIED: Final = ("headroom", "min-max", "mse")


@dataclass(frozen=True, slots=True)
class _Watched:
    """A network, equalized or not, and what the samples show in it by parts."""

    network: Network
    seen: Seen
    inputs: Inputs


class Bench:
    """Quantizes one network in many ways, and keeps what ways have in common.

    Equalizing looks at all samples, also those held out: it moves no value beyond a range.
    """

    def __init__(self, network: Network, feeds: Feeds) -> None:
        self.network, self.mixed = apart(network, feeds)
        self.feeds = feeds
        self._watched: dict[bool, _Watched] = {}
        self._rounded: dict[tuple[bool, int | None], tuple[Network, dict[str, Array]]] = {}

    def quantize(
        self,
        way: Way,
        left_out: int | None = None,
        kept: frozenset[str] = frozenset(),
        *,
        bits: Literal[8, 16] = 8,
        wide: frozenset[str] = frozenset(),
    ) -> bytes:
        """From all samples, or from all but every FOLDS-th from `left_out` on; operators that give `kept` stay float.

        `bits` are those of activations, 16 for operators that give `wide`.
        """
        network, scales = self._weights(way.equalize, left_out)
        if kept:
            network = without(network, self._watch(way.equalize).network, kept)
        ranges = {name: OBSERVERS[way.observer](seen) for name, seen in self.seen(way.equalize, left_out).items()}
        return network.quantized(ranges, scales, bits=bits, wide=wide)

    def seen(self, equalize: bool, left_out: int | None = None) -> dict[str, Statistics]:
        return self._watch(equalize).seen.without(left_out)

    def warnings(self) -> tuple[str, ...]:
        """What a person should look at: joined tensors that were kept float, ranges that half of the samples tell otherwise."""
        seen = self._watch(equalize=False).seen
        return (*self.mixed, *unstable(seen.half(0), seen.half(1)))

    def each(self, model: bytes, feeds: Feeds) -> Iterator[list[Array]]:
        """The outputs of a model for each sample."""
        return answers(self.network.open(model), feeds)

    def run(self, model: bytes, feeds: Feeds) -> list[Array]:
        """The outputs for all samples: for few of them only."""
        return outputs(self.network.open(model), feeds)

    def _watch(self, equalize: bool) -> _Watched:
        if equalize not in self._watched:
            network = equalized(self.network, self.feeds) if equalize else self.network
            inputs = Inputs(network, FOLDS)
            seen = gather(network.watch(self.feeds), FOLDS, inputs.see)
            self._watched[equalize] = _Watched(network, seen, inputs)
        return self._watched[equalize]

    def _weights(self, equalize: bool, left_out: int | None) -> tuple[Network, dict[str, Array]]:
        key = (equalize, left_out)
        if key not in self._rounded:
            watched = self._watch(equalize)
            network, scales = watched.network.copy(), {}
            for layer in network.layers:
                moments = watched.inputs.moments(layer, left_out)
                weights, scales[layer.weights], shift = round_layer(network.read(layer), moments)
                network.write(layer, weights)
                network.write_bias(layer, network.read_bias(layer) + shift)
            self._rounded[key] = network, scales
        return self._rounded[key]


def without(rounded: Network, original: Network, kept: frozenset[str]) -> Network:
    """A copy in which operators that give `kept` stay float, with the weights they had."""
    copy = rounded.keeping(kept)
    for layer in original.layers:
        if layer.output in kept:
            copy.write(layer, original.read(layer))
            copy.write_bias(layer, original.read_bias(layer))
    return copy


def to_int16(network: Network, feeds: Feeds, ranges: Ranges = "auto") -> Quantized:
    """int8 weights, 16-bit activations."""
    bench = Bench(network, feeds)
    way, notes = choose16(bench, ranges)
    return Quantized(bench.quantize(way, bits=16), notes, bench.warnings())


def choose16(bench: Bench, ranges: Ranges = "auto") -> tuple[Way, tuple[str, ...]]:
    """The way for 16-bit activations, and notes: there is nothing to compare."""
    way = WIDE if ranges == "auto" else Way(ranges, equalize=False)
    note = f"activations of 16 bits, ranges by {way}"
    return way, (note, *calibration_notes(bench.seen(equalize=False)))


def to_int8(network: Network, model: bytes, feeds: Feeds, ranges: Ranges = "auto") -> Quantized:
    """The best int8 form of `model`, whose network this is."""
    bench = Bench(network, feeds)
    way, notes = choose(bench, model, ranges)
    return Quantized(bench.quantize(way), notes, bench.warnings())


_chosen: dict[str, tuple[Way, tuple[str, ...]]] = {}


def choose(bench: Bench, model: bytes, ranges: Ranges = "auto") -> tuple[Way, tuple[str, ...]]:
    """The way with the least error on samples held out, and notes; `ranges` but "auto" leave only equalizing to choose.

    The last choice is kept: a search for layers to leave float asks for it again, in the same process.
    """
    content = hashlib.sha256(model + repr((ranges, bench.network.operators(), sorted(bench.feeds))).encode())
    for name in sorted(bench.feeds):
        content.update(bench.feeds[name].tobytes())
    key = content.hexdigest()
    if key not in _chosen:
        _chosen.clear()
        _chosen[key] = _choose(bench, model, ranges)
    return _chosen[key]


def _choose(bench: Bench, model: bytes, ranges: Ranges) -> tuple[Way, tuple[str, ...]]:
    network, feeds = bench.network, bench.feeds
    samples = count(feeds)
    plain = PLAIN if ranges == "auto" else Way(ranges, equalize=False)
    way = UNSEEN if ranges == "auto" else plain
    note = f"ranges by {way}; {samples} samples are too few to compare with others"
    if samples >= LEAST_SAMPLES:

        def judged(ways: tuple[Way, ...]) -> dict[Way, float]:
            errors = judge(ways, bench.quantize, bench.each, lambda some: bench.each(model, some), feeds)
            return dict(zip(ways, errors, strict=True))

        other = plain._replace(equalize=True)
        errors = judged((plain, other) if network.links else (plain,))
        equalize = errors.get(other, float("inf")) < errors[plain] * WORTH
        ways = tuple(Way(observer, equalize) for observer in (OBSERVERS_TRIED if ranges == "auto" else (ranges,)))
        errors |= judged(tuple(way for way in ways if way not in errors))
        way = ways[first_good([errors[way] for way in ways])]
        note = _note(way, errors, asked=ranges != "auto")
    return way, (note, *calibration_notes(bench.seen(way.equalize)))


def _note(way: Way, errors: Mapping[Way, float], *, asked: bool) -> str:
    listed = ", ".join(f"{name} {100 * error:.2g} %" for name, error in errors.items())
    if asked:
        return f"ranges by {way}, as asked; error on calibration samples held out: {listed} of the outputs' deviation"
    return f"ranges by {way}, chosen by the error on calibration samples held out ({listed} of the outputs' deviation)"
