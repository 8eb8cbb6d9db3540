"""One format's way through an export: converted, judged as fp32, then made smaller and judged again for each precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeml.exporter.artifact import Judged, Trial
from edgeml.exporter.cache import Cache
from edgeml.exporter.convert.detour import Detour
from edgeml.exporter.outcome import Made, key_number, no_way_back, unmade, verdict_error
from edgeml.exporter.plan import ExportPlan
from edgeml.exporter.repair import CHANCES, Found, Search
from edgeml.exporter.repair_jobs import Quantizing, is_searchable
from edgeml.exporter.source import SourceRef
from edgeml.exporter.source.model import identity
from edgeml.exporter.step import Step
from edgeml.exporter.worker import Worker
from edgeml.wire.errors import BudgetError, EdgemlError, ParityError, UnsupportedError
from edgeml.wire.manifest import Format, Precision, Status

JOBS: Final = "edgeml.exporter"


@dataclass(frozen=True, slots=True)
class Converted:
    """An fp32 model file; `kept` if it is from the cache."""

    model: Path
    notes: list[str]
    kept: bool


@dataclass(frozen=True, slots=True)
class Lane:
    """`source` is the worker that holds the model, `judge` the one that runs the format.

    `depends` is what a job on the source depends on (`None`: unknown, nothing is kept), `calibrated` the calibration samples'
    sha256, `stored` the precision of the source's own tensors.
    """

    format: Format
    plan: ExportPlan
    ref: SourceRef
    folder: Path
    source: Worker
    judge: Worker
    cache: Cache
    step: Callable[[str], Step]
    trial: Trial
    depends: Mapping[str, object] | None
    calibrated: str
    stored: Precision

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What is made: what was asked for, or of a quantized source, if nothing special was, what it holds."""
        return (self.stored,) if self.plan.precisions == ("fp32",) else self.plan.precisions_of(self.format)

    def convert(self, cache: Cache | None = None) -> Converted:
        """The source as fp32, or in its own precision; by `cache`, or the export's."""
        out, cache = self.folder / f"fp32.{self.format}", cache or self.cache
        with self.step(f"{self.format} convert") as step:
            answer, kept = cache.call(
                self.source, f"{JOBS}.convert.{self.format}:from_{self.ref.family}", self.depends,
                out=out, source=msgspec.to_builtins(self.ref),
            )  # fmt: skip
            notes = list(answer or ())
            if isinstance(answer, dict):
                notes, kept = self._go_on(msgspec.convert(answer, Detour), out, cache)
            step.note = f"{out.stat().st_size:,} bytes{from_cache(kept)}"
        return Converted(out, notes, kept)

    def _go_on(self, detour: Detour, out: Path, cache: Cache) -> tuple[list[str], bool]:
        """From the ONNX that a conversion left in `out`, in the worker of the format; gives notes, and whether it was kept."""
        half = out.replace(self.folder / f"{self.format}.onnx")
        ref = SourceRef(str(half), "onnx", seed=self.ref.seed, sizes=self.ref.sizes, free=self.ref.free)
        free = [axis.text for axis in ref.free]
        depends = {"onnx": identity(half)[0], "seed": ref.seed, "sizes": ref.sizes, "free": free}
        try:
            notes, kept = cache.call(
                self.judge, f"{JOBS}.convert.{self.format}:from_onnx", depends, out=out, source=msgspec.to_builtins(ref)
            )
        except UnsupportedError as refusal:
            raise UnsupportedError(
                f"{detour.refusal}; and by way of ONNX and torch, {refusal.what}", hint=detour.hint or refusal.hint
            ) from refusal
        return [detour.note, *(notes or ())], kept

    def run(self, conversion: Future[Converted]) -> list[Made]:
        """Every precision of the plan, from fp32 to the smallest. A failure is in what is made; it stops no other lane."""
        try:
            converted = conversion.result()
            whole = self._judged(self.stored, converted.model, converted.notes)
            if converted.kept and not whole.passed:  # the source changed in a way that its fingerprint does not see
                converted = self.convert(Cache(None))
                whole = self._judged(self.stored, converted.model, converted.notes)
        except EdgemlError as refusal:
            return [Made(self.format, precision, None, None, refusal) for precision in self.precisions]
        made = [whole]
        for precision in self.precisions:
            if precision == self.stored:
                continue
            if self.stored != "fp32":
                made.append(Made(self.format, precision, None, None, no_way_back(self.stored, precision)))
                continue
            if whole.judged is None or whole.judged.artifact.parity.status == "fail":
                made.append(Made(self.format, precision, None, None, unmade(whole)))
                continue
            made.append(self._quantized(precision, converted.model, whole.judged))
        return [one for one in made if one.precision in self.precisions]

    def _quantized(self, precision: Precision, model: Path, whole: Judged) -> Made:
        out = self.folder / f"{precision}.{self.format}"
        try:
            with self.step(f"{self.format} {precision} make") as step:
                inputs = msgspec.to_builtins(whole.artifact.inputs)
                depends = {
                    "model": whole.artifact.sha256, "format": self.format, "precision": precision, "task": self.trial.task,
                    "calibration": self.calibrated, "inputs": inputs, "ranges": self.plan.ranges,
                    "whole": self.trial.whole,
                }  # fmt: skip
                told, kept = self.cache.call(
                    self.judge, f"{JOBS}.artifact:quantize", depends, out=out,
                    trial=msgspec.to_builtins(self.trial), format=self.format, precision=precision, model=str(model),
                    inputs=inputs, ranges=self.plan.ranges,
                )  # fmt: skip
                step.note = f"{out.stat().st_size:,} bytes{from_cache(kept)}"
        except EdgemlError as error:
            return Made(self.format, precision, None, None, error)
        made = replace(self._judged(precision, out, [*told["notes"], *told["warnings"]]), warnings=tuple(told["warnings"]))
        if not self._may_repair(made):
            return made
        try:
            inputs = whole.artifact.inputs
            asked = Quantizing(self.trial, self.format, precision, str(model), inputs, self.plan.ranges)
            found = self._search(made, depends, asked)
        except EdgemlError as error:
            return made.with_search(None, f"no search for layers to leave float: {error}")
        if found.model is None:
            return made.with_search(found.record, found.record.sentence)
        again = self._judged(precision, found.model, list(found.notes), found)
        return replace(again, warnings=made.warnings).with_search(found.record, found.record.sentence)

    def _may_repair(self, made: Made) -> bool:
        """Whether operators left float could help: it missed its budget, or is no form of the source, or is not decided yet."""
        if (
            not is_searchable(self.format, made.precision, whole=self.trial.whole)
            or self.plan.repair_time_s <= 0
            or self.plan.max_drop is None
        ):
            return False
        task = made.judged.artifact.task if made.judged is not None else None
        if task is not None and task.status == "pass":
            return False
        if task is not None and task.status == "inconclusive":
            trial = msgspec.structs.replace(self.trial, chances=CHANCES)
            best: Status = self.judge.call(f"{JOBS}.artifact:best_case", trial=msgspec.to_builtins(trial))
            return best == "pass"
        return isinstance(made.error, BudgetError | ParityError)

    def _search(self, made: Made, depends: Mapping[str, object], quantizing: Quantizing) -> Found:
        task = made.judged.artifact.task if made.judged is not None else None
        missed: Status = "fail" if task is None else task.status
        return Search(self, quantizing, depends, missed, self.folder, self.plan.repair_time_s).run()

    def ask(
        self, job: str, depends: Mapping[str, object], /, *, out: Path | None = None, **arguments: object
    ) -> tuple[Any, bool]:
        """A job of the worker that runs the format, or what it gave before."""
        return self.cache.call(self.judge, f"{JOBS}.{job}", depends, out=out, **arguments)

    def _judged(self, precision: Precision, model: Path, notes: list[str], found: Found | None = None) -> Made:
        trial = self.trial if found is None else msgspec.structs.replace(self.trial, chances=found.chances)
        kept = [] if found is None else list(found.kept)
        try:
            with self.step(f"{self.format} {precision}") as step:
                reply = self.judge.call(
                    f"{JOBS}.artifact:judge",
                    trial=msgspec.to_builtins(trial), format=self.format, precision=precision, model=str(model),
                    blobs=str(self.folder / "blobs"), notes=notes, kept_float=msgspec.to_builtins(kept),
                )  # fmt: skip
                judged = msgspec.convert(reply, Judged)
                step.outcome, step.note = judged.status, key_number(judged)
        except EdgemlError as error:
            return Made(self.format, precision, None, None, error)
        return Made(self.format, precision, judged, model, verdict_error(judged, self.plan.max_drop))


def from_cache(kept: bool) -> str:
    return ", from the cache" if kept else ""
