"""Two models on the same samples: opened, fed, traced, compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeml.exporter.layers.difference import Difference, difference
from edgeml.exporter.layers.explain import Explanation, explained
from edgeml.exporter.layers.feeding import calls_for, samples_for
from edgeml.exporter.layers.open import open_model
from edgeml.exporter.layers.subject import Subject
from edgeml.exporter.layers.trace import Model, Trace, first
from edgeml.exporter.parity.metrics import spread
from edgeml.runtime.backends import Array, EngineOptions, opener
from edgeml.wire.errors import EdgemlError


@dataclass(frozen=True, slots=True)
class Compared:
    """`a` is the reference. `samples` says in words what both were fed."""

    names: tuple[str, str]
    a: Trace
    b: Trace
    model_b: Model
    found: Difference
    samples: str


def compare_subjects(a: Subject, b: Subject, input_: Path | None) -> Compared:
    """Trace both and compare.

    Raises:
        EdgemlError: a model that cannot be run, samples that do not fit.
    """
    model_a, model_b = open_model(a.format, a.data), open_model(b.format, b.data)
    samples, words = samples_for((a, b), model_a.inputs, input_)
    calls = calls_for(b, model_b.inputs, samples)
    trace_a, trace_b = model_a.trace(calls_for(a, model_a.inputs, samples)), model_b.trace(calls)
    count = min(len(next(iter(trace.values.values()))) for trace in (trace_a, trace_b))
    trace_a, trace_b = first(trace_a, count), first(trace_b, count)
    found = difference(trace_a, trace_b, kernel_error(b, calls[:count], trace_b))
    return Compared((a.name, b.name), trace_a, trace_b, model_b, found, words)


def explain_subjects(subject: Subject, whole: Subject | None, input_: Path | None) -> Explanation:
    """Explain a model; against `whole`, the fp32 artifact of its bundle, if there is one."""
    artifact = subject.artifact
    notes = artifact.notes if artifact is not None else ()
    kernel = artifact.parity.kernel_max_abs if artifact is not None else None
    if whole is None or whole.data == subject.data:
        model = open_model(subject.format, subject.data)
        return explained(subject.name, model.operators, kernel_max_abs=kernel, notes=notes)
    compared = compare_subjects(whole, subject, input_)
    return explained(
        subject.name, compared.model_b.operators, compared.found, kept=artifact.kept_float if artifact is not None else (),
        against=whole.name, outputs=compared.b.outputs, kernel_max_abs=kernel, notes=notes,
    )  # fmt: skip


def kernel_error(subject: Subject, calls: Sequence[Sequence[Array]], trace: Trace) -> float | None:
    """How far a device's kernels here are from the plain ones, in units of the output's range; `None`: they do not run."""
    if subject.format == "coreml":
        return None
    try:
        backend = opener(subject.format)(subject.data, EngineOptions())
        runs = [backend.run(tensors) for tensors in calls]
    except EdgemlError:
        return None
    worst = 0.0
    for position, raw in enumerate(backend.outputs):
        if raw.name not in trace.values:
            continue
        got = np.stack([run[position] for run in runs]).astype(np.float64)
        if raw.quantization is not None:
            got = (got - raw.quantization.zero_point) * raw.quantization.scale
        plain = trace.values[raw.name].astype(np.float64)
        worst = max(worst, float(np.abs(got - plain).max()) / spread(plain))
    return worst
