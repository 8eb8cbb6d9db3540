"""One artifact of a bundle, run with one fault at a time and with every healthy set of kernels, against its golden vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from benchmarks.golden import onnx_files, tflite_files
from benchmarks.golden.answers import Feed, Loader, Output, answer_faults, faulty
from benchmarks.golden.runs import Run, run, verdict
from benchmarks.golden.weights import STUCK_INPUT
from edgeml.exporter.golden_units import units_of
from edgeml.runtime.backends import Array, EngineOptions, OpenBackend, opener
from edgeml.runtime.backends.onnx import saturates_int8
from edgeml.runtime.bundle import Bundle
from edgeml.wire.manifest import Artifact, Format

FAR_KERNELS: Final = "kernels that compute something else"
FAR, NEAR = 3.0, 1e-3  # times as far from the fp32 file as the default kernels; of the range, what is near in any case
FELT: Final = 0.01  # of an output's range
LEVELS: Final = 256
HEALTHY: Final[Mapping[Format, tuple[EngineOptions, ...]]] = {
    "onnx": (
        EngineOptions(), EngineOptions(kernels="reference"), EngineOptions(kernels="exact"), EngineOptions(threads=2),
        *(() if saturates_int8() else (EngineOptions(kernels="stock"),)),
    ),
    "tflite": (
        EngineOptions(), EngineOptions(kernels="reference"), EngineOptions(kernels="exact"), EngineOptions(threads=2),
        EngineOptions(kernels="exact", threads=4),
    ),
    "coreml": (),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """A fault that changes answers. It is *felt* if it changes the class of a golden sample, or moves a value by over 1 %.

    `moved` is the largest change as a share of its output's or channel's range, `None` if it is not finite.
    """

    fault: str
    caught: bool
    felt: bool
    flips: int
    moved: float | None


@dataclass(slots=True)
class Found:
    """All trials of one artifact."""

    model: str
    artifact: str
    healthy: int = 0
    refused: list[str] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)


def look_at(bundle: Bundle, artifact: Artifact) -> Found:
    opens = opener(artifact.format)
    healthy = run(bundle, artifact, opens)
    assert healthy is not None, "an artifact in a bundle runs"
    found = Found(bundle.manifest.name, f"{artifact.format}:{artifact.precision}")
    allowed = FAR * max(_from_float(bundle, healthy), NEAR)
    for options in HEALTHY[artifact.format]:
        got = run(bundle, artifact, _with(opens, options))
        if got is None:
            continue  # these kernels lack an operator: they serve nothing, here or on a device
        refusal = verdict(bundle, artifact, got.again, EngineOptions())
        if _from_float(bundle, got) > allowed:
            flips, moved = difference(healthy.answers, got.answers)
            found.trials.append(Trial(FAR_KERNELS, caught=refusal is not None, felt=True, flips=flips, moved=moved))
            continue
        found.healthy += 1
        found.refused += [f"{options.kernels} x{options.threads}: {refusal}"] if refusal is not None else []
    for fault, load in broken(artifact, bundle.blob(artifact.sha256), healthy):
        trial = _tried(bundle, artifact, healthy, fault, load)
        found.trials += [trial] if trial is not None else []
    return found


def _with(opens: OpenBackend, options: EngineOptions) -> OpenBackend:
    return lambda model, _: opens(model, options)


def _from_float(bundle: Bundle, got: Run) -> float:
    """How far answers are from those of the bundle's fp32 file: root mean square, of an output's range; 0 without one."""
    whole = next((one for one in bundle.manifest.artifacts if one.precision == "fp32" and one.format != "coreml"), None)
    truth = run(bundle, whole, opener(whole.format)) if whole is not None else None
    if truth is None:
        return 0.0
    pairs = zip(truth.answers, got.answers, strict=True)
    return max(float(np.sqrt(np.mean((mine - other) ** 2)) / (np.ptp(mine) or 1.0)) for mine, other in pairs)


def broken(artifact: Artifact, model: bytes, healthy: Run) -> Iterator[tuple[str, Loader]]:
    opens = opener(artifact.format)
    yield from answer_faults(opens, outputs(artifact, healthy))
    if artifact.format == "tflite":
        for at, by in tflite_files.stuck_inputs(model):
            yield STUCK_INPUT, faulty(opens, feed=_shifted(at, by))
    for name, data in (onnx_files if artifact.format == "onnx" else tflite_files).faulty_files(model):
        yield name, _replaced(opens, data)


def _shifted(at: int, by: float) -> Feed:
    return lambda inputs: [values + values.dtype.type(by) if index == at else values for index, values in enumerate(inputs)]


def _replaced(opens: OpenBackend, data: bytes) -> Loader:
    return lambda: lambda _, options: opens(data, options)


def _tried(bundle: Bundle, artifact: Artifact, healthy: Run, fault: str, load: Loader) -> Trial | None:
    """`None` where there is no fault to catch: the engine refuses the file, or this model's numbers are the same with it."""
    got = run(bundle, artifact, load())
    if got is None:
        return None
    flips, moved = difference(healthy.answers, got.answers)
    if moved == 0.0:
        return None
    caught = verdict(bundle, artifact, got.again, EngineOptions()) is not None
    return Trial(fault, caught, flips > 0 or not moved <= FELT, flips, moved if np.isfinite(moved) else None)


def difference(healthy: Sequence[Array], got: Sequence[Array]) -> tuple[int, float]:
    """(samples whose class changed, largest change as a share of its output's range); another shape is another answer.

    Where an output joins channels of different sizes, each has a range of its own.
    """
    if any(mine.shape != other.shape for mine, other in zip(healthy, got, strict=True)):
        return len(healthy[0]), float("inf")
    flips = int((_classes(healthy[0]) != _classes(got[0])).sum())
    moved = 0.0
    for mine, other in zip(healthy, got, strict=True):
        if not np.isfinite(other).all():
            return flips, float("inf")
        units = units_of(mine, [])
        moved = max(moved, float(np.abs(units.of(mine - other)).max() / (np.ptp(units.of(mine)) or 1.0)))
    return flips, moved


def _classes(scores: Array) -> Array:
    return np.asarray(scores.reshape(len(scores), -1).argmax(axis=1))


def outputs(artifact: Artifact, healthy: Run) -> list[Output]:
    """Every output as the file has it."""
    found = []
    for binding in artifact.outputs:
        at = next(i for i, tensor in enumerate(healthy.backend.outputs) if tensor.name == binding.tensor)
        values = np.stack([np.asarray(one[at]) for one in healthy.raw]).astype(np.float64)
        found.append(Output(at, values, 1.0 if binding.quantization else step(values)))
    return found


def step(values: Array) -> float:
    """The step of a quantized output: the least gap, where so few values occur that it has one."""
    distinct = np.unique(values)
    few = 1 < len(distinct) <= LEVELS and len(distinct) * 4 <= values.size
    return float(np.diff(distinct).min()) if few else 0.0
