"""Every inner tensor of a model on some samples, whatever its format: real numbers, samples on the first axis.

Kernels are the engine's plain ones, so that a trace shows the numbers in the file and not what a machine's fast kernels add.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from edgeml.runtime.backends import Array, RawTensor
from edgeml.wire.manifest import Format

LIMIT_BYTES: Final = 1 << 30  # of inner tensors: of a large model, fewer samples


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the main graph that depends on an input. `name` is the first tensor it gives; constants are left out.

    `precision` is that of its weights, or without weights that of what it reads: "int8", "float32", …
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    precision: str


@dataclass(frozen=True, slots=True)
class Trace:
    """Operators in the order in which they run; `values[tensor]` is (n, *shape), dequantized where it is stored as integers."""

    format: Format
    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, Array]

    def makers(self) -> dict[str, Operator]:
        return {name: operator for operator in self.operators for name in operator.outputs}


class Model(Protocol):
    """A model file whose inner tensors can be seen."""

    format: Format
    inputs: tuple[RawTensor, ...]
    operators: tuple[Operator, ...]

    def trace(self, calls: Iterable[Sequence[Array]]) -> Trace:
        """Run each call's tensors (in the order of `inputs`) and keep what every operator gives."""
        ...


def enough(seen: Sequence[Mapping[str, Array]]) -> bool:
    """Whether the calls kept so far fill what a trace may hold."""
    return len(seen) * sum(value.nbytes for value in seen[0].values()) >= LIMIT_BYTES if seen else False


def first(trace: Trace, count: int) -> Trace:
    """The trace of the first samples alone."""
    return replace(trace, values={name: values[:count] for name, values in trace.values.items()})


def stacked(calls: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Tensors of each call, stacked; those whose shape changes from call to call are left out."""
    found = {}
    for name in calls[0] if calls else ():
        values = [call[name] for call in calls]
        if len({value.shape for value in values}) == 1:
            found[name] = np.stack(values)
    return found


def as_real(values: Array, scale: float | None = None, zero_point: int = 0) -> Array:
    """float32 of what is stored; integers without a scale stay integers."""
    if scale is not None:
        return ((values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)).astype(np.float32)
    return values.astype(np.float32) if values.dtype.kind == "f" else values
