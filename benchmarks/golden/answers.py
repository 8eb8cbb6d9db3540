"""What a broken engine or delegate does to what goes in and comes out: faults wrapped around a healthy backend.

Each has to do with one output or one input as the file has it; an output of integers that leaves their range stops at its ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeml.runtime.backends import Array, Backend, EngineOptions, OpenBackend

Feed = Callable[[list[Array]], list[Array]]
Change = Callable[[list[Array], "Memory"], list[Array]]
Loader = Callable[[], OpenBackend]
"""Gives an engine with a fault: a fresh one for each use, since some faults remember."""


@dataclass(slots=True)
class Memory:
    """What came before."""

    calls: int = 0
    before: list[Array] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a healthy engine over the golden samples, as the file has it."""

    at: int  # among the engine's outputs
    values: Array  # (samples, ...)
    step: float  # between two values; 0: not quantized

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one answer."""
        return self.values.shape[1:]

    @property
    def span(self) -> float:
        return float(np.ptp(self.values))


class Faulty:
    """A backend whose inputs or answers are not what they should be."""

    def __init__(self, healthy: Backend, change: Change, feed: Feed) -> None:
        self._healthy, self._change, self._feed, self._memory = healthy, change, feed, Memory()
        self.engine, self.version, self.inputs, self.outputs = healthy.engine, healthy.version, healthy.inputs, healthy.outputs

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        answers = self._healthy.run(self._feed(list(inputs)))
        changed = self._change([array.copy() for array in answers], self._memory)
        self._memory.before, self._memory.calls = answers, self._memory.calls + 1
        return changed

    def close(self) -> None:
        self._healthy.close()


def answer_faults(opens: OpenBackend, outputs: Sequence[Output]) -> Iterator[tuple[str, Loader]]:
    """(kind of fault, engine with it)."""
    for output in outputs:
        for name, change in _of_values(output):
            yield name, faulty(opens, _at(output.at, change))
        for axis in _axes(output.shape):
            for index in _channels(output.shape[axis]):
                yield "a channel of an output silent", faulty(opens, _at(output.at, _silent(axis, index)))
                other = (index + 1) % output.shape[axis]
                yield "two channels of an output exchanged", faulty(opens, _at(output.at, _exchanged(axis, index, other)))
        yield "NaN in one sample", faulty(opens, _not_a_number(output.at))
    for a, b in itertools.pairwise(outputs):
        if a.shape == b.shape:
            yield "two outputs swapped", faulty(opens, _swapped(a.at, b.at))
    yield "the previous answer", faulty(opens, lambda out, memory: memory.before or out)
    yield "axes of the input turned", faulty(opens, feed=lambda inputs: [turned(array) for array in inputs])


def faulty(opens: OpenBackend, change: Change = lambda out, _: out, feed: Feed = lambda inputs: inputs) -> Loader:
    def load(model: bytes, options: EngineOptions) -> Backend:
        return Faulty(opens(model, options), change, feed)

    return lambda: load


def _of_values(output: Output) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    yield "an output's scale off by 1 %", lambda out: out * 1.01
    yield "an output's scale off by 5 %", lambda out: out * 1.05
    yield "an output's scale off by 2", lambda out: out * 2
    yield "an output's sign flipped", lambda out: -out
    yield "the same answer always", lambda out: np.full_like(out, out.mean())
    if output.step:
        yield "an output's zero point off by one", lambda out: out + output.step
        lowest = float(output.values.min())
        yield "an output saturated at 7 bits", lambda out: np.minimum(out, lowest + 0.5 * output.span)


def _at(index: int, change: Callable[[Array], Array]) -> Change:
    def changed(out: list[Array], _: Memory) -> list[Array]:
        dtype, values = out[index].dtype, change(out[index].astype(np.float64))
        if dtype.kind in "iu":
            values = np.clip(np.round(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
        out[index] = values.astype(dtype)
        return out

    return changed


def _silent(axis: int, index: int) -> Callable[[Array], Array]:
    def change(out: Array) -> Array:
        np.moveaxis(out, axis, 0)[index] = 0
        return out

    return change


def _exchanged(axis: int, one: int, other: int) -> Callable[[Array], Array]:
    def change(out: Array) -> Array:
        view = np.moveaxis(out, axis, 0)
        view[[one, other]] = view[[other, one]]
        return out

    return change


def _not_a_number(index: int) -> Change:
    def changed(out: list[Array], memory: Memory) -> list[Array]:
        if memory.calls == 7 and out[index].dtype.kind == "f":
            out[index].reshape(-1)[0] = np.nan
        return out

    return changed


def _swapped(one: int, other: int) -> Change:
    def changed(out: list[Array], _: Memory) -> list[Array]:
        out[one], out[other] = out[other].reshape(out[one].shape), out[one].reshape(out[other].shape)
        return out

    return changed


def turned(array: Array) -> Array:
    """The input as if its last two long axes were the other way round: NCHW fed as NHWC, rows as columns."""
    axes = [axis for axis in range(1, array.ndim) if array.shape[axis] > 1]
    if len(axes) < 2:
        return array
    order = list(range(array.ndim))
    order[axes[-2]], order[axes[-1]] = order[axes[-1]], order[axes[-2]]
    return np.ascontiguousarray(array.transpose(order)).reshape(array.shape)


def _axes(shape: tuple[int, ...]) -> list[int]:
    """The first and the last axis with more than one element."""
    long = [axis for axis, size in enumerate(shape) if size > 1]
    return sorted({*long[:1], *long[-1:]})


def _channels(count: int) -> list[int]:
    """A few of an axis."""
    return sorted({0, count // 3, count // 2, count - 1})
