"""What became of each artifact that was asked for, in the words of reports, exit codes and people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.exporter.artifact import Judged
from edgeml.exporter.report.structs import ArtifactReport, Latency, Repair
from edgeml.exporter.source import SourceModel
from edgeml.runtime.bench.rounds import LEAST_FOR_P99
from edgeml.wire.errors import BudgetError, EdgemlError, EngineError, ParityError, UnsupportedError, WorkerError
from edgeml.wire.manifest import Format, Precision

LIBRARIES: Final[dict[Format, tuple[str, ...]]] = {
    "onnx": ("onnx", "onnxruntime"),
    "tflite": ("ai-edge-litert", "ai-edge-quantizer"),
    "coreml": ("coremltools",),
}


PLAIN: Final = (ParityError, UnsupportedError, EngineError, WorkerError)  # errors made of one sentence


@dataclass(frozen=True, slots=True)
class Made:
    """One artifact that was asked for: judged, or the error that stood in the way. `model` is its file."""

    format: Format
    precision: Precision
    judged: Judged | None
    model: Path | None
    error: EdgemlError | None
    repair: Repair | None = None
    warnings: tuple[str, ...] = ()  # of the quantization: what a person should look at

    def with_search(self, repair: Repair | None, sentence: str) -> Made:
        """With what came of a search for operators to leave float; an error says it, too."""
        error = self.error
        if error is not None:
            error = type(error)(
                error.what, expected=error.expected, got=error.got, hint=f"{sentence}; {error.hint or ''}".rstrip("; ")
            )
        return replace(self, error=error, repair=repair)

    @property
    def passed(self) -> bool:
        return self.judged is not None and self.judged.status != "fail" and self.error is None


def verdict_error(judged: Judged, budget: float | None) -> EdgemlError | None:
    where = f"{judged.artifact.format} {judged.artifact.precision}"
    if judged.artifact.parity.status == "fail":
        return ParityError(f"{where} is not the source: {judged.reason}")
    task = judged.artifact.task
    if judged.deferral == "fail":
        return BudgetError(f"{where}: {judged.reason}", hint="ask for less with --defer, or for a better cloud")
    if judged.status == "fail" and task is not None:
        return BudgetError(
            f"{where} loses {task.drop:.2f} points of {task.metric}",
            expected=f"at most {budget:g}",
            got=f"{task.drop:.2f} on {task.n} samples",
            hint=f"raise --max-drop (then `edgeml explain` shows the layers), or leave {judged.artifact.precision} out",
        )
    return None


def key_number(judged: Judged) -> str:
    artifact = judged.artifact
    words = [f"{artifact.bytes:,} bytes"]
    if judged.status == "fail" and judged.reason:
        return judged.reason
    if artifact.task is not None and artifact.precision != "fp32":
        words.append(f"{artifact.task.metric} drop {artifact.task.drop:+.2f} points, at most {artifact.task.upper95:.2f}")
    else:
        words.append(f"max error {artifact.parity.max_abs:.1e} of the range")
    return ", ".join(words)


def unmade(whole: Made) -> EdgemlError:
    """Why nothing is quantized from an fp32 artifact that failed: its own failure, with its own exit code."""
    error = whole.error
    assert error is not None, "what did not pass says why"
    return type(error)(f"not made, since {whole.format} fp32 failed: {error}") if type(error) in PLAIN else error


def no_way_back(stored: Precision, asked: Precision) -> UnsupportedError:
    """Why nothing of another precision is made from a file that was quantized before."""
    return UnsupportedError(
        f"the source's own numbers are {stored}; no {asked} form can be made from them",
        hint=f"export the float model that it was made from, or leave {asked} out of --precision",
    )


def artifact_report(made: Made) -> ArtifactReport:
    error = str(made.error) if made.error is not None else None
    if made.judged is None:
        return ArtifactReport(made.format, made.precision, "fail", error=error, packed=False, repair=made.repair)
    artifact = made.judged.artifact
    tolerances = [output.tolerance for output in artifact.golden.outputs] if artifact.golden else []
    return ArtifactReport(
        format=made.format, precision=made.precision, status=made.judged.status, bytes=artifact.bytes, sha256=artifact.sha256,
        precision_found=artifact.precision_found, engine=made.judged.engine, parity=artifact.parity, task=artifact.task,
        error=error, packed=made.passed, golden_tolerance=max(tolerances, default=None),
        latency=latency_of(made.judged.latency_s),
        inputs=artifact.inputs, outputs=artifact.outputs, ops=artifact.ops, notes=artifact.notes,
        deferral=artifact.deferral, deferral_reason=made.judged.reason if made.judged.deferral != "pass" else None,
        kept_float=artifact.kept_float, repair=made.repair, by_class=made.judged.by_class,
    )  # fmt: skip


def warnings_of(made: Sequence[Made]) -> tuple[str, ...]:
    """What quantizing warned of, each sentence once, after the artifacts it is about: `onnx int8, int16: …`."""
    about: dict[tuple[Format, str], list[Precision]] = {}
    for one in made:
        for warning in one.warnings:
            about.setdefault((one.format, warning), []).append(one.precision)
    return tuple(f"{format_} {', '.join(precisions)}: {text}" for (format_, text), precisions in about.items())


def latency_of(times: Sequence[float]) -> Latency:
    """The median lies between the k-th smallest and the k-th largest of n with 95 %, k = n / 2 - 0.98 sqrt(n).

    (David and Nagaraja, "Order Statistics", section 7.1.)
    """
    seconds, runs = sorted(times), len(times)
    rank = max(0, int(runs / 2 - 0.98 * math.sqrt(runs)) - 1)
    p50, p90 = (float(value) for value in np.quantile(seconds, [0.5, 0.9]))
    p99 = float(np.quantile(seconds, 0.99)) if runs >= LEAST_FOR_P99 else None
    return Latency(p50, p90, runs, p99_s=p99, low_s=seconds[rank], high_s=seconds[runs - 1 - rank])


def summary(made: Sequence[Made], *, packed: bool) -> str:
    good = sum(one.passed for one in made)
    failed = ", ".join(f"{one.format} {one.precision}" for one in made if not one.passed)
    if not failed:
        agree = f"All {good} artifacts agree with the source" if good > 1 else "The artifact agrees with the source"
        unsure = [f"{one.format} {one.precision}" for one in made if one.judged is not None and one.judged.status != "pass"]
        return f"{agree}; too few samples to be sure of {', '.join(unsure)}." if unsure else f"{agree}."
    if not packed:
        return f"No artifact passed, so no bundle was written; failed: {failed}."
    return f"{good} of {len(made)} artifacts are in the bundle; failed: {failed}."


def exit_code(made: Sequence[Made]) -> int:
    """The gravest first: a wrong result (3), a missed budget (4), no converter (5), this machine (6)."""
    return min((one.error.exit_code for one in made if one.error is not None), default=0)


def libraries(model: SourceModel, formats: Sequence[Format]) -> dict[str, str]:
    found = dict(model.libraries)
    for package in ("edgeml-toolkit", "numpy", *(name for format_ in formats for name in LIBRARIES[format_])):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))
