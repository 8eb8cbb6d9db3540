"""The whole export on one screen: load, convert, run through the device's own session, compare, quantize, judge, pack, report."""

from __future__ import annotations

import datetime
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeml.exporter.artifact import Judged, Trial
from edgeml.exporter.data import Data, read_data
from edgeml.exporter.golden import golden_inputs, pick
from edgeml.exporter.pack import pack
from edgeml.exporter.parity import class_output, detect_task, post_processing
from edgeml.exporter.parity.metrics import class_scores
from edgeml.exporter.plan import ExportPlan
from edgeml.exporter.progress import Progress, Silent
from edgeml.exporter.reference import make_reference
from edgeml.exporter.report.structs import ArtifactReport, Latency, Report, Stage, verdict_of
from edgeml.exporter.report.write import write_report
from edgeml.exporter.source import SourceModel, SourceRef, locate
from edgeml.exporter.source.model import names, read_arrays, write_arrays
from edgeml.exporter.worker import Worker
from edgeml.runtime.backends import Array
from edgeml.wire.errors import BudgetError, EdgemlError, ParityError, PlanError
from edgeml.wire.manifest import SCHEMA, Format, Manifest, PostProcessing, Precision, SourceFile

JOBS: Final = "edgeml.exporter"
ORDER: Final[tuple[Format, ...]] = ("tflite", "onnx", "coreml")  # of conversion: Core ML's imports take longest
LIBRARIES: Final[dict[Format, tuple[str, ...]]] = {
    "onnx": ("onnx", "onnxruntime"),
    "tflite": ("ai-edge-litert", "ai-edge-quantizer"),
    "coreml": ("coremltools",),
}


@dataclass(frozen=True, slots=True)
class Made:
    """One artifact that was asked for: judged, or the error that stood in the way. `model` is its file."""

    format: Format
    precision: Precision
    judged: Judged | None
    model: Path | None
    error: EdgemlError | None

    @property
    def passed(self) -> bool:
        return self.judged is not None and self.judged.status != "fail" and self.error is None


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of an export. `bundle` is `None` if nothing passed; `exit_code` is 0 only if everything asked for passed."""

    report: Report
    bundle: Path | None
    reports: tuple[Path, ...]
    exit_code: int


def export(plan: ExportPlan, progress: Progress | None = None, *, command: str = "") -> Exported:
    """Run a plan. The bundle and the reports appear in `plan.out` whole or not at all.

    Raises:
        EdgemlError: the source or the samples cannot be used; nothing was written.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeml-export-")))
        run = _Run(plan, folder, progress or Silent(), stack)
        model = run.read_source()
        data = read_data(plan, model.signature)
        outputs = run.reference(model, data)
        task = plan.task if plan.task != "auto" else detect_task(data.judging, outputs)
        post = post_processing(outputs, task)
        trial = run.trial(model, data, outputs, task, post)
        made = run.artifacts(trial)
        manifest = run.manifest(model, data, outputs, post, trial, made)
        return run.write(model, data, manifest, trial, made, command)


