"""The whole export: load, convert, run through the device's own session, compare, quantize, judge, pack, report."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeml.exporter.artifact import Trial
from edgeml.exporter.axes import Ask, at_another_size, free_sizes
from edgeml.exporter.cache import Cache, default_cache
from edgeml.exporter.data import Data, read_data
from edgeml.exporter.extras import require
from edgeml.exporter.free import settle_free
from edgeml.exporter.golden import golden_inputs, pick
from edgeml.exporter.lane import JOBS, Lane, from_cache
from edgeml.exporter.lifeline import work_folder
from edgeml.exporter.metric import CLASSES, VALUES
from edgeml.exporter.outcome import Made, artifact_report, exit_code, libraries, summary, warnings_of
from edgeml.exporter.pack import check_folder, move_all, pack
from edgeml.exporter.parity import TaskKind, class_output, detect_task, score
from edgeml.exporter.parity.deferral import check_goal, source_post
from edgeml.exporter.parity.metrics import class_scores
from edgeml.exporter.plan import ExportPlan
from edgeml.exporter.progress import Progress, Silent
from edgeml.exporter.reference import make_reference
from edgeml.exporter.report.structs import Report, Stage, verdict_of
from edgeml.exporter.report.write import write_report
from edgeml.exporter.sequences import run_sequences, with_states
from edgeml.exporter.source import SourceModel, SourceRef, locate
from edgeml.exporter.source.model import check_signature, fingerprint, names, read_arrays, write_arrays
from edgeml.exporter.step import Step
from edgeml.exporter.worker import Limits, Worker
from edgeml.runtime.backends import Array
from edgeml.wire.errors import EdgemlError, EnvironmentProblem, ParityError, PlanError
from edgeml.wire.manifest import SCHEMA, Format, Manifest, PostProcessing, Precision, SourceFile

ORDER: Final[tuple[Format, ...]] = ("tflite", "onnx", "coreml")  # of conversion: Core ML's imports take longest


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of an export. `bundle` is `None` if nothing passed; `exit_code` is 0 only if everything asked for passed."""

    report: Report
    bundle: Path | None
    reports: tuple[Path, ...]
    exit_code: int


@dataclass(frozen=True, slots=True)
class Subject:
    """The source as every later step sees it: what it is, its samples, and what it answers to those that judge."""

    model: SourceModel
    data: Data
    outputs: dict[str, Array]
    post: PostProcessing | None
    trial: Trial


def export(plan: ExportPlan, progress: Progress | None = None, *, command: str = "") -> Exported:
    """Run a plan. The bundle and the reports appear in `plan.out` whole or not at all.

    Raises:
        EdgemlError: the source or the samples cannot be used; nothing was written.
    """
    check_folder(plan.out)
    try:
        with ExitStack() as stack:
            run = _Run(plan, stack.enter_context(work_folder()), progress or Silent(), stack)
            model = run.read_source()
            data = run.settle(model, read_data(plan, model.signature, model.classes))
            subject = run.subject(model, data, run.reference(model, data))
            made = run.artifacts(subject.trial)
            return run.write(subject, made, run.manifest(subject, made), command)
    except OSError as error:
        raise EnvironmentProblem(
            f"the work folder cannot be written: {error.strerror or error}", hint="make room, or set TMPDIR to another place"
        ) from error


