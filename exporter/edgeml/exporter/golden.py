"""Golden vectors: real samples, what each artifact answers to them, and how far a healthy board may be off.

One model file gives different numbers on different kernels (LiteRT's own int8 kernels differ by up to 72 steps on one model),
so the tolerance is measured: the artifact is run with each kernel set its engine has, and the largest difference, times
`SAFETY`, plus two steps of the output's quantization, is what a board is allowed. A bound that wide would hide a shift of all
outputs by one step, a wrong channel or a wrong scale inside the network; so what is the same in every sample is bounded too:
the root mean square of the differences, their mean, the mean of each element, and the gain, each by its own envelope.

The kernels of one processor sum floats in one order. On another a value that lies between two steps of an inner tensor falls
the other way, in one sample of many, and what follows moves by a step: a GRU with int8 weights whose kernels here agree to 1e-5
of its range was off by 5e-4 on aarch64, in 1 of 32 samples. So int8 artifacts are run with inputs off by a rounding as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.exporter.golden_units import ONE, Units, units_of
from edgeml.exporter.parity.answers import answers
from edgeml.exporter.parity.compare import Outputs
from edgeml.exporter.parity.metrics import spread
from edgeml.exporter.precision import INTEGERS, computes_in_half
from edgeml.exporter.samples import Samples, make_samples
from edgeml.runtime.backends import Array, EngineOptions, OpenBackend
from edgeml.runtime.session import Session
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.errors import EngineError, ParityError
from edgeml.wire.manifest import Binding, Format, Golden, GoldenOutput, Precision, Signature, TensorBlob

GOLDEN_SAMPLES: Final = 32
KERNELS: Final[dict[Format, tuple[str, ...]]] = {
    "tflite": ("default", "reference", "exact"),
    "onnx": ("default", "exact", "reference"),
    "coreml": ("default",),  # the interpreter has one set, so a Mac's engine is held to ALONE_FLOOR
}
ROUNDED: Final = "rounded"  # beside the names of kernel sets: the default ones, with inputs that are off by a rounding
SAFETY: Final = 1.5  # kernels of boards not at hand may be worse than those seen here; by how much is a guess
QUANTA: Final = 2.0  # steps of the output's quantization: its own rounding, and one for the layer before
FLOAT_FLOOR: Final = 1e-5  # of the output range: float32 engines differ by 2e-6 to 2e-5
ALONE_FLOOR: Final = 1e-4  # of the output range, where one kernel set could run and nothing was compared: parity's own limit
HALF_FLOOR: Final = 2e-2  # of the output range: the same for arithmetic in float16, which a board may choose on its own
# A Cortex-A76, where ONNX Runtime sums in float16, is off by at most a sixth of each of these (two networks, emulated):
HALF_RMS: Final = 4e-3  # of the output range; seen: 3.4e-4
HALF_SHIFT: Final = 2e-3  # of the output range, for the mean of all elements and of each; seen: 3.2e-4
HALF_GAIN: Final = 3e-3  # seen: 2.3e-4
RMS_STEPS: Final = 0.5  # what rounding may add to the root mean square
CHANCE: Final = 3.0  # standard deviations that a mean over the golden samples is off by chance, for kernels not at hand
BIAS_STEPS: Final = 0.25  # and to the mean, where it cancels: a shift of all outputs by one step must show
LEVELS: Final = 256  # values an 8-bit output can have
ROUNDING: Final = 1e-6  # of an input's value: what float32 sums of another order are off by
FLIPS: Final = 3.0  # golden samples that may be hit where fewer were: a value that falls the other way is rare and large
ENVELOPE_SAMPLES: Final = 400  # reference kernels take up to 100 times as long as those of devices
FLOAT_ENVELOPE_SAMPLES: Final = (
    100  # float kernels differ by rounding alone: within 11 % of what 400 samples show (int8: 2.4 times)
)
AGREEMENT_MARGIN: Final = 2  # golden samples that may flip beyond those seen to; 1 where all kernels here agree on all samples


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


@dataclass(frozen=True, slots=True)
class Vectors:
    """Tensors for the manifest, and the blobs (sha256 -> bytes) they name."""

    tensors: tuple[TensorBlob, ...]
    blobs: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _Floors:
    """What every board is allowed, however well the kernels here agree: in the output's units, the gain as a share."""

    element: float
    rms: float
    shift: float
    gain: float

    @classmethod
    def of_half(cls, span: float) -> _Floors:
        return cls(HALF_FLOOR * span, HALF_RMS * span, HALF_SHIFT * span, HALF_GAIN)


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
    return _store({name: values[at] for name, values in samples.inputs.items()})


