"""The same samples for two models whose inputs may have other names and another order of axes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.exporter.layers.subject import Subject
from edgeml.exporter.parity.bind import normal_name
from edgeml.runtime.backends import Array, RawTensor
from edgeml.runtime.npz import read_npz
from edgeml.wire.errors import PlanError

MOST_SAMPLES: Final = 8  # every inner tensor of every sample is held at once
DRAWN: Final = 4
SINGLE: Final = "x"


def samples_for(subjects: Sequence[Subject], inputs: Sequence[RawTensor], path: Path | None) -> tuple[dict[str, Array], str]:
    """Input name -> (n, ...) with n at most `MOST_SAMPLES`, and what they are in words.

    From the file, else a bundle's golden samples, else noise.

    Raises:
        PlanError, InputError: the file cannot be used.
    """
    if path is not None:
        found = read_npz(path).found
        if not found:
            raise PlanError(f"{path.name!r} holds no arrays", hint="write it with numpy.savez(path, x=...)")
        return {name: values[:MOST_SAMPLES] for name, values in found.items() if values.ndim}, f"samples of {path.name}"
    for subject in subjects:
        if subject.golden is not None:
            return {name: values[:MOST_SAMPLES] for name, values in subject.golden.items()}, "golden samples of the bundle"
    generator = np.random.default_rng(0)
    drawn: dict[str, Array] = {}
    for raw in inputs:
        shape = (DRAWN, *(1 if size is None else size for size in raw.shape[1:]))
        if raw.dtype.kind == "f" or raw.quantization is not None:
            drawn[raw.name] = generator.normal(size=shape).astype(np.float32)
        else:
            drawn[raw.name] = generator.integers(0, 2, shape).astype(raw.dtype)
    return drawn, "noise; real samples with --input FILE.npz say more"


def calls_for(subject: Subject, inputs: Sequence[RawTensor], samples: Mapping[str, Array]) -> list[list[Array]]:
    """Each sample as the tensors of one call, in the order of `inputs`.

    Raises:
        PlanError: no array fits an input.
    """
    arrays = [_for_input(subject, raw, position, inputs, samples) for position, raw in enumerate(inputs)]
    count = min(len(values) for values in arrays)
    return [[_stored(values[number], raw) for values, raw in zip(arrays, inputs, strict=True)] for number in range(count)]


def _for_input(
    subject: Subject, raw: RawTensor, position: int, inputs: Sequence[RawTensor], samples: Mapping[str, Array]
) -> Array:
    if subject.artifact is not None:
        binding = next(one for one in subject.artifact.inputs if one.tensor == raw.name or one.index == position)
        if binding.name in samples:
            values = samples[binding.name]
            return _fitted(values, raw, _without_batch(binding.permute), subject.name)
    named = [name for name in samples if name == raw.name or normal_name(name) == normal_name(raw.name)]
    if not named and len(inputs) == 1:
        named = [name for name in samples if name == SINGLE] or ([next(iter(samples))] if len(samples) == 1 else [])
    if not named and len(samples) == len(inputs):
        named = [list(samples)[position]]
    if not named:
        raise PlanError(
            f"no samples for input {raw.name!r} of {subject.name!r}",
            expected=", ".join(one.name for one in inputs),
            got=", ".join(samples),
            hint="name one array after each input",
        )
    return _fitted(samples[named[0]], raw, None, subject.name)


def _without_batch(permute: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The order of a sample's own axes."""
    return None if permute is None or permute[0] != 0 else tuple(axis - 1 for axis in permute[1:])


def _fitted(values: Array, raw: RawTensor, order: tuple[int, ...] | None, model: str) -> Array:
    """Samples (n, *the tensor's shape): turned so that they fit, with axes of size 1 put where it has them."""
    wanted = tuple(1 if size is None else size for size in raw.shape)
    sample = tuple(size for size in values.shape[1:] if size != 1)
    target = tuple(size for size in wanted if size != 1)
    if order is not None and len(order) == values.ndim - 1:
        values = values.transpose(0, *(axis + 1 for axis in order))
        sample = tuple(size for size in values.shape[1:] if size != 1)
    if sample != target:
        orders = sorted(
            itertools.permutations(range(len(sample))), key=lambda o: sum(a > b for a, b in itertools.combinations(o, 2))
        )
        fitting = next((o for o in orders if tuple(sample[axis] for axis in o) == target), None) if len(sample) <= 6 else None
        if fitting is None:
            raise PlanError(
                f"samples do not fit input {raw.name!r} of {model!r}", expected=str(wanted), got=str(values.shape[1:])
            )
        values = values.reshape(len(values), *sample).transpose(0, *(axis + 1 for axis in fitting))
    return values.reshape(len(values), *wanted)


def _stored(value: Array, raw: RawTensor) -> Array:
    if raw.quantization is not None and value.dtype.kind == "f":
        limits = np.iinfo(raw.dtype)
        codes = np.round(value / raw.quantization.scale) + raw.quantization.zero_point
        value = np.clip(codes, limits.min, limits.max)
    return np.ascontiguousarray(value.astype(raw.dtype))
