"""Axes whose size may vary, besides the batch: which size the samples have, and the same samples at another size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from edgeml.exporter.free import FreeAxis
from edgeml.exporter.samples import Samples
from edgeml.runtime.backends import Array
from edgeml.wire.errors import EdgemlError, PlanError
from edgeml.wire.manifest import BATCH, Binding, Signature, TensorSpec

SECOND_SAMPLES: Final = 4  # that are run at another size

CHANGES: Final[tuple[Callable[[int], int], ...]] = (
    lambda size: 2 * size,
    lambda size: size + 1,
    lambda size: max(size // 2, 1),
)

Ask = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Runs the source."""


def free_axes(spec: TensorSpec) -> Iterator[tuple[int, str]]:
    """(axis, name) of each axis that may vary and does not stack samples."""
    return ((axis, size) for axis, size in enumerate(spec.shape) if isinstance(size, str) and size != BATCH)


def free_sizes(signature: Signature, *sets: Samples) -> dict[str, int]:
    """The size of each named axis in the samples; formats without such axes are fixed to it.

    Raises:
        PlanError: samples, or inputs, disagree.
    """
    sizes: dict[str, int] = {}
    for samples in sets:
        for spec in signature.inputs:
            for axis, name in free_axes(spec):
                size = samples.inputs[spec.name].shape[_position(spec, axis)]
                if sizes.setdefault(name, size) != size:
                    raise PlanError(
                        f"axis {name!r} has two sizes in the samples", expected=str(sizes[name]), got=str(size),
                        hint="give --calib and --eval samples of one size",
                    )  # fmt: skip
    return sizes


def at_another_size(
    ask: Ask, samples: Samples, signature: Signature, sizes: Mapping[str, int], free: Sequence[FreeAxis] = ()
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(inputs, outputs) of a few samples whose named axes were made longer, or shorter where the source takes nothing longer.

    Where some of the axes are to be `free` in every format, those alone change, and stay within their ends.

    Raises:
        EdgemlError: the source takes no size but the samples' own; what it says of the first one tried.
    """
    few = {name: values[:SECOND_SAMPLES] for name, values in samples.inputs.items()}
    ends = {axis.name: (axis.least, axis.most or size) for axis in free if (size := sizes.get(axis.name)) is not None}
    failure: EdgemlError | None = None
    for change in CHANGES:
        changed = dict(sizes) if ends else {name: change(size) for name, size in sizes.items()}
        changed |= {name: min(max(change(sizes[name]), least), most) for name, (least, most) in ends.items()}
        if changed == sizes:
            continue
        inputs = _cycled(few, signature, changed)
        try:
            return inputs, ask(inputs)
        except EdgemlError as error:
            failure = failure or error
    assert failure is not None, "every size ends in a return or a failure"
    raise failure


def fixed_axes(signature: Signature, bindings: tuple[Binding, ...], *, batch: bool = False) -> dict[str, int]:
    """Named axes that an artifact has at one size only; `batch`: that of samples too."""
    specs = {spec.name: spec for spec in signature.inputs}
    found: dict[str, int] = {}
    for binding in bindings:
        spec = specs[binding.name]
        if len(binding.shape) != len(spec.shape):
            continue
        named = [*free_axes(spec), *([(0, BATCH)] if batch and spec.has_batch else [])]
        for axis, name in named:
            size = binding.shape[binding.permute.index(axis) if binding.permute is not None else axis]
            if isinstance(size, int):
                found[name] = size
    return found


def _position(spec: TensorSpec, axis: int) -> int:
    """Of an axis of one call in an array of samples."""
    return axis if spec.has_batch else axis + 1


def _cycled(inputs: Mapping[str, Array], signature: Signature, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Inputs whose named axes have the given sizes: elements are repeated from the start, or left out at the end."""
    made = dict(inputs)
    for spec in signature.inputs:
        for axis, name in free_axes(spec):
            place = _position(spec, axis)
            values = made[spec.name]
            made[spec.name] = np.take(values, np.arange(sizes[name]) % values.shape[place], axis=place)
    return made
