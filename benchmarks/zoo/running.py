"""Exports one zoo model by the product's own pipeline with plain options, then checks by bare engines what the export said.

A *silent failure* is an artifact that an export calls passed while the bare engine gives a number that is not finite, another
value of the same metric, or more than the budget lost of the zoo's own score.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

import edgeml.exporter
import edgeml.runtime
import edgeml.wire
from benchmarks.zoo.bare import first_answers
from benchmarks.zoo.recipe import Recipe
from benchmarks.zoo.samples import Samples
from benchmarks.zoo.training import make, source_answers
from edgeml.exporter.pipeline import Exported, export
from edgeml.exporter.plan import make_plan
from edgeml.exporter.report.structs import ArtifactReport
from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import open_bundle
from edgeml.wire.errors import EdgemlError
from edgeml.wire.manifest import Artifact

FORMATS: Final = "onnx,tflite,coreml"
PRECISIONS: Final = "fp32,fp16,int8"
BUDGET: Final = 1.0
SAME: Final = 0.1  # points that two computations of one metric may differ by: near-ties between batch sizes and kernels


@dataclass(slots=True)
class Cell:
    """One artifact: what the export said, and what the bare engine says (`own_…`, `None` where there is none).

    `kept_float` counts the operators that keep-float left in float, `repair` is its sentence; `None` if it was not needed.
    """

    format: str
    precision: str
    status: str
    bytes: int = 0
    metric: str | None = None
    source: float | None = None
    value: float | None = None
    drop: float | None = None
    upper95: float | None = None
    needed_n: int | None = None
    agreement: float | None = None
    max_abs: float | None = None
    rms: float | None = None
    own_drop: float | None = None
    error: str | None = None
    silent: str | None = None
    kept_float: int = 0
    repair: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Line:
    """One model's export."""

    model: str
    recipe: str
    code: str
    score: float
    chance: float
    parameters: int
    exit_code: int
    wall_s: float
    cells: list[Cell]
    error: str | None = None


def code_digest() -> str:
    """Of everything an export's result depends on in this checkout."""
    found = hashlib.sha256()
    for package in (edgeml.exporter, edgeml.runtime, edgeml.wire):
        root = Path(next(iter(package.__path__)))
        for path in sorted(root.rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def run(recipe: Recipe, *, formats: str = FORMATS, precisions: str = PRECISIONS, keep: Path | None = None) -> Line:
    """Export and check; the bundle goes into the folder `keep`, if there is one to keep."""
    facts, splits = make(recipe), recipe.splits()
    line = Line(recipe.name, recipe.digest(), code_digest(), facts["score"], recipe.chance, facts["parameters"], 0, 0.0, [])
    with tempfile.TemporaryDirectory(prefix="edgeml-zoo-") as out:
        started = time.monotonic()
        splits.calibrate.write(Path(out) / "calibrate.npz")
        splits.evaluate.write(Path(out) / "evaluate.npz")
        try:
            plan = make_plan(
                recipe.source, to=formats, precision=precisions, out=Path(out) / "made", calib=Path(out) / "calibrate.npz",
                evaluation=Path(out) / "evaluate.npz", max_drop=BUDGET, name=recipe.name,
                trust=recipe.trusted, metric=recipe.metric,
            )  # fmt: skip
            exported = export(plan)
        except EdgemlError as refusal:
            line.exit_code, line.error = refusal.exit_code, str(refusal)
            line.wall_s = round(time.monotonic() - started, 1)
            return line
        line.wall_s, line.exit_code = round(time.monotonic() - started, 1), exported.exit_code
        line.cells = [_cell(one) for one in exported.report.artifacts]
        _check(recipe, splits.evaluate, exported, line.cells)
        if keep is not None and exported.bundle is not None:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.move(exported.bundle, keep / f"{recipe.name}.edgeml")
    return line


def _cell(one: ArtifactReport) -> Cell:
    cell = Cell(one.format, one.precision, one.status, one.bytes, error=one.error, notes=list(one.notes))
    if one.repair is not None:
        cell.kept_float, cell.repair = one.repair.kept, one.repair.sentence
    if one.parity is not None:
        cell.agreement, cell.max_abs, cell.rms = one.parity.top1_agreement, one.parity.max_abs, one.parity.rms
    if one.task is not None:
        task = one.task
        cell.metric, cell.source, cell.value = task.metric, task.source_value, task.value
        cell.drop, cell.upper95, cell.needed_n = task.drop, task.upper95, task.needed_n
    return cell


def _check(recipe: Recipe, samples: Samples, exported: Exported, cells: list[Cell]) -> None:
    if exported.bundle is None:
        return
    source = source_answers(recipe)[0]
    before = recipe.score(source, samples, source)
    bundle = open_bundle(exported.bundle)
    packed: dict[tuple[str, str], Artifact] = {(one.format, one.precision): one for one in bundle.manifest.artifacts}
    for cell in cells:
        artifact = packed.get((cell.format, cell.precision))
        if artifact is None:
            continue
        got = first_answers(artifact, bundle.blob(artifact.sha256), samples)
        if got is None:
            continue
        got = got.reshape(source.shape)
        cell.own_drop = 100 * float(before.mean() - recipe.score(got, samples, source).mean())
        if cell.status == "pass":
            cell.silent = contradiction(cell, got, source, samples)


def contradiction(cell: Cell, got: Array, source: Array, samples: Samples) -> str | None:
    """Why the bare engine's answers speak against an artifact that was called passed."""
    if not np.isfinite(got).all():
        return "not finite"
    if cell.own_drop is not None and cell.own_drop > BUDGET:
        return f"the zoo's own score drops by {cell.own_drop:.2f} points"
    truth = samples.labels if cell.metric == "top1_accuracy" else source.reshape(len(source), -1).argmax(axis=1)
    if cell.metric in {"top1_accuracy", "top1_agreement"} and cell.value is not None:
        value = float((got.reshape(len(got), -1).argmax(axis=1) == truth).mean())
        if 100 * abs(value - cell.value) > SAME:
            return f"{cell.metric} is {value:.4f}, the export said {cell.value:.4f}"
    return None