class _Run:
    """One export under way: its workers, its folder, its clock."""

    def __init__(self, plan: ExportPlan, folder: Path, progress: Progress, stack: ExitStack) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        self.stages: list[Stage] = []
        (folder / "blobs").mkdir()
        example = plan.calib or plan.evaluation
        self.ref = locate(plan.source, trust=plan.trust, example=str(example) if example else None, seed=plan.seed)
        self.source = stack.enter_context(_source_worker(self.ref, folder, plan.time_limit_s))
        self.judges = {
            format_: stack.enter_context(
                Worker(format_, folder, blocked=("tensorflow", "tf_keras"), time_limit_s=plan.time_limit_s)
            )
            for format_ in plan.formats
        }
        self.lanes = ThreadPoolExecutor(len(plan.formats))
        stack.callback(self.lanes.shutdown, wait=True, cancel_futures=True)

    def read_source(self) -> SourceModel:
        """The source's description; the formats' engines are imported meanwhile."""
        for format_, worker in self.judges.items():
            self.lanes.submit(_warm, worker, format_)
        with self.step("read the source") as step:
            described = self.source.call(f"{JOBS}.source.{self.ref.family}:describe", source=msgspec.to_builtins(self.ref))
            model = msgspec.convert(described, SourceModel)
            step.note = f"{model.kind}, {model.bytes:,} bytes"
        return model

    def reference(self, model: SourceModel, data: Data) -> dict[str, Array]:
        """The source's outputs for the samples that judge.

        Raises:
            ParityError: they are not finite, so there is nothing to agree with.
        """
        with self.step("run the source") as step:
            write_arrays(self.folder / "judging.npz", [data.judging.inputs[name] for name in names(model.signature.inputs)])
            self.source.call(
                f"{JOBS}.source.{self.ref.family}:reference",
                source=msgspec.to_builtins(self.ref),
                inputs=str(self.folder / "judging.npz"),
                outputs=str(self.folder / "reference.npz"),
            )
            outputs = read_arrays(self.folder / "reference.npz", names(model.signature.outputs))
            for name, values in outputs.items():
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    bad = int(np.argwhere(~np.isfinite(values))[0][0])
                    raise ParityError(
                        f"output {name!r} of the source itself is not finite for sample {bad}", hint="check the samples' scale"
                    )
            step.note = f"{len(data.judging)} samples"
        return outputs

    def trial(
        self, model: SourceModel, data: Data, outputs: Mapping[str, Array], task: str, post: PostProcessing | None
    ) -> Trial:
        calibration = labels = None
        if data.calibration is not None:
            calibration = str(self.folder / "calibration.npz")
            write_arrays(calibration, [data.calibration.inputs[name] for name in names(model.signature.inputs)])
        if data.judging.labels is not None:
            labels = str(self.folder / "labels.npy")
            np.save(labels, data.judging.labels)
        scores = class_output(outputs) if task == "classify" else None
        if task == "classify" and scores is None:
            raise PlanError("--task classify: no output holds a score per class", hint="use --task regress")
        found = class_scores(outputs[scores]) if scores is not None else None
        golden = pick(data.judging, None if found is None else found.argmax(axis=1), seed=self.plan.seed)
        return Trial(
            signature=model.signature, samples=str(self.folder / "judging.npz"), reference=str(self.folder / "reference.npz"),
            labels=labels, data="eval" if data.evaluation is not None else "calibration",
            task="classify" if task == "classify" else "regress", scores=scores, golden=golden, budget=self.plan.max_drop,
            calibration=calibration,
        )  # fmt: skip

    def artifacts(self, trial: Trial) -> list[Made]:
        """Every artifact that was asked for, in the plan's order. Conversions queue, since one process holds the source."""
        with ThreadPoolExecutor(1) as source:
            ordered = [format_ for format_ in ORDER if format_ in self.plan.formats]
            converted = {format_: source.submit(self._convert, format_) for format_ in ordered}
            lanes = {format_: self.lanes.submit(self._lane, format_, converted[format_], trial) for format_ in ordered}
            return [made for format_ in self.plan.formats for made in lanes[format_].result()]

    def _convert(self, format_: Format) -> tuple[Path, list[str]]:
        out = self.folder / f"fp32.{format_}"
        with self.step(f"{format_} convert") as step:
            notes = self.source.call(
                f"{JOBS}.convert.{format_}:from_{self.ref.family}", source=msgspec.to_builtins(self.ref), out=str(out)
            )
            step.note = f"{out.stat().st_size:,} bytes"
        return out, list(notes or ())

    def _lane(self, format_: Format, converted: Future[tuple[Path, list[str]]], trial: Trial) -> list[Made]:
        """One format, from fp32 to the smallest precision. A failure leaves the others standing."""
        try:
            model, notes = converted.result()
        except EdgemlError as error:
            return [Made(format_, precision, None, None, error) for precision in self.plan.precisions]
        whole = self._judge(format_, "fp32", model, notes, trial)
        made = [whole]
        for precision in self.plan.precisions:
            if precision == "fp32":
                continue
            if not whole.passed or whole.judged is None:
                error = ParityError(f"{format_} {precision} is made from fp32, which failed: {_reason(whole)}")
                made.append(Made(format_, precision, None, None, error))
                continue
            made.append(self._quantized(format_, precision, model, whole.judged, trial))
        return [one for one in made if one.precision in self.plan.precisions]

    def _quantized(self, format_: Format, precision: Precision, model: Path, whole: Judged, trial: Trial) -> Made:
        out = self.folder / f"{precision}.{format_}"
        try:
            with self.step(f"{format_} {precision} make") as step:
                notes = self.judges[format_].call(
                    f"{JOBS}.artifact:quantize",
                    trial=msgspec.to_builtins(trial), format=format_, precision=precision, model=str(model), out=str(out),
                    inputs=msgspec.to_builtins(whole.artifact.inputs),
                )  # fmt: skip
                step.note = f"{out.stat().st_size:,} bytes"
        except EdgemlError as error:
            return Made(format_, precision, None, None, error)
        return self._judge(format_, precision, out, list(notes), trial)

    def _judge(self, format_: Format, precision: Precision, model: Path, notes: list[str], trial: Trial) -> Made:
        try:
            with self.step(f"{format_} {precision}") as step:
                reply = self.judges[format_].call(
                    f"{JOBS}.artifact:judge",
                    trial=msgspec.to_builtins(trial), format=format_, precision=precision, model=str(model),
                    blobs=str(self.folder / "blobs"), notes=notes,
                )  # fmt: skip
                judged = msgspec.convert(reply, Judged)
                step.outcome, step.note = judged.status, _key_number(judged)
        except EdgemlError as error:
            return Made(format_, precision, None, None, error)
        return Made(format_, precision, judged, model, _verdict_error(judged, self.plan))

    def manifest(
        self, model: SourceModel, data: Data, outputs: Mapping[str, Array], post: PostProcessing | None, trial: Trial, made: Sequence[Made]
    ) -> Manifest | None:
        """What the bundle promises; `None` if no artifact passed."""
        packed = [one.judged.artifact for one in made if one.passed and one.judged is not None]
        if not packed:
            return None
        golden = golden_inputs(data.judging, trial.golden)
        for digest, content in golden.blobs.items():
            (self.folder / "blobs" / digest).write_bytes(content)
        return Manifest(
            schema=SCHEMA, name=self.plan.name, version=self.plan.version, signature=model.signature,
            source=SourceFile(model.kind, model.sha256, model.bytes),
            exporter=_libraries(model, self.plan.formats), options=self.plan.options(), seed=self.plan.seed,
            artifacts=tuple(packed), golden_inputs=golden.tensors, task=trial.task,
            labels=self.plan.labels or model.labels, post=post,
            calibration=data.calibration.describe(data.evaluation) if data.calibration else None,
            evaluation=data.evaluation.describe(data.calibration) if data.evaluation else None,
            reference=make_reference(data.judging, outputs, post), metadata=model.metadata,
        )  # fmt: skip

    def write(
        self, model: SourceModel, data: Data, manifest: Manifest | None, trial: Trial, made: Sequence[Made], command: str
    ) -> Exported:
        """Bundle and reports, first in the work folder, then moved."""
        place = self.folder / "out"
        place.mkdir()
        bundle, digest, size = None, "", 0
        if manifest is not None:
            with self.step("pack the bundle") as step:
                blobs = {path.name: path.read_bytes() for path in (self.folder / "blobs").iterdir()}
                for one in made:
                    if one.passed and one.judged is not None and one.model is not None:
                        blobs[one.judged.artifact.sha256] = one.model.read_bytes()
                bundle = place / self.plan.bundle.name
                digest = pack(manifest, blobs, bundle)
                size = bundle.stat().st_size
                step.note = f"{size:,} bytes"
        artifacts = tuple(_report(one) for one in made)
        verdict = verdict_of([artifact.status for artifact in artifacts])
        report = Report(
            name=self.plan.name, version=self.plan.version, verdict=verdict, summary=_summary(made, bundle is not None),
            artifacts=artifacts, source=SourceFile(model.kind, model.sha256, model.bytes),
            source_name=Path(self.plan.source.rpartition(":")[0] or self.plan.source).name, task=trial.task,
            signature=model.signature, bundle=bundle.name if bundle else None, bundle_bytes=size, digest=digest,
            labels=self.plan.labels or model.labels,
            calibration=data.calibration.describe(data.evaluation) if data.calibration else None,
            evaluation=data.evaluation.describe(data.calibration) if data.evaluation else None,
            golden_samples=len(trial.golden), budget=self.plan.max_drop,
            environment={"machine": platform.machine(), "python": platform.python_version(), **_libraries(model, self.plan.formats)},
            options=self.plan.options(), notes=(*data.notes, *model.notes), stages=tuple(self.stages),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), command=command,
        )  # fmt: skip
        reports = write_report(report, place)
        self.plan.out.mkdir(parents=True, exist_ok=True)
        moved = {path: Path(shutil.move(path, self.plan.out / path.name)) for path in sorted(place.iterdir())}
        return Exported(report, moved.get(bundle) if bundle else None, tuple(moved[path] for path in reports), _exit_code(made))

    def step(self, name: str) -> _Step:
        return _Step(name, self.progress, self.stages)


