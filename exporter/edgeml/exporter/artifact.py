"""One artifact: quantized from its fp32 form, run through the device's own session, compared, scored.

The jobs of a format's worker.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.calibrate.stored import map_arrays
from edgeml.exporter.contents import contents
from edgeml.exporter.free import FreeAxis
from edgeml.exporter.golden import ModelFile, make_golden
from edgeml.exporter.metric import AUTO, Metric
from edgeml.exporter.parity import FLOAT_LIMIT, TaskKind, answers, bind, compare, score
from edgeml.exporter.parity.classes import ClassEvidence, class_evidence
from edgeml.exporter.parity.deferral import defer
from edgeml.exporter.plan import DeferGoal
from edgeml.exporter.precision import CALIBRATED, INTEGERS, Ranges
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.reference import answer_counts
from edgeml.exporter.report.structs import verdict_of
from edgeml.exporter.resized import check_sizes, check_stacked, describe_free, refuse_fixed
from edgeml.exporter.samples import Samples, make_samples
from edgeml.exporter.source.model import names, read_arrays
from edgeml.runtime.backends import Array, EngineOptions, OpenBackend, opener
from edgeml.runtime.session import Session
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.errors import EdgemlError, PlanError
from edgeml.wire.manifest import (
    Artifact,
    Binding,
    Format,
    KeptFloat,
    Parity,
    PostProcessing,
    Precision,
    Requirement,
    Signature,
    Status,
    Task,
    Where,
)

LATENCY_RUNS: Final = 50
WARM_RUNS: Final = 5
WRONG_KERNELS: Final = "are {:.1f} times as far from the source as its default ones on this file: golden vectors refuse them"


class Trial(msgspec.Struct, frozen=True):
    """What every artifact of one export is judged by. `samples` and `reference` are .npz files by position."""

    signature: Signature
    samples: str
    reference: str
    labels: str | None
    data: Literal["eval", "calibration"]
    task: TaskKind
    scores: str | None  # the output with class scores
    golden: tuple[int, ...]
    budget: float | None
    calibration: str | None = None
    metric: Metric = AUTO
    chances: int = 1  # of being packed that this artifact is one of, see `score`
    post: PostProcessing | None = None  # of the source's own answers
    defer: DeferGoal | None = None
    whole: bool = False  # int8 of TFLite computes nothing in float, as microcontrollers want it
    steps: int = 1  # consecutive samples that are one sequence
    second: tuple[str, str] | None = None  # inputs and the source's outputs with named axes of another size
    free: tuple[FreeAxis, ...] = ()  # that artifacts of every format must have


class Judged(msgspec.Struct, frozen=True):
    """An artifact that could be run; `status` is the verdict on it, `deferral` the part of it that `--defer` asked for."""

    artifact: Artifact
    status: Status
    engine: str
    latency_s: tuple[float, ...]
    reason: str | None = None
    deferral: Status = "pass"
    by_class: ClassEvidence | None = None


def warm_engine(*, format: Format) -> None:  # noqa: A002 - the field's word
    """Job: import what judges the format, while the source is being loaded."""
    _open(format)


def warm_tools(*, format: Format) -> None:  # noqa: A002 - the field's word
    """Job: import what quantizes the format, if that takes long."""
    if format == "coreml":
        from edgeml.exporter.convert.coreml import coremltools

        coremltools()


def judge(
    *,
    trial: dict[str, Any],
    format: Format,  # noqa: A002 - the field's word
    precision: Precision,
    model: str,
    blobs: str,
    notes: list[str],
    kept_float: list[Any] | None = None,
) -> Any:
    """Job: `Judged` of a model file; its golden vectors are written to the folder `blobs` by sha256.

    Raises:
        ParityError: its tensors are not the source's, or a batch is answered differently from its samples.
        EngineError, UnsupportedError: the engine cannot run it.
    """
    asked = msgspec.convert(trial, Trial)
    data = Path(model).read_bytes()
    samples = _samples(asked)
    reference = read_arrays(asked.reference, names(asked.signature.outputs))
    open_backend, where = _open(format)
    backend = open_backend(data, EngineOptions())
    bindings = bind(backend, asked.signature, samples.inputs, reference)
    file = ModelFile(data, format, *bindings, open_backend)
    with Session(asked.signature, *bindings, backend) as session:
        engine = f"{backend.engine} {backend.version}"
        got = answers(session.run, samples, asked.signature)
        latency = _latency(session, samples, asked.signature)
        refuse_fixed(asked.signature, bindings[0], asked.free)
        notes = [*notes, *describe_free(asked.free)]
        if precision == "fp32":
            check_stacked(session, samples, got, asked.free)
        notes += _resized(session, asked, bindings[0], precision)
        parity = compare(
            reference, got, task=asked.task, where=where, limit=FLOAT_LIMIT, precision=precision, scores=asked.scores,
            exact=_exact(file, samples, asked.signature) if precision in INTEGERS and format != "coreml" else None,
        )  # fmt: skip
        if asked.free and precision not in {"fp32", "int8-dynamic"}:  # where one range is for the whole call
            check_stacked(session, samples, got, asked.free, max(parity.max_abs, FLOAT_LIMIT))
    found, operators = contents(format, data)
    artifact = Artifact(
        format=format, precision=precision, precision_found=found, sha256=sha256_hex(data), bytes=len(data),
        requires=Requirement(backend.engine if where == "verified" else "coreml"), inputs=bindings[0], outputs=bindings[1],
        parity=parity, ops=operators, notes=tuple(notes), kept_float=msgspec.convert(kept_float or [], tuple[KeptFloat, ...]),
    )  # fmt: skip
    if parity.status == "fail":
        return msgspec.to_builtins(Judged(artifact, "fail", engine, latency, parity.reason))
    budget = None if precision == "fp32" else asked.budget  # equal to the source up to rounding: nothing to bound
    task = score(
        reference, got, samples.labels, task=asked.task, budget=budget, data=asked.data, scores=asked.scores,
        metric=asked.metric, chances=asked.chances,
    )  # fmt: skip
    golden, vectors, wrong = make_golden(
        file, samples, asked.golden, asked.signature, scores=asked.scores, precision=precision, source=reference
    )
    notes += [f"{backend.engine}'s {kernels!r} kernels {WRONG_KERNELS.format(times)}" for kernels, times in wrong.items()]
    for digest, content in vectors.items():
        (Path(blobs) / digest).write_bytes(content)
    artifact = msgspec.structs.replace(artifact, task=task, golden=golden, notes=tuple(notes))
    by_class = None
    if asked.scores is not None and precision != "fp32":
        by_class = class_evidence(reference[asked.scores], got[asked.scores], samples.labels, budget)
    if asked.post is None:
        return msgspec.to_builtins(Judged(artifact, task.status, engine, latency, by_class=by_class))
    deferred = defer(asked.post, reference, got, samples.labels, asked.defer)
    own = msgspec.structs.replace(asked.post, temperature=deferred.deferral.temperature)
    confidence, classes = answer_counts(asked.post, reference, own, got)
    artifact = msgspec.structs.replace(artifact, deferral=deferred.deferral, confidence=confidence, classes=classes)
    status = verdict_of([task.status, deferred.status])
    return msgspec.to_builtins(Judged(artifact, status, engine, latency, deferred.reason, deferred.status, by_class))


def look(trial: Trial, format_: Format, precision: Precision, model: bytes) -> tuple[Parity, Task | None]:
    """What `judge` finds of values and the budget, and nothing else; no task where values fail.

    Raises:
        ParityError, EngineError, UnsupportedError: it cannot be run, or its tensors are not the source's.
    """
    samples, reference = _samples(trial), read_arrays(trial.reference, names(trial.signature.outputs))
    open_backend, where = _open(format_)
    backend = open_backend(model, EngineOptions())
    bindings = bind(backend, trial.signature, samples.inputs, reference)
    with Session(trial.signature, *bindings, backend) as session:
        got = answers(session.run, samples, trial.signature)
    parity = compare(
        reference, got, task=trial.task, where=where, limit=FLOAT_LIMIT, precision=precision, scores=trial.scores
    )  # fmt: skip
    if parity.status == "fail":
        return parity, None
    return parity, score(
        reference, got, samples.labels, task=trial.task, budget=trial.budget, data=trial.data, scores=trial.scores,
        metric=trial.metric, chances=trial.chances,
    )  # fmt: skip


def best_case(*, trial: dict[str, Any]) -> Status:
    """Job: the verdict on an artifact that answers just as the source does: what these samples can prove at best."""
    asked = msgspec.convert(trial, Trial)
    reference, labels = read_arrays(asked.reference, names(asked.signature.outputs)), _samples(asked).labels
    return score(
        reference, reference, labels, task=asked.task, budget=asked.budget, scores=asked.scores, metric=asked.metric,
        chances=asked.chances,
    ).status  # fmt: skip


def rehearse(*, trial: dict[str, Any]) -> None:
    """Job: score the source by the metric that was asked for, so that one which cannot be computed shows before the work.

    Raises:
        PlanError: it cannot.
    """
    asked = msgspec.convert(trial, Trial)
    reference, labels = read_arrays(asked.reference, names(asked.signature.outputs)), _samples(asked).labels
    score(reference, reference, labels, task=asked.task, budget=None, scores=asked.scores, metric=asked.metric)


def quantize(
    *,
    trial: dict[str, Any],
    format: Format,  # noqa: A002 - the field's word
    precision: Precision,
    model: str,
    out: str,
    inputs: list[Any],
    ranges: Ranges = "auto",
) -> dict[str, list[str]]:
    """Job: write a smaller form of an fp32 model; gives notes and warnings. `inputs` are the fp32 model's bindings."""
    asked = msgspec.convert(trial, Trial)
    feeds = feeds_of(asked, msgspec.convert(inputs, tuple[Binding, ...]))
    if feeds is None and precision in CALIBRATED[format]:
        raise PlanError(f"{precision} without calibration samples", hint="give --calib")
    quantized = _smaller(format, whole=asked.whole)(Path(model).read_bytes(), precision, feeds, ranges)
    Path(out).write_bytes(quantized.model)
    return {"notes": list(quantized.notes), "warnings": list(quantized.warnings)}


