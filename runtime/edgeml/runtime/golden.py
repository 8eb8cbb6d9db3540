"""Run a bundle's golden vectors on this machine: the evidence of the export, measured again before a model serves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import Bundle
from edgeml.runtime.session import Session
from edgeml.wire.contract import label
from edgeml.wire.errors import SelfTestError
from edgeml.wire.manifest import BATCH, Artifact, GoldenOutput, TensorSpec

_WAY_OUT: Final = "this machine's engine does not compute what was exported; try another format or precision"


@dataclass(frozen=True, slots=True)
class OutputResult:
    """One output over all golden samples: the largest |got - expected| and what it was held to."""

    name: str
    max_abs: float
    limit: float


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """A self-test that passed. `samples` is 0 where the artifact carries no golden vectors."""

    artifact: str
    samples: int
    outputs: tuple[OutputResult, ...]
    agreement: float
    least_agreement: float


def self_test(bundle: Bundle, artifact: Artifact, session: Session) -> GoldenResult:
    """Feed every golden sample and compare each output.

    Raises:
        SelfTestError: a non-finite output, a value outside its tolerance, or too few samples of the expected class; names the
            artifact, the output, the sample, got and limit.
        BundleError: a golden blob changed since the bundle was opened.
    """
    where = f"artifact {label(artifact)}"
    golden = artifact.golden
    if golden is None or not bundle.manifest.golden_inputs:
        return GoldenResult(label(artifact), 0, (), 1.0, 0.0)
    signature = bundle.manifest.signature
    inputs = {tensor.name: bundle.tensor(tensor) for tensor in bundle.manifest.golden_inputs}
    expected = {output.expected.name: bundle.tensor(output.expected) for output in golden.outputs}
    samples = bundle.manifest.golden_inputs[0].shape[0]
    worst = {output.expected.name: 0.0 for output in golden.outputs}
    shifts = {output.expected.name: _Shift() for output in golden.outputs}
    ranked = bundle.manifest.post.output if bundle.manifest.post else signature.outputs[0].name
    agreeing = 0
    for sample in range(samples):
        feed = {spec.name: sample_as(spec, inputs[spec.name][sample]) for spec in signature.inputs}
        got = session.run(feed)
        for output in golden.outputs:
            name = output.expected.name
            difference, wanted = _compare(where, output, sample, got[name], expected[name][sample])
            worst[name] = max(worst[name], float(np.abs(difference).max(initial=0.0)))
            shifts[name].add(difference, wanted)
        agreeing += int(np.argmax(got[ranked]) == np.argmax(expected[ranked][sample]))
    for output in golden.outputs:
        shifts[output.expected.name].check(where, output)
    agreement = agreeing / samples
    if agreement < golden.least_agreement:
        raise SelfTestError(
            f"{where}: golden samples of the expected class in output {ranked!r}",
            expected=f"at least {golden.least_agreement:.4g} of {samples}",
            got=f"{agreement:.4g}",
            hint=_WAY_OUT,
        )
    outputs = tuple(OutputResult(o.expected.name, worst[o.expected.name], o.tolerance) for o in golden.outputs)
    return GoldenResult(label(artifact), samples, outputs, agreement, golden.least_agreement)


class _Shift:
    """How far an output is off over all golden samples together: what is the same in every sample shows only here."""

    def __init__(self) -> None:
        self._sums: Array = np.zeros(0)
        self._squares = self._along = self._power = 0.0
        self._count = 0

    def add(self, difference: Array, wanted: Array) -> None:
        self._sums = self._sums + difference if self._count else difference
        self._squares += float(difference @ difference)
        self._along += float(difference @ wanted)
        self._power += float(wanted @ wanted)
        self._count += 1

    def measured(self) -> dict[str, float]:
        """By the names of the bounds in `GoldenOutput`."""
        count, elements = max(self._count, 1), max(self._sums.size, 1)
        return {
            "rms": math.sqrt(self._squares / (count * elements)),
            "bias": abs(float(self._sums.sum())) / (count * elements),
            "channel": float(np.abs(self._sums).max(initial=0.0)) / count,
            "gain": abs(self._along) / self._power if self._power else 0.0,
        }

    def check(self, where: str, output: GoldenOutput) -> None:
        limits = {"rms": output.rms, "bias": output.bias, "channel": output.channel, "gain": output.gain}
        for what, value in self.measured().items():
            limit = limits[what]
            if limit is not None and not value <= limit:
                raise SelfTestError(
                    f"{where}: output {output.expected.name!r} is shifted over all golden samples ({what})",
                    expected=f"at most {limit:.6g} from the exported values",
                    got=f"{value:.6g}",
                    hint=_WAY_OUT,
                )


def sample_as(spec: TensorSpec, sample: Array) -> Array:
    """One stored sample with every axis of the signature: a sample is kept without its batch axis of 1."""
    if sample.ndim == len(spec.shape):
        return np.asarray(sample, order="C")
    shape = tuple(1 if axis == BATCH else axis for axis in spec.shape)
    if all(isinstance(axis, int) for axis in shape) and math.prod(int(axis) for axis in shape) == sample.size:
        return np.ascontiguousarray(sample).reshape([int(axis) for axis in shape])
    return np.ascontiguousarray(sample)[None]


def units(output: GoldenOutput) -> Array:
    """What each element of a sample is divided by, flat, or () where it is nothing."""
    if output.axis is None:
        return np.ones(())
    shape = output.expected.shape[1:]
    along = [size if axis == output.axis - 1 else 1 for axis, size in enumerate(shape)]
    return np.broadcast_to(np.reshape(output.units, along), shape).ravel()


def _compare(where: str, output: GoldenOutput, sample: int, got: Array, expected: Array) -> tuple[Array, Array]:
    """What one sample is off by and what was expected, flat and in the output's units."""
    name = output.expected.name
    if got.size != expected.size:
        raise SelfTestError(
            f"{where}: output {name!r} of golden sample {sample}",
            expected=f"{expected.size} values",
            got=str(got.size),
            hint=_WAY_OUT,
        )
    real = got.astype(np.float64).ravel()
    if not np.isfinite(real).all():
        raise SelfTestError(
            f"{where}: output {name!r} of golden sample {sample} is not finite",
            expected="finite values",
            got=str(real[~np.isfinite(real)][0]),
            hint=_WAY_OUT,
        )
    unit, wanted = units(output), expected.astype(np.float64).ravel()
    difference, wanted = (real - wanted) / unit, wanted / unit
    worst = float(np.abs(difference).max(initial=0.0))
    if not worst <= output.tolerance:  # NaN in the expected values is a miss too
        raise SelfTestError(
            f"{where}: output {name!r} of golden sample {sample} is off",
            expected=f"at most {output.tolerance:.6g} from the exported value",
            got=f"{worst:.6g}",
            hint=_WAY_OUT,
        )
    return difference, wanted
