"""Bounds of how far a healthy board may be off, from what each kernel set answers here.

One model file gives different numbers on different kernels (LiteRT's own int8 kernels differ by up to 72 steps on one model),
so the tolerance is measured: the artifact is run with each kernel set its engine has, and the largest difference, times
`SAFETY`, plus two steps of the output's quantization, is what a board is allowed. A bound that wide would hide a shift of all
outputs by one step, a wrong channel or a wrong scale inside the network; so what is the same in every sample is bounded too:
the root mean square of the differences, their mean, the mean of each element, and the gain, each by its own envelope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.exporter.golden_units import ONE, Units, units_of
from edgeml.exporter.parity.compare import Outputs
from edgeml.exporter.parity.metrics import spread
from edgeml.runtime.backends import Array
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.errors import ParityError
from edgeml.wire.manifest import Binding, Golden, GoldenOutput, TensorBlob

ROUNDED: Final = "rounded"  # beside the names of kernel sets: the default ones, with inputs that are off by a rounding
SAFETY: Final = 1.5  # kernels of boards not at hand may be worse than those seen here; by how much is a guess
QUANTA: Final = 2.0  # steps of the output's quantization: its own rounding, and one for the layer before
FLOAT_FLOOR: Final = 1e-5  # of the output range: float32 engines differ by 2e-6 to 2e-5
ALONE_FLOOR: Final = 1e-4  # of the output range, where one kernel set could run and nothing was compared: parity's own limit
# Arithmetic in float16, which a board may choose on its own; and how much of each bound ONNX Runtime takes at most, of the
# zoo's networks, on an emulated Cortex-A76, where it sums in float16:
HALF_FLOOR: Final = 2e-2  # of the output range; 64 %
HALF_RMS: Final = 4e-3  # of the output range; 44 %
HALF_SHIFT: Final = 2e-3  # of the output range, for the mean of all elements and of each; 28 %
HALF_GAIN: Final = 3e-3  # 22 %
RMS_STEPS: Final = 0.5  # what rounding may add to the root mean square
CHANCE: Final = 3.0  # standard deviations that a mean over the golden samples is off by chance, for kernels not at hand
BIAS_STEPS: Final = 0.25  # and to the mean, where it cancels: a shift of all outputs by one step must show
LEVELS: Final = 256  # values an 8-bit output can have
FLIPS: Final = 3.0  # golden samples that may be hit where fewer were: a value that falls the other way is rare and large
AGREEMENT_MARGIN: Final = 2  # golden samples that may flip beyond those seen to; 1 where all kernels here agree on all samples


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


def store(arrays: Mapping[str, Array]) -> Vectors:
    tensors, blobs = [], {}
    for name, values in arrays.items():
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
        digest = sha256_hex(data)
        blobs[digest] = data
        tensors.append(TensorBlob(name, str(values.dtype), values.shape, digest, len(data)))  # type: ignore[arg-type]
    return Vectors(tuple(tensors), blobs)


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
    vectors = store({name: values[at] for name, values in default.items()})
    bounds = []
    for tensor in vectors.tensors:
        real = default[tensor.name].dtype.kind == "f"
        values = default[tensor.name].astype(np.float64)
        differences = [outputs[tensor.name].astype(np.float64) - values for outputs in others]
        step = scales.get(tensor.name) or (_step(default[tensor.name]) if real else 0.0)
        allowed = (HALF_FLOOR if half else floor) * spread(values)
        units = units_of(values, differences, allowed) if real and not step else ONE
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


def _refuse_non_finite(kernels: str, outputs: Outputs) -> None:
    for name, values in outputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ParityError(f"output {name!r} with {kernels} kernels", expected="finite values", got="NaN or infinity")


def _tidy(bound: float) -> float:
    """Six digits, rounded up: a bound in a manifest should not look more exact than it is."""
    if bound == 0.0:
        return 0.0
    return float(f"{bound * (1 + 1e-6):.6g}")
