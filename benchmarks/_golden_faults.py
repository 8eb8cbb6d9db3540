"""What a broken engine or delegate does: faults of the answers, wrapped around a healthy backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from edgeml.runtime.backends import Array, Backend

Change = Callable[[list[Array], "Memory"], list[Array]]
Feed = Callable[[Array], Array]


@dataclass(slots=True)
class Memory:
    """What a fault may look at: the answers so far, and of the first output as its file has it the step and the span."""

    step: float  # 0: not quantized
    span: float
    calls: int = 0
    before: list[Array] = field(default_factory=list)


class Faulty:
    """A backend whose inputs or answers are not what they should be."""

    def __init__(self, healthy: Backend, change: Change, memory: Memory, *, feed: Feed | None = None) -> None:
        self._healthy, self._change, self._memory, self._feed = healthy, change, memory, feed
        self.engine, self.version, self.inputs, self.outputs = healthy.engine, healthy.version, healthy.inputs, healthy.outputs

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        fed = list(inputs) if self._feed is None else [self._feed(array) for array in inputs]
        answers = self._healthy.run(fed)
        changed = self._change([array.copy() for array in answers], self._memory)
        self._memory.before, self._memory.calls = answers, self._memory.calls + 1
        return changed

    def close(self) -> None:
        self._healthy.close()


def same(out: list[Array], memory: Memory) -> list[Array]:
    del memory
    return out


def _first(change: Callable[[Array, Memory], Array]) -> Change:
    """A change of the first output; integers that leave their type's range stop at its ends."""

    def changed(out: list[Array], memory: Memory) -> list[Array]:
        dtype, values = out[0].dtype, change(out[0].astype(np.float64), memory)
        if dtype.kind in "iu":
            values = np.clip(np.round(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
        return [values.astype(dtype), *out[1:]]

    return changed


def _swap(out: list[Array], memory: Memory) -> list[Array]:
    del memory
    return [out[1].reshape(out[0].shape), out[0].reshape(out[1].shape), *out[2:]]


def _stale(out: list[Array], memory: Memory) -> list[Array]:
    return memory.before or out


def _not_a_number(out: list[Array], memory: Memory) -> list[Array]:
    if memory.calls == 7 and out[0].dtype.kind == "f":
        out[0].reshape(-1)[0] = np.nan
    return out


def channel(index: int) -> Change:
    """One channel of the last axis says nothing."""

    def change(out: Array, memory: Memory) -> Array:
        del memory
        out[..., index] = 0
        return out

    return _first(change)


def exchange(one: int, other: int) -> Change:
    def change(out: Array, memory: Memory) -> Array:
        del memory
        out[..., [one, other]] = out[..., [other, one]]
        return out

    return _first(change)


ANSWERS: Final[dict[str, Change]] = {
    "scale off by 1 %": _first(lambda out, _: out * 1.01),
    "scale off by 5 %": _first(lambda out, _: out * 1.05),
    "scale off by 2": _first(lambda out, _: out * 2),
    "sign flipped": _first(lambda out, _: -out),
    "the previous answer": _stale,
    "NaN in one sample": _not_a_number,
    "the same answer always": _first(lambda out, _: np.full_like(out, out.mean())),
    "in float16": _first(lambda out, _: out.astype(np.float16)),
}
QUANTIZED: Final[dict[str, Change]] = {
    "zero point off by one": _first(lambda out, memory: out + memory.step),
    "zero point stuck at 0": _first(lambda out, memory: out + 128 * memory.step),
    "saturated at 7 bits": _first(lambda out, memory: np.clip(out, None, out.min() + 0.5 * memory.span)),
}
SWAPPED: Final = _swap


def turned(array: Array) -> Array:
    """The input as if its last two long axes were the other way round: NCHW fed as NHWC, rows as columns."""
    axes = [axis for axis in range(1, array.ndim) if array.shape[axis] > 1]
    if len(axes) < 2:
        return array
    order = list(range(array.ndim))
    order[axes[-2]], order[axes[-1]] = order[axes[-1]], order[axes[-2]]
    return np.ascontiguousarray(array.transpose(order)).reshape(array.shape)


def channels(count: int) -> list[int]:
    """A few of a last axis."""
    return sorted({0, count // 3, count // 2, count - 1})
