"""Which operators to leave float when a quantized model misses its budget: each one's own share of the error, then sets to try.

Everything here is decided on calibration samples. Operators are ranked by what quantizing each of them *alone* does to the
outputs. The sets to try are the first so many of that ranking, from the largest down: a sequence that is fixed before any of
its sets is judged can be gone through, each set at the full level, until the first that does not pass, and the chance that a
set which is too bad is taken stays what it was for one (fixed-sequence testing; Maurer, Hothorn and Lehmacher, 1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from edgeml.exporter.calibrate.choose import output_error
from edgeml.exporter.calibrate.feeds import Feeds, count, part
from edgeml.exporter.precision import Ranges
from edgeml.exporter.quantize.layers import Network
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.quantize.static import Bench, choose, choose16
from edgeml.runtime.backends import Array
from edgeml.wire.errors import UnsupportedError

RANKING_SAMPLES: Final = 64  # more change no order that matters
MOST_SHARE: Final = 0.5  # of the operators: a model with more of them float is not a quantized one
FULL_STEPS: Final = 8  # set sizes are tried one by one up to here, then about a quarter apart
ENOUGH: Final = 0.01  # of the outputs' deviation: an error that float16 is allowed; larger sets change no answer
ENOUGH_SHARE: Final = 1e-3  # of the whole error's power, likewise


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator that runs on integers and may stay float; named by the tensor it gives."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Alone:
    """A model of which some operators are quantized and no others: the error of its outputs, in standard deviations; bytes."""

    error: float
    bytes: int

    def power(self, base: Alone) -> float:
        """The squared error that these operators add to `base`, where none is quantized: some formats round inputs even so."""
        return max(self.error**2 - base.error**2, 0.0)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What leaving one operator float is worth: the error it makes alone, in deviations of the outputs, and what it costs."""

    operator: Operator
    error: float
    extra_bytes: int

    @property
    def snr_db(self) -> float:
        """Signal to noise of the outputs: -20 log10 of the error; infinite for none."""
        return signal_to_noise(self.error)


class Tuner(Protocol):
    """One quantized model that can be written with some of its operators left float."""

    operators: tuple[Operator, ...]

    def alone(self, names: frozenset[str]) -> Alone:
        """With these operators quantized and no others."""
        ...

    def quantize(self, kept: frozenset[str]) -> Quantized:
        """With these operators left float, or with activations of 16 bits where nothing may be float."""
        ...


class StaticTuner:
    """Static int8 and int16: ranges, rounding and the way to quantize are found once, for everything quantized.

    `widens`: nothing may be float, so operators get activations of 16 bits instead.
    """

    def __init__(
        self,
        network: Network,
        model: bytes,
        feeds: Feeds,
        *,
        ranges: Ranges = "auto",
        bits: Literal[8, 16] = 8,
        widens: bool = False,
    ) -> None:
        self._bench, self._bits, self._widens = Bench(network, feeds), bits, widens
        self._way, self._notes = choose(self._bench, model, ranges) if bits == 8 else choose16(self._bench, ranges)
        self._some = part(feeds, 0, max(1, -(-count(feeds) // RANKING_SAMPLES)))
        self._wanted = self._bench.run(model, self._some)
        self.operators = tuple(Operator(kind, name) for kind, name in self._bench.network.operators())

    def alone(self, names: frozenset[str]) -> Alone:
        others = frozenset(operator.name for operator in self.operators) - names
        model = self._bench.quantize(self._way, kept=others, bits=self._bits)
        return Alone(output_error(self._wanted, self._bench.run(model, self._some)), len(model))

    def quantize(self, kept: frozenset[str]) -> Quantized:
        if self._widens:
            return Quantized(self._bench.quantize(self._way, wide=kept), self._notes)
        return Quantized(self._bench.quantize(self._way, kept=kept, bits=self._bits), self._notes)


class RemadeTuner:
    """Precisions of weights alone: the model is made again for each set, by `make`; `whole` is it before."""

    def __init__(
        self,
        operators: Sequence[tuple[str, str]],
        whole: bytes,
        make: Callable[[frozenset[str]], Quantized],
        run: Callable[[bytes], Sequence[Array]],
    ) -> None:
        self.operators = tuple(Operator(kind, name) for kind, name in operators)
        self._whole, self._make, self._run = whole, make, run
        self._wanted = run(whole)

    def alone(self, names: frozenset[str]) -> Alone:
        others = frozenset(operator.name for operator in self.operators) - names
        try:
            model = self._make(others).model if names else self._whole
        except UnsupportedError:  # its weights are of a form, or too few, to be made small
            return Alone(0.0, len(self._whole))
        return Alone(output_error(self._wanted, self._run(model)), len(model))

    def quantize(self, kept: frozenset[str]) -> Quantized:
        return self._make(kept)


def signal_to_noise(error: float) -> float:
    """-20 log10 of an error in standard deviations, in dB; infinite for none."""
    return -20 * math.log10(error) if error > 0 else math.inf


def ranked(found: Sequence[Sensitivity]) -> list[Sensitivity]:
    """The operator that hurts most first; of equals, the one that costs least."""
    return sorted(found, key=lambda one: (-one.error, one.extra_bytes, one.operator.name))


def sizes(errors: Sequence[float], *, widens: bool = False) -> list[int]:
    """How many of the ranked operators to leave float, in the order to try: from the most that makes sense down to 1.

    The most is where the rest's errors, which add up as powers, are `ENOUGH` small, or `MOST_SHARE` of all operators. `widens`:
    they get 16 bits, which are lost again where the next operator has 8; so all of them are tried first.
    """
    powers = [error * error for error in errors]
    enough = max(ENOUGH**2, ENOUGH_SHARE * sum(powers))
    most = max(1, int(MOST_SHARE * len(errors)))
    start = next((size for size in range(1, most + 1) if sum(powers[size:]) <= enough), most)
    found = [len(errors) if widens else start]
    while found[-1] > 1:
        last = found[-1]
        found.append(last - 1 if last <= FULL_STEPS else max(FULL_STEPS, int(0.8 * last)))
    return found
