"""Calibration samples: by the model's own input tensor names, samples on axis 0, each fed with a batch of 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgeml.runtime.backends import Array, Backend, RawTensor
from edgeml.wire.errors import PlanError

Feeds = Mapping[str, Array]


def count(feeds: Feeds) -> int:
    """How many samples.

    Raises:
        PlanError: none, or inputs disagree.
    """
    counts = {name: len(values) for name, values in feeds.items()}
    if not counts or min(counts.values()) == 0:
        raise PlanError("no calibration samples", hint="give --calib a file with at least one sample")
    if len(set(counts.values())) > 1:
        raise PlanError("inputs have different numbers of calibration samples", got=str(counts))
    return next(iter(counts.values()))


def part(feeds: Feeds, number: int, parts: int) -> Feeds:
    """Every `parts`-th sample from sample `number` on."""
    return {name: values[number::parts] for name, values in feeds.items()}


def at_most(feeds: Feeds, number: int) -> Feeds:
    """No more than `number` samples, evenly spread."""
    return part(feeds, 0, max(1, -(-count(feeds) // number)))


def one_by_one(inputs: tuple[RawTensor, ...], feeds: Feeds) -> Iterator[list[Array]]:
    """Each sample as the tensors of one call, in the order of `inputs`.

    Raises:
        PlanError: an input has no samples.
    """
    if missing := [tensor.name for tensor in inputs if tensor.name not in feeds]:
        raise PlanError(f"no calibration samples for input {missing[0]!r}", got=", ".join(map(repr, feeds)) or "none")
    for number in range(count(feeds)):
        yield [_shaped(feeds[tensor.name][number], tensor) for tensor in inputs]


def answers(backend: Backend, feeds: Feeds) -> Iterator[list[Array]]:
    """The outputs for each sample."""
    for tensors in one_by_one(backend.inputs, feeds):
        yield backend.run(tensors)


def outputs(backend: Backend, feeds: Feeds) -> list[Array]:
    """Every output over all samples, stacked on axis 0: for few samples only."""
    calls = list(answers(backend, feeds))
    return [np.stack([call[position] for call in calls]) for position in range(len(backend.outputs))]


def _shaped(sample: Array, tensor: RawTensor) -> Array:
    with_batch = sample.ndim == len(tensor.shape) - 1
    values = sample[np.newaxis] if with_batch else sample
    return np.asarray(values, tensor.dtype, order="C")