class _Step:
    """A timed step that tells the progress how it ended; an error ends it as failed and goes on."""

    def __init__(self, name: str, progress: Progress, stages: list[Stage]) -> None:
        self.name, self.note = name, ""
        self.outcome: str = "done"
        self._progress, self._stages = progress, stages
        self._started = 0.0

    def __enter__(self) -> _Step:
        self._started = time.monotonic()
        self._progress.begin(self.name)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stages.append(Stage(self.name, round(time.monotonic() - self._started, 3)))
        if error is not None:
            self._progress.end(self.name, "fail", str(error))
        else:
            self._progress.end(self.name, self.outcome, self.note)  # type: ignore[arg-type]


def _source_worker(ref: SourceRef, folder: Path, time_limit_s: float) -> Worker:
    legacy = ref.kind in {"keras-h5", "savedmodel"}
    blocked = ("torch", "litert_torch") if ref.family == "tensorflow" else ("tensorflow", "tf_keras", "keras")
    environment = {"TF_USE_LEGACY_KERAS": "1"} if legacy else {}
    return Worker("source", folder, environment=environment, blocked=blocked, time_limit_s=time_limit_s)


def _warm(worker: Worker, format_: Format) -> None:
    try:
        worker.call(f"{JOBS}.artifact:warm", format=format_)
    except EdgemlError:
        return  # the first artifact meets the same error and reports it