def make_golden(
    file: ModelFile,
    samples: Samples,
    indices: Sequence[int],
    signature: Signature,
    *,
    scores: str | None,
    precision: Precision = "fp32",
) -> tuple[Golden, dict[str, bytes]]:
    """What a board must answer to the golden samples, and the blobs that say it.

    Args:
        file: the artifact.
        samples: all samples at hand; some of them measure the envelope.
        indices: the golden ones among them, as `pick` gives them.
        signature: of the bundle.
        scores: the output with class scores, `None` for tasks without classes.
        precision: of the artifact; arithmetic in float16 is a healthy way to run some.

    Raises:
        EngineError, ModelError: the default kernels cannot run it.
        ParityError: an output is not finite.
    """
    count = min(ENVELOPE_SAMPLES if precision in INTEGERS else FLOAT_ENVELOPE_SAMPLES, len(samples))
    spaced = np.linspace(0, len(samples) - 1, count).astype(int).tolist()
    measured = sorted({*indices, *spaced})
    chosen = samples.take(measured)
    by_kernels = kernel_answers(file, chosen, signature)
    if precision in INTEGERS:
        with file.session(signature) as session:
            by_kernels[ROUNDED] = answers(session.run, rounded(chosen), signature)
    at = [measured.index(index) for index in indices]
    return envelope(by_kernels, at, file.outputs, scores=scores, half=computes_in_half(file.format, precision))