class _Run:
    """One export under way: its workers, its folder, its clock."""

    def __init__(self, plan: ExportPlan, folder: Path, progress: Progress, stack: ExitStack) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        self.stages: list[Stage] = []
        (folder / "blobs").mkdir()
        self.cache = default_cache() if plan.cache else Cache(None)
        self.known = ""  # the source's fingerprint, once it was read
        self.second: tuple[str, str] | None = None  # samples of another size, and the source's answers, where axes are free
        self.calibrated = ""  # the calibration samples' sha256, once they were
        example = plan.calib or plan.evaluation
        self.stored: Precision = "fp32"  # what the source's own tensors hold
        self.ref = locate(
            plan.source, trust=plan.trust, example=str(example) if example else None, seed=plan.seed, signature=plan.signature
        )
        require(self.ref.family, plan.formats, plan.precisions)
        self.source = stack.enter_context(_source_worker(self.ref, folder, plan))
        self.judges = {
            format_: stack.enter_context(Worker(format_, folder, blocked=("tensorflow", "tf_keras"), **_limits(plan)))
            for format_ in plan.formats
        }
        self.lanes = ThreadPoolExecutor(len(plan.formats))
        stack.callback(self.lanes.shutdown, wait=True, cancel_futures=True)

    def read_source(self) -> SourceModel:
        """The source's description; the formats' engines are imported meanwhile."""
        for format_, worker in self.judges.items():
            self.lanes.submit(_warm, worker, "engine", format_)
        with self.step("read the source") as step:
            described, kept = self.cache.call(
                self.source, f"{JOBS}.source.{self.ref.family}:describe", fingerprint(self.ref),
                source=msgspec.to_builtins(self.ref),
            )  # fmt: skip
            model = msgspec.convert(described, SourceModel)
            model = msgspec.structs.replace(model, signature=with_states(model.signature, dict(self.plan.states)))
            check_signature(model.signature)
            step.note = f"{model.kind}, {model.bytes:,} bytes{from_cache(kept)}"
        if not kept and set(self.plan.precisions) != {"fp32"}:
            for format_, worker in self.judges.items():
                self.lanes.submit(_warm, worker, "tools", format_)
        self.known, self.stored = model.fingerprint, model.stored
        if model.kind != self.ref.kind:  # what a factory builds shows when it has run
            self.ref = msgspec.structs.replace(self.ref, kind=model.kind)
            require(self.ref.family, self.plan.formats, self.plan.precisions)
        return model

    def settle(self, model: SourceModel, data: Data) -> Data:
        """What only the source knows of the samples: the states in sequences. Named axes get the samples' sizes."""
        sets = [one for one in (data.judging, data.calibration, data.evaluation) if one is not None]
        sizes = free_sizes(model.signature, *sets)
        free = settle_free(self.plan.free, model.signature, sizes)
        self.ref = msgspec.structs.replace(self.ref, sizes=tuple(sizes.items()), free=free)
        if model.signature.states:
            with self.step("run the sequences") as step:
                ran = {one.sha256: run_sequences(self._asker(model), one, model.signature) for one in sets}
                step.note = f"{data.judging.steps} steps each"
            data = data.replaced(ran)
        if sizes:
            with self.step("run the source at another size"):
                inputs, outputs = at_another_size(self._asker(model), data.judging, model.signature, sizes, free)
            self.second = (str(self.folder / "second.npz"), str(self.folder / "second_reference.npz"))
            write_arrays(self.second[0], [inputs[name] for name in names(model.signature.inputs)])
            write_arrays(self.second[1], [outputs[name] for name in names(model.signature.outputs)])
        return data

    def _asker(self, model: SourceModel) -> Ask:
        """What the source answers to arrays of samples."""
        given, gotten = self.folder / "asked.npz", self.folder / "answered.npz"

        def ask(inputs: Mapping[str, Array]) -> dict[str, Array]:
            write_arrays(given, [inputs[name] for name in names(model.signature.inputs)])
            self.source.call(
                f"{JOBS}.source.{self.ref.family}:reference",
                source=msgspec.to_builtins(self.ref), inputs=str(given), out=str(gotten),
            )  # fmt: skip
            return read_arrays(gotten, names(model.signature.outputs))

        return ask

    def _depends(self, **more: object) -> dict[str, object] | None:
        """What a job on the source depends on."""
        told = {key: value for key, value in msgspec.to_builtins(self.ref).items() if key not in {"path", "example", "trust"}}
        told |= {"source": self.known}
        return {**told, **more} if self.known else None

    def reference(self, model: SourceModel, data: Data) -> dict[str, Array]:
        """The source's outputs for the samples that judge.

        Raises:
            ParityError: they are not finite, so there is nothing to agree with.
        """
        # A factory may read what no fingerprint covers: it is asked anew, so that a conversion that is out of date shows.
        depends = None if self.ref.factory is not None else self._depends(samples=data.judging.sha256)
        with self.step("run the source") as step:
            write_arrays(self.folder / "judging.npz", [data.judging.inputs[name] for name in names(model.signature.inputs)])
            _, kept = self.cache.call(
                self.source, f"{JOBS}.source.{self.ref.family}:reference", depends,
                out=self.folder / "reference.npz",
                source=msgspec.to_builtins(self.ref), inputs=str(self.folder / "judging.npz"),
            )  # fmt: skip
            outputs = read_arrays(self.folder / "reference.npz", names(model.signature.outputs))
            for name, values in outputs.items():
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    bad = int(np.argwhere(~np.isfinite(values))[0][0])
                    raise ParityError(
                        f"output {name!r} of the source itself is not finite for sample {bad}", hint="check the samples' scale"
                    )
            step.note = f"{len(data.judging)} samples{from_cache(kept)}"
        return outputs

    def subject(self, model: SourceModel, data: Data, outputs: dict[str, Array]) -> Subject:
        """What the artifacts are judged by, laid out on disk for their workers.

        Raises:
            PlanError: a classification was asked for, and no output holds a score per class; or labels do not fit it.
        """
        calibration = labels = None
        if data.calibration is not None:
            calibration, self.calibrated = str(self.folder / "calibration.npz"), data.calibration.sha256
            write_arrays(calibration, [data.calibration.inputs[name] for name in names(model.signature.inputs)])
        if data.judging.labels is not None:
            labels = str(self.folder / "labels.npy")
            np.save(labels, data.judging.labels)
        outputs = {name: values for name, values in outputs.items() if name not in model.signature.states.values()}
        task = self._task(data, outputs)
        scores = class_output(outputs) if task == "classify" else None
        if task == "classify" and scores is None:
            option = "--task classify" if self.plan.task == "classify" else f"--metric {self.plan.metric.name}"
            raise PlanError(f"{option}: no output holds a score per class", hint="use --task regress")
        rows = class_scores(outputs[scores]) if scores is not None else None
        trial = Trial(
            signature=model.signature,
            samples=str(self.folder / "judging.npz"),
            reference=str(self.folder / "reference.npz"),
            labels=labels,
            data="eval" if data.evaluation is not None else "calibration",
            task=task,
            scores=scores,
            golden=pick(data.judging, None if rows is None else rows.argmax(axis=1), seed=self.plan.seed),
            budget=self.plan.max_drop,
            calibration=calibration,
            metric=self.plan.metric,
            defer=self.plan.defer,
            whole=self.plan.target is not None and self.plan.target.whole,
            steps=data.judging.steps,
            second=self.second,
            free=self.ref.free,
        )
        self._rehearse(trial, outputs, data)
        if self.plan.defer is not None:
            check_goal(data.judging.labels, classifies=scores is not None)
        post = source_post(outputs, task, data.judging.labels)
        return Subject(model, data, outputs, post, msgspec.structs.replace(trial, post=post))

    def _rehearse(self, trial: Trial, outputs: dict[str, Array], data: Data) -> None:
        """Score the source against itself, so that labels which do not fit show first; a function of the user's in a worker."""
        if trial.metric.kind == "call":
            self.judges[self.plan.formats[0]].call(f"{JOBS}.artifact:rehearse", trial=msgspec.to_builtins(trial))
        else:
            score(outputs, outputs, data.judging.labels, task=trial.task, budget=None, scores=trial.scores, metric=trial.metric)

    def _task(self, data: Data, outputs: dict[str, Array]) -> TaskKind:
        """As asked for, else what the metric is of, else what the outputs look like."""
        if self.plan.task != "auto":
            return self.plan.task
        if self.plan.metric.kind in CLASSES | VALUES:
            return "classify" if self.plan.metric.kind in CLASSES else "regress"
        return detect_task(data.judging, outputs)

    def artifacts(self, trial: Trial) -> list[Made]:
        """Every artifact that was asked for, in the plan's order. Conversions queue, since one process holds the source."""
        with ThreadPoolExecutor(1) as source:
            ordered = [self._lane(format_, trial) for format_ in ORDER if format_ in self.plan.formats]
            converted = [source.submit(lane.convert) for lane in ordered]
            running = {
                lane.format: self.lanes.submit(lane.run, future) for lane, future in zip(ordered, converted, strict=True)
            }
            return [made for format_ in self.plan.formats for made in running[format_].result()]

    def _lane(self, format_: Format, trial: Trial) -> Lane:
        return Lane(
            format_, self.plan, self.ref, self.folder, self.source, self.judges[format_], self.cache, self.step, trial,
            self._depends(), self.calibrated, self.stored,
        )  # fmt: skip

    def manifest(self, subject: Subject, made: Sequence[Made]) -> Manifest | None:
        """What the bundle promises; `None` if no artifact passed."""
        packed = tuple(one.judged.artifact for one in made if one.passed and one.judged is not None)
        if not packed:
            return None
        model, data = subject.model, subject.data
        golden = golden_inputs(data.judging, subject.trial.golden)
        for digest, content in golden.blobs.items():
            (self.folder / "blobs" / digest).write_bytes(content)
        return Manifest(
            schema=SCHEMA,
            name=self.plan.name,
            version=self.plan.version,
            signature=model.signature,
            source=SourceFile(model.kind, model.sha256, model.bytes),
            exporter=libraries(model, self.plan.formats),
            options=self.plan.options(),
            seed=self.plan.seed,
            artifacts=packed,
            golden_inputs=golden.tensors,
            task=subject.trial.task,
            labels=self.plan.labels or model.labels,
            post=subject.post,
            calibration=data.calibration.describe(data.evaluation) if data.calibration else None,
            evaluation=data.evaluation.describe(data.calibration) if data.evaluation else None,
            reference=make_reference(data.judging, subject.outputs, subject.post, seed=self.plan.seed),
            metadata=model.metadata,
        )

    def write(self, subject: Subject, made: Sequence[Made], manifest: Manifest | None, command: str) -> Exported:
        """Bundle and reports, first in the work folder, then moved."""
        place = self.folder / "out"
        place.mkdir()
        bundle = place / self.plan.bundle.name if manifest is not None else None
        if manifest is not None and bundle is not None:
            with self.step("pack the bundle") as step:
                pack(manifest, self._blobs(made), bundle)
                step.note = f"{bundle.stat().st_size:,} bytes"
        report = self._report(subject, made, manifest, bundle, command)
        reports = write_report(report, place)
        moved = move_all(sorted(place.iterdir()), self.plan.out)
        return Exported(report, moved[bundle] if bundle else None, tuple(moved[path] for path in reports), exit_code(made))

    def _blobs(self, made: Sequence[Made]) -> dict[str, bytes]:
        blobs = {path.name: path.read_bytes() for path in (self.folder / "blobs").iterdir()}
        for one in made:
            if one.judged is not None and one.model is not None:
                blobs[one.judged.artifact.sha256] = one.model.read_bytes()
        return blobs

    def _report(
        self, subject: Subject, made: Sequence[Made], manifest: Manifest | None, bundle: Path | None, command: str
    ) -> Report:
        artifacts = tuple(artifact_report(one) for one in made)
        model, data = subject.model, subject.data
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        return Report(
            name=self.plan.name,
            version=self.plan.version,
            verdict=verdict_of([artifact.status for artifact in artifacts]),
            summary=summary(made, packed=bundle is not None),
            artifacts=artifacts,
            source=SourceFile(model.kind, model.sha256, model.bytes),
            source_name=Path(self.ref.path).name,
            task=subject.trial.task,
            signature=model.signature,
            bundle=bundle.name if bundle is not None else None,
            bundle_bytes=bundle.stat().st_size if bundle is not None else 0,
            digest=manifest.digest if manifest is not None else "",
            labels=self.plan.labels or model.labels,
            calibration=data.calibration.describe(data.evaluation) if data.calibration else None,
            evaluation=data.evaluation.describe(data.calibration) if data.evaluation else None,
            golden_samples=len(subject.trial.golden),
            budget=self.plan.max_drop,
            environment={**machine, **libraries(model, self.plan.formats)},
            options=self.plan.options(),
            warnings=(*data.warnings, *warnings_of(made)),
            notes=(*self.plan.notes, *self._misfits(made), *data.notes, *model.notes),
            stages=tuple(self.stages),
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            command=command,
        )

    def _misfits(self, made: Sequence[Made]) -> list[str]:
        """Artifacts that the device named by `--for` has no room for."""
        target = self.plan.target
        if target is None:
            return []
        reasons = [target.misfits(one.judged.artifact) for one in made if one.judged is not None]
        return [f"--for {target.name}: {reason}" for reason in reasons if reason is not None]

    def step(self, name: str) -> Step:
        return Step(name, self.progress, self.stages)


def _limits(plan: ExportPlan) -> Limits:
    return {"time_limit_s": plan.time_limit_s, "memory_limit_bytes": int(plan.memory_limit_gib * (1 << 30))}


def _source_worker(ref: SourceRef, folder: Path, plan: ExportPlan) -> Worker:
    legacy = ref.kind in {"keras-h5", "savedmodel"}
    # coremltools imports every framework it finds: seconds for one that the source does not need. TFLite needs both.
    blocked = {"tensorflow": ("torch",), "tflite": ()}.get(ref.family, ("tensorflow", "tf_keras", "keras"))
    environment = {"TF_USE_LEGACY_KERAS": "1"} if legacy else {}
    return Worker("source", folder, environment=environment, blocked=blocked, **_limits(plan))


def _warm(worker: Worker, what: str, format_: Format) -> None:
    try:
        worker.call(f"{JOBS}.artifact:warm_{what}", format=format_)
    except EdgemlError:
        return  # the first artifact meets the same error and reports it
