"""Golden vectors: real samples, what each artifact answers to them, and how far a healthy board may be off.

One model file gives different numbers on different kernels, so what a board may be off by is measured: the artifact is run with
each kernel set that its engine has, and `golden_bounds` makes bounds of the differences.

The kernels of one processor sum floats in one order. On another a value that lies between two steps of an inner tensor falls
the other way, in one sample of many, and what follows moves by a step: a GRU with int8 weights whose kernels here agree to 1e-5
of its range was off by 5e-4 on aarch64, in 1 of 32 samples. So int8 artifacts are run with inputs off by a rounding as well, or
by as much more as it takes to see some values fall.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.exporter.golden_bounds import ROUNDED, Vectors, envelope, store
from edgeml.exporter.parity.answers import answers
from edgeml.exporter.parity.compare import Outputs
from edgeml.exporter.parity.metrics import spread
from edgeml.exporter.precision import INTEGERS, computes_in_half
from edgeml.exporter.samples import Samples, make_samples
from edgeml.runtime.backends import Array, EngineOptions, OpenBackend
from edgeml.runtime.session import Session
from edgeml.wire.errors import EngineError
from edgeml.wire.manifest import Binding, Format, Golden, Precision, Signature

GOLDEN_SAMPLES: Final = 32
KERNELS: Final[dict[Format, tuple[str, ...]]] = {
    "tflite": ("default", "reference", "exact"),
    "onnx": ("default", "exact", "reference"),
    "coreml": ("default",),  # the interpreter has one set, so a Mac's engine is held to ALONE_FLOOR
}
ROUNDINGS: Final = (1e-6, 1e-5, 1e-4)  # of an input's value; the first is what float32 sums of another order are off by
FALLEN: Final = 0.1  # of the samples: what it takes to see how large the largest step is that falls the other way
BY_ITSELF: Final = 10.0  # times an input's rounding, of an output's range: beyond it a step has fallen
FAR: Final = 3.0  # times as far from the source as the default kernels: these compute something else
NEAR: Final = 1e-3  # of the output range: what is nearer than this to the source is near
ENVELOPE_SAMPLES: Final = 400  # reference kernels take up to 100 times as long as those of devices
FLOAT_ENVELOPE_SAMPLES: Final = (
    100  # float kernels differ by rounding alone: within 11 % of what 400 samples show (int8: 2.4 times)
)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An artifact as it can be run: its bytes, what its tensors stand for, and the engine."""

    model: bytes
    format: Format
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    open_backend: OpenBackend

    def session(self, signature: Signature, kernels: str = "default") -> Session:
        """Loaded, behind the bundle's signature. Raises what the engine raises."""
        return Session(signature, self.inputs, self.outputs, self.open_backend(self.model, EngineOptions(kernels=kernels)))


def pick(samples: Samples, classes: Array | None = None, *, count: int = GOLDEN_SAMPLES, seed: int = 0) -> tuple[int, ...]:
    """Indices of `count` samples, spread over `classes` (n,) as evenly as they allow; all of them if there are fewer.

    Classes are taken in turn, within a class in an order that `seed` draws, so that the same samples give the same choice.
    """
    total = len(samples)
    if total <= count:
        return tuple(range(total))
    order = np.random.default_rng(seed).permutation(total)
    groups = np.zeros(total, np.int64) if classes is None else np.asarray(classes).reshape(total)
    queues = [[int(i) for i in order if groups[i] == group] for group in np.unique(groups)]
    chosen: list[int] = []
    while len(chosen) < count:
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return tuple(sorted(chosen))


def golden_inputs(samples: Samples, indices: Sequence[int]) -> Vectors:
    """The picked samples as they stand in the bundle: per input (count, *sample shape)."""
    at = list(indices)
    return store({name: values[at] for name, values in samples.inputs.items()})