def rounded(samples: Samples) -> Samples:
    """The samples as if their floats had been computed in another order: the same for the same samples."""
    chance = np.random.default_rng(0)
    return make_samples(
        {
            name: (values * (1 + ROUNDING * chance.standard_normal(values.shape))).astype(values.dtype)
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


def envelope(
    by_kernels: Mapping[str, Outputs],
    at: Sequence[int],
    bindings: Sequence[Binding],
    *,
    scores: str | None,
    half: bool = False,
) -> tuple[Golden, dict[str, bytes]]:
    """Golden outputs from what each kernel set answered (n, ...), and "rounded" inputs gave.

    "default" is what devices run; `at` are the golden samples.
    """
    for kernels, outputs in by_kernels.items():
        _refuse_non_finite(kernels, outputs)
    default = by_kernels["default"]
    others = [outputs for kernels, outputs in by_kernels.items() if kernels != "default"]
    at, floor = list(at), FLOAT_FLOOR if by_kernels.keys() - {"default", ROUNDED} else ALONE_FLOOR
    scales = {b.name: b.quantization.scale for b in bindings if b.quantization is not None}
    vectors = _store({name: values[at] for name, values in default.items()})
    bounds = []
    for tensor in vectors.tensors:
        real = default[tensor.name].dtype.kind == "f"
        values = default[tensor.name].astype(np.float64)
        differences = [outputs[tensor.name].astype(np.float64) - values for outputs in others]
        step = scales.get(tensor.name) or (_step(default[tensor.name]) if real else 0.0)
        units = units_of(values, differences) if real and not step else ONE
        values, differences = units.of(values), [units.of(difference) for difference in differences]
        span = spread(values) if real else 0.0
        floors = _Floors.of_half(span) if half else _Floors(floor * span, floor * span, floor * span, floor)
        bounds.append(_bounds(tensor, values, differences, at, step=step, floors=floors, units=units))
    agreement = _least_agreement(default[scores], [outputs[scores] for outputs in others], at, half=half) if scores else 0.0
    return Golden(tuple(bounds), agreement), vectors.blobs


def _step(values: Array) -> float:
    """The quantization step of an output that comes out as float: the least gap, if so few values occur that it has one."""
    distinct = np.unique(values)
    if len(distinct) < 2 or len(distinct) > LEVELS or len(distinct) * 4 > values.size:
        return 0.0
    return float(np.diff(distinct.astype(np.float64)).min())


def _bounds(
    tensor: TensorBlob,
    values: Array,
    differences: Sequence[Array],
    at: list[int],
    *,
    step: float,
    floors: _Floors,
    units: Units,
) -> GoldenOutput:
    """Envelopes of the differences between kernels, element by element and over samples, each with its allowance.

    `values` and `differences` are in `units`.
    """
    worst = rms = bias = channel = gain = 0.0
    count, flat_values = len(at), values.reshape(len(values), -1)
    golden = flat_values[at]
    power = float((golden**2).sum()) or 1.0
    for difference in differences:
        worst = max(worst, float(np.abs(difference).max()))
        for part in (difference, difference[at]):
            rms = max(rms, float(np.sqrt(np.mean(part**2))))
            bias = max(bias, abs(float(part.mean())))
        flat = difference.reshape(len(difference), -1)
        hit = float((np.abs(flat).max(axis=1) > floors.element).mean()) * count
        rare = min(1.0, FLIPS / count) if hit < FLIPS else 0.0
        rms = max(rms, math.sqrt(rare * float((flat**2).mean(axis=1).max())))
        bias = max(bias, rare * float(np.abs(flat.mean(axis=1)).max()))
        channel = max(channel, rare * float(np.abs(flat).max()))
        loudest = float(np.sqrt((flat**2).mean(axis=0)).max())  # of any element
        along = (flat * flat_values).sum(axis=1)  # what one sample adds to the gain
        bias = max(bias, CHANCE * math.sqrt(float((flat.mean(axis=1) ** 2).mean()) / count))
        channel = max(channel, float(np.abs(flat[at].mean(axis=0)).max()), CHANCE * loudest / math.sqrt(count))
        chance = CHANCE * math.sqrt(count * float((along**2).mean()))
        gain = max(gain, abs(float(along[at].sum())) / power, chance / power, rare * count * float(np.abs(along).max()) / power)
    shift = BIAS_STEPS * step
    return GoldenOutput(
        expected=tensor,
        tolerance=_tidy(SAFETY * worst + QUANTA * step + floors.element),
        rms=_tidy(SAFETY * rms + RMS_STEPS * step + floors.rms),
        bias=_tidy(SAFETY * bias + shift + floors.shift),
        channel=_tidy(SAFETY * channel + shift + floors.shift),
        gain=_tidy(SAFETY * gain + shift * abs(float(golden.sum())) / power + floors.gain),
        axis=units.axis,
        units=units.sizes,
    )


def _least_agreement(default: Array, others: Sequence[Array], at: list[int], *, half: bool) -> float:
    """The share of golden samples that must keep their class: as the worst kernels did over all samples, less a margin.

    Classes are told as a device's self-test tells them, by the first largest score; ties get no grace.
    """
    mine = _first_best(default)
    shares = [float((mine[part] == _first_best(other)[part]).mean()) for other in others for part in (slice(None), at)]
    worst = min([1.0, *shares])
    margin = AGREEMENT_MARGIN if worst < 1.0 or half else AGREEMENT_MARGIN - 1
    return max(0.0, (int(worst * len(at)) - margin) / len(at))


def _first_best(scores: Array) -> Array:
    return np.asarray(scores.reshape(len(scores), -1).argmax(axis=1))


def _store(arrays: Mapping[str, Array]) -> Vectors:
    tensors, blobs = [], {}
    for name, values in arrays.items():
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
        digest = sha256_hex(data)
        blobs[digest] = data
        tensors.append(TensorBlob(name, str(values.dtype), values.shape, digest, len(data)))  # type: ignore[arg-type]
    return Vectors(tuple(tensors), blobs)


def _refuse_non_finite(kernels: str, outputs: Outputs) -> None:
    for name, values in outputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ParityError(f"output {name!r} with {kernels} kernels", expected="finite values", got="NaN or infinity")


def _tidy(bound: float) -> float:
    """Six digits, rounded up: a bound in a manifest should not look more exact than it is."""
    if bound == 0.0:
        return 0.0
    return float(f"{bound * (1 + 1e-6):.6g}")