def _verdict_error(judged: Judged, plan: ExportPlan) -> EdgemlError | None:
    where = f"{judged.artifact.format} {judged.artifact.precision}"
    if judged.artifact.parity.status == "fail":
        return ParityError(f"{where} is not the source: {judged.reason}")
    task = judged.artifact.task
    if judged.status == "fail" and task is not None:
        return BudgetError(
            f"{where} loses {task.drop:.2f} points of {task.metric}",
            expected=f"at most {plan.max_drop:g}",
            got=f"{task.drop:.2f} on {task.n} samples",
            hint="raise --max-drop, or leave it out",
        )
    return None


def _key_number(judged: Judged) -> str:
    artifact = judged.artifact
    words = [f"{artifact.bytes:,} bytes"]
    if judged.status == "fail" and judged.reason:
        return judged.reason
    if artifact.task is not None and artifact.precision != "fp32":
        words.append(f"{artifact.task.metric} drop {artifact.task.drop:+.2f} points, at most {artifact.task.upper95:.2f}")
    else:
        words.append(f"max error {artifact.parity.max_abs:.1e} of the range")
    return ", ".join(words)


def _reason(made: Made) -> str:
    return str(made.error) if made.error is not None else "no verdict"


def _report(made: Made) -> ArtifactReport:
    error = str(made.error) if made.error is not None else None
    if made.judged is None:
        return ArtifactReport(made.format, made.precision, "fail", error=error, packed=False)
    artifact, seconds = made.judged.artifact, sorted(made.judged.latency_s)
    tolerances = [output.tolerance for output in artifact.golden.outputs] if artifact.golden else []
    return ArtifactReport(
        format=made.format, precision=made.precision, status=made.judged.status, bytes=artifact.bytes, sha256=artifact.sha256,
        precision_found=artifact.precision_found, engine=made.judged.engine, parity=artifact.parity, task=artifact.task,
        error=error, packed=made.passed, golden_tolerance=max(tolerances, default=None),
        latency=Latency(float(np.quantile(seconds, 0.5)), float(np.quantile(seconds, 0.9)), len(seconds)),
        inputs=artifact.inputs, outputs=artifact.outputs, ops=artifact.ops, notes=artifact.notes,
    )  # fmt: skip


def _summary(made: Sequence[Made], packed: bool) -> str:
    good = sum(one.passed for one in made)
    failed = [f"{one.format} {one.precision}" for one in made if not one.passed]
    if not failed:
        return f"All {good} artifacts agree with the source."
    return f"{good} of {len(made)} artifacts are {'in the bundle' if packed else 'good, no bundle was written'}; failed: {', '.join(failed)}."


def _exit_code(made: Sequence[Made]) -> int:
    """The gravest first: a wrong result (3), a missed budget (4), no converter (5), this machine (6)."""
    return min((one.error.exit_code for one in made if one.error is not None), default=0)


def _libraries(model: SourceModel, formats: Sequence[Format]) -> dict[str, str]:
    found = dict(model.libraries)
    for package in ("edgeml-toolkit", "numpy", *(name for format_ in formats for name in LIBRARIES[format_])):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))