def make_golden(
    file: ModelFile,
    samples: Samples,
    indices: Sequence[int],
    signature: Signature,
    *,
    scores: str | None,
    precision: Precision = "fp32",
    source: Outputs | None = None,
) -> tuple[Golden, dict[str, bytes], dict[str, float]]:
    """What a board must answer to the golden samples, the blobs that say it, and kernel sets that count for nothing.

    Those are sets that compute something else than the source: name -> times as far from it as the default kernels.

    Args:
        file: the artifact.
        samples: all samples at hand; some of them measure the envelope.
        indices: the golden ones among them, as `pick` gives them.
        signature: of the bundle.
        scores: the output with class scores, `None` for tasks without classes.
        precision: of the artifact; arithmetic in float16 is a healthy way to run some.
        source: what the source answers to all samples; `None`: all kernel sets are healthy.

    Raises:
        EngineError, ModelError: the default kernels cannot run it.
        ParityError: an output is not finite.
    """
    count = min(ENVELOPE_SAMPLES if precision in INTEGERS else FLOAT_ENVELOPE_SAMPLES, len(samples))
    spaced = np.linspace(0, len(samples) - 1, count).astype(int).tolist()
    measured = sorted({*indices, *spaced})
    chosen = samples.take(measured)
    by_kernels = kernel_answers(file, chosen, signature)
    wrong: dict[str, float] = {}
    if source is not None and precision in INTEGERS:
        wrong = far_kernels(by_kernels, {name: source[name][measured] for name in by_kernels["default"]})
        by_kernels = {kernels: outputs for kernels, outputs in by_kernels.items() if kernels not in wrong}
    if precision in INTEGERS:
        by_kernels[ROUNDED] = fallen_answers(file, chosen, signature, by_kernels["default"])
    at = [measured.index(index) for index in indices]
    golden, blobs = envelope(by_kernels, at, file.outputs, scores=scores, half=computes_in_half(file.format, precision))
    return golden, blobs, wrong


def fallen_answers(file: ModelFile, samples: Samples, signature: Signature, default: Outputs) -> dict[str, Array]:
    """What the default kernels answer to inputs that are a little off, by so little that few steps fall the other way."""
    got: dict[str, Array] = {}
    with file.session(signature) as session:
        for rounding in ROUNDINGS:
            got = answers(session.run, rounded(samples, rounding), signature)
            fallen = np.zeros(len(samples), bool)
            for name, values in default.items():
                off = np.abs(got[name].astype(np.float64) - values).reshape(len(values), -1).max(axis=1)
                fallen |= off > BY_ITSELF * rounding * spread(values)
            if fallen.mean() >= FALLEN:
                break
    return got


def rounded(samples: Samples, rounding: float) -> Samples:
    """The samples with their floats off by this share, at random: the same for the same samples."""
    chance = np.random.default_rng(0)
    return make_samples(
        {
            name: (values * (1 + rounding * chance.standard_normal(values.shape))).astype(values.dtype)
            if values.dtype.kind == "f"
            else values
            for name, values in samples.inputs.items()
        }
    )


def kernel_answers(file: ModelFile, samples: Samples, signature: Signature) -> dict[str, dict[str, Array]]:
    """The artifact's outputs over `samples` for each kernel set that can run it here; "default" is always there.

    Raises:
        EngineError, ModelError: the default kernels cannot run it.
    """
    found: dict[str, dict[str, Array]] = {}
    for kernels in KERNELS[file.format]:
        try:
            with file.session(signature, kernels) as session:
                found[kernels] = answers(session.run, samples, signature)
        except EngineError:
            if kernels == "default":
                raise
            # A kernel set that lacks an operator says nothing about the others.
    return found


def far_kernels(by_kernels: Mapping[str, Outputs], source: Outputs) -> dict[str, float]:
    """Kernel sets whose answers (n, ...) are `FAR` times as far from the source's as those of the default set, and how far.

    Kernels of one file differ in rounding, and are all as good: of 18 models' int8 files in LiteRT, within 1.3 times. LiteRT's
    reference SUM of int8 in a 19th is off by half its range; bounds that let it through let anything through.
    """
    far: dict[str, float] = {}
    for name, truth in source.items():
        allowed = NEAR * spread(truth)
        default = max(_rms(by_kernels["default"][name], truth), allowed)
        for kernels, outputs in by_kernels.items():
            if default > 0 and (times := _rms(outputs[name], truth) / default) > FAR:
                far[kernels] = max(far.get(kernels, 0.0), times)
    return far


def _rms(one: Array, other: Array) -> float:
    return float(np.sqrt(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)))