def _smaller(format_: Format, *, whole: bool) -> Callable[[bytes, Precision, Feeds | None, Ranges], Quantized]:
    if format_ == "onnx":
        from edgeml.exporter.quantize.onnx import smaller_onnx

        return smaller_onnx
    if format_ == "tflite":
        from edgeml.exporter.quantize.tflite import smaller_tflite

        return partial(smaller_tflite, whole=whole)
    from edgeml.exporter.quantize.coreml import smaller_coreml

    return smaller_coreml


def _open(format_: Format) -> tuple[OpenBackend, Where]:
    """The engine that judges a format here, and what its word is worth."""
    if format_ == "coreml" and platform.system() != "Darwin":
        from edgeml.exporter.mil.backend import open_mil

        return open_mil, "emulated"
    return opener(format_), "verified"


def _samples(trial: Trial) -> Samples:
    inputs = read_arrays(trial.samples, names(trial.signature.inputs))
    labels = None if trial.labels is None else np.load(trial.labels, allow_pickle=False)
    return make_samples(inputs, labels, steps=trial.steps)


def feeds_of(trial: Trial, bindings: tuple[Binding, ...]) -> Feeds | None:
    """Calibration samples by the model's own tensor names and order of axes: (n, ...) without the batch axis of 1."""
    if trial.calibration is None:
        return None
    samples = map_arrays(trial.calibration, names(trial.signature.inputs))
    specs = {spec.name: spec for spec in trial.signature.inputs}
    feeds = {}
    for binding in bindings:
        values = samples[binding.name]
        if binding.permute is not None:
            stacked = specs[binding.name].has_batch
            order = [axis if stacked else axis + 1 for axis in binding.permute]
            values = values.transpose(order if stacked else [0, *order])
        feeds[binding.tensor] = values
    return feeds


def _exact(file: ModelFile, samples: Samples, signature: Signature) -> Mapping[str, Array] | None:
    """Outputs by kernels without shortcuts, so that kernel error is told from quantization error."""
    try:
        with file.session(signature, "exact") as session:
            return answers(session.run, samples, signature)
    except EdgemlError:
        return None  # kernels that cannot run it have no error to tell apart


def _resized(session: Session, trial: Trial, inputs: tuple[Binding, ...], precision: Precision) -> list[str]:
    if trial.second is None:
        return []
    given = make_samples(read_arrays(trial.second[0], names(trial.signature.inputs)))
    wanted = read_arrays(trial.second[1], names(trial.signature.outputs))
    return check_sizes(session, inputs, given, wanted, FLOAT_LIMIT if precision == "fp32" else None)


def _latency(session: Session, samples: Samples, signature: Signature) -> tuple[float, ...]:
    feed = next(iter(samples.feeds(signature)))
    for _ in range(WARM_RUNS):
        session.run(feed)
    seconds = []
    for _ in range(LATENCY_RUNS):
        start = time.perf_counter()
        session.run(feed)
        seconds.append(time.perf_counter() - start)
    return tuple(seconds)
