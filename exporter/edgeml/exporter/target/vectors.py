"""A bundle's golden samples laid out as a model file's own tensors: what a page or a board feeds, and must get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import Bundle
from edgeml.runtime.golden import sample_as, units
from edgeml.runtime.tensors import plan_input
from edgeml.wire.contract import label
from edgeml.wire.errors import UnsupportedError
from edgeml.wire.manifest import Artifact, Binding, DType, GoldenOutput, Quantization, TensorSpec


@dataclass(frozen=True, slots=True)
class Vectors:
    """One tensor of the golden samples: `values` (samples, *shape), inputs as the file stores them, outputs in real numbers.

    `index` and `tensor` are the file's own; `quantization` says what its stored values stand for. An output's differences are
    divided by `units`, one for each element of `shape`, before they are held to a bound; empty: by nothing.
    """

    name: str
    tensor: str
    index: int
    dtype: DType
    values: Array
    quantization: Quantization | None = None
    units: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape[1:]


def golden_vectors(
    bundle: Bundle, artifact: Artifact, inputs: Sequence[Binding], outputs: Sequence[Binding]
) -> tuple[tuple[Vectors, ...], tuple[Vectors, ...]]:
    """By the file's order. The bindings are the artifact's, or those of a file made of it.

    Raises:
        UnsupportedError: the artifact has no golden vectors.
    """
    golden, signature = artifact.golden, bundle.manifest.signature
    if golden is None or not bundle.manifest.golden_inputs:
        raise UnsupportedError(f"artifact {label(artifact)} has no golden vectors to be held to", hint="export it again")
    given = {tensor.name: bundle.tensor(tensor) for tensor in bundle.manifest.golden_inputs}
    promised = {output.expected.name: output for output in golden.outputs}
    feeds = {spec.name: spec for spec in signature.inputs}
    answers = {spec.name: spec for spec in signature.outputs}
    return (
        tuple(_vectors(feeds[one.name], one, one, given[one.name]) for one in _ordered(inputs)),
        tuple(_expected(bundle, answers[one.name], one, promised[one.name]) for one in _ordered(outputs)),
    )


def _expected(bundle: Bundle, spec: TensorSpec, binding: Binding, output: GoldenOutput) -> Vectors:
    layout = msgspec.structs.replace(binding, dtype=spec.dtype, quantization=None)  # real numbers, where the file has them
    found = _vectors(spec, binding, layout, bundle.tensor(output.expected))
    if output.axis is None:
        return found
    one = units(output).reshape(output.expected.shape[1:]).astype(spec.dtype)
    return replace(found, units=tuple(_vectors(spec, binding, layout, one[None]).values.ravel().tolist()))


def _ordered(bindings: Sequence[Binding]) -> list[Binding]:
    return sorted(bindings, key=lambda binding: binding.index)


def _vectors(spec: TensorSpec, binding: Binding, layout: Binding, samples: Array) -> Vectors:
    convert = plan_input(spec, layout).convert
    ready = [sample_as(spec, sample) for sample in samples]
    values = np.stack(ready if convert is None else [convert(sample) for sample in ready])
    return Vectors(binding.name, binding.tensor, binding.index, binding.dtype, values, binding.quantization)
