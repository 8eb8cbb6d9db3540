"""Models that hand a state from call to call: sequences of samples, run step by step with each state fed back.

`--state h_in=h_out` says that output `h_out` of one call is input `h_in` of the next; a sequence begins with zeros. Samples are
sequences then: one array (n, steps, ...) for each input that is no state, labels (n,) or (n, steps). Steps become samples of
their own, each with the state that the source had come to: that is what calibrates, binds tensors and makes golden vectors.
Artifacts are judged on whole sequences, each with its own states.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeml.exporter.axes import Ask
from edgeml.exporter.samples import Samples, load_samples, make_samples
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import BATCH, Signature, TensorSpec

STEPS: Final = "steps"  # the axis of samples that counts them


def with_states(signature: Signature, states: Mapping[str, str]) -> Signature:
    """The signature with its states named.

    Raises:
        PlanError: no such input or output, two that are not alike, or nothing but states.
    """
    if not states:
        return signature
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (signature.inputs, signature.outputs))
    for given, made in states.items():
        for side, name, found in (("input", given, inputs), ("output", made, outputs)):
            if name not in found:
                raise PlanError(
                    f"--state {given}={made}: no {side} {name!r}", expected=" or ".join(map(repr, found)), got="none"
                )
        a, b = inputs[given], outputs[made]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise PlanError(
                f"--state {given}={made}: one is not the other", expected=f"{a.dtype} {a.shape}", got=f"{b.dtype} {b.shape}"
            )
        if not all(isinstance(size, int) or size == BATCH for size in a.shape):
            raise PlanError(f"--state {given}={made}: a state has a fixed size", got=str(a.shape))
    if not set(inputs) - set(states) or not set(outputs) - set(states.values()):
        raise PlanError("--state leaves no input or no output that is not a state")
    return msgspec.structs.replace(signature, states=dict(states))


def load_sequences(path: Path, signature: Signature) -> Samples:
    """Sequences from an .npz, step after step; states are zeros until the source has run.

    Raises:
        PlanError: not what the signature's inputs take.
    """
    given = tuple(_sequence(spec) for spec in signature.inputs if spec.name not in signature.states)
    found = load_samples(path, Signature(given, signature.outputs), any_labels=True)
    count, steps = next(iter(found.inputs.values())).shape[:2]
    labels = found.labels
    if labels is not None and labels.shape[:2] != (count, steps):
        if labels.ndim != 1:
            raise PlanError(f"{path.name}: 'y'", expected=f"({count},) or ({count}, {steps})", got=str(labels.shape))
        labels = np.repeat(labels, steps, axis=0)
    elif labels is not None:
        labels = labels.reshape(count * steps, *labels.shape[2:])
    flat = {name: values.reshape(count * steps, *values.shape[2:]) for name, values in found.inputs.items()}
    return from_zero(flat, signature, steps, labels)


def from_zero(inputs: Mapping[str, Array], signature: Signature, steps: int, labels: Array | None = None) -> Samples:
    """Samples in sequences of `steps`, with zeros for states."""
    count = len(next(iter(inputs.values())))
    states = {spec.name: _zeros(spec, count) for spec in signature.inputs if spec.name in signature.states}
    return make_samples({**inputs, **states}, labels, steps=steps)


def run_sequences(ask: Ask, samples: Samples, signature: Signature) -> Samples:
    """The samples with the states that the source comes to, step by step."""
    steps = samples.steps
    inputs = {name: values.copy() for name, values in samples.inputs.items()}
    for step in range(steps - 1):
        outputs = ask({name: values[step::steps] for name, values in inputs.items()})
        for given, made in signature.states.items():
            inputs[given][step + 1 :: steps] = outputs[made]
    return make_samples(inputs, samples.labels, steps=steps)


def _sequence(spec: TensorSpec) -> TensorSpec:
    rest = spec.shape[1:] if spec.has_batch else spec.shape
    return msgspec.structs.replace(spec, shape=(BATCH, STEPS, *rest), layout=None)


def _zeros(spec: TensorSpec, count: int) -> Array:
    rest = spec.shape[1:] if spec.has_batch else spec.shape
    return np.zeros((count, *(size for size in rest if isinstance(size, int))), spec.dtype)
