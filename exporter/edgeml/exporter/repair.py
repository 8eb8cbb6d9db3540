"""The keep-float search: a quantized artifact that misses its budget is made again with the fewest operators left float.

Where nothing may be float, on microcontrollers, operators get activations of 16 bits instead.

Ranking is on calibration samples; evaluation samples only say yes or no to sets whose order was fixed before
(`edgeml.exporter.quantize.keep_float`). The artifact that missed had its chance of 5 % to pass wrongly. The search is a second
one and gets half as much: every set is held to a bound of 97.5 %.

What the result is does not depend on the clock. The time limit ends a search with a refusal; everything it found is in the
cache of conversions, so that the same command goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec

from edgeml.exporter.artifact import Trial
from edgeml.exporter.parity.compare import UNMEASURED
from edgeml.exporter.parity.intervals import TAIL
from edgeml.exporter.quantize.keep_float import Alone, Operator, Sensitivity, ranked, sizes
from edgeml.exporter.quantize.ranking import rank, shares
from edgeml.exporter.repair_jobs import Looked, Quantizing
from edgeml.exporter.report.structs import Repair, SetTried
from edgeml.exporter.source.model import identity
from edgeml.exporter.step import Step
from edgeml.wire.manifest import KeptFloat, Status

CHANCES: Final = 2  # of being packed that an artifact has: as it is, and repaired
SHORT: Final = 40
SAID: Final = 3  # of them in a sentence
NAMED: Final = 12  # operators that notes name; the report has all


class Desk(Protocol):
    """Where a search asks for work to be done, and tells of it."""

    def step(self, name: str, /) -> Step: ...

    def ask(
        self, job: str, depends: Mapping[str, object], /, *, out: Path | None = None, **arguments: object
    ) -> tuple[Any, bool]:
        """(answer, whether it was kept from before)."""
        ...


@dataclass(frozen=True, slots=True)
class Manner:
    """How an operator is spared the 8 bits: by what its activations have instead, and in words."""

    bits: Literal[16, 32]
    left: str
    leaving: str
    late: str


FLOAT: Final = Manner(32, "left float", "leaving layers float", "the search for layers to leave float ran out of")
WIDE: Final = Manner(16, "at 16 bits", "computing layers with 16 bits", "the search for layers to give 16 bits ran out of")


class _OutOfTimeError(Exception):
    """The limit was reached between two pieces of work."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to: the file of the set that was taken, with its notes and operators, or none, and why."""

    record: Repair
    model: Path | None = None
    notes: tuple[str, ...] = ()
    kept: tuple[KeptFloat, ...] = ()
    chances: int = CHANCES


@dataclass(slots=True)
class Search:
    """One artifact's search. `missed` is its verdict as it was; `depends` is what the quantized file depends on."""

    desk: Desk
    quantizing: Quantizing
    depends: Mapping[str, object]
    missed: Status
    folder: Path
    limit_s: float
    now: Callable[[], float] = time.monotonic
    _operators: list[Operator] = field(default_factory=list)
    _ranked: list[Sensitivity] = field(default_factory=list)
    _tried: list[SetTried] = field(default_factory=list)
    _deadline: float = 0.0

    def run(self) -> Found:
        self._deadline = self.now() + self.limit_s
        try:
            self._rank()
            if len(self._ranked) < 2:
                return self._without(f"it has no two operators, of which one could be {self._manner.left}")
            return self._descend(sizes([one.error for one in self._ranked], widens=self._manner is WIDE))
        except _OutOfTimeError:
            at = (
                f"after {len(self._tried)} sets"
                if self._tried
                else f"after {len(self._ranked)} of {len(self._operators)} operators"
            )
            best = f"; so far {_said(self._tried[-1])}" if self._tried else ""
            return self._without(
                f"{self._manner.late} {self.limit_s:g} s {at}{best}; "
                "the same command goes on from there, --repair-time gives it longer",
                ended=False,
            )

    @property
    def _manner(self) -> Manner:
        return WIDE if self.quantizing.trial.whole else FLOAT

    @property
    def _name(self) -> str:
        return f"{self.quantizing.format} {self.quantizing.precision}"

    def _rank(self) -> None:
        what = msgspec.to_builtins(self.quantizing)
        with self.desk.step(f"{self._name} rank") as step:
            answer, _ = self.desk.ask("repair_jobs:operators", self.depends, quantizing=what)
            self._operators = [Operator(**one) for one in answer["operators"]]
            step.note = f"{len(self._operators)} operators"
            base = Alone(answer["error"], answer["bytes"])

            def measure(some: Sequence[Operator]) -> Alone:
                self._in_time(step)
                names = sorted(one.name for one in some)
                found, _ = self.desk.ask(
                    "repair_jobs:alone", {**self.depends, "operators": names}, quantizing=what, operators=names
                )
                measured = Alone(found["error"], found["bytes"])
                if len(some) == 1:  # so that what was found shows if time runs out
                    self._ranked = ranked([*self._ranked, *shares(some, base, measured)])
                return measured

            self._ranked = rank(self._operators, base, measure)
            if self._ranked:
                worst = self._ranked[0]
                step.note += f"; {short(worst.operator.name)!r} alone costs {share_of(worst.error)} of the outputs' deviation"

    def _descend(self, order: Sequence[int]) -> Found:
        """From the most left float to the fewest, while they pass; where already the first does not, while none fails.

        A set that passes after one that did not proves nothing by itself. So then the error is shared among all that were
        looked at: the smallest that passes even so is taken, or else the smallest.
        """
        accepted: frozenset[Status] = frozenset({"pass"})
        good: list[tuple[SetTried, Path, list[str]]] = []
        for size in order:
            tried, model, notes = self._try(size)
            self._tried.append(tried)
            if not good and (tried.status == "fail" or (tried.status == "inconclusive" == self.missed)):
                return self._without(self._hopeless(tried))
            if not good and tried.status == "inconclusive":
                accepted = frozenset({"pass", "inconclusive"})
            if tried.status not in accepted:
                break
            good.append((tried, model, notes))
        chances = CHANCES if len(accepted) == 1 else CHANCES * len(self._tried)
        tried, model, notes = good[-1] if chances == CHANCES else self._proved(good, chances)
        kept = tuple(_kept(one, self._manner) for one in self._ranked[: tried.kept])
        names = ", ".join(repr(short(one.name)) for one in kept[:SAID]) + (", …" if len(kept) > SAID else "")
        sentence = f"{_operators(tried.kept)} of {len(self._ranked)} {self._manner.left}: {names}"
        told = _notes(kept, self._tried, chances, self._manner)
        return Found(self._record(sentence, taken=tried.kept), model, (*notes, *told), kept, chances)

    def _try(self, size: int) -> tuple[SetTried, Path, list[str]]:
        kept = sorted(one.operator.name for one in self._ranked[:size])
        out = self.folder / f"{self.quantizing.precision}-keep{size}.{self.quantizing.format}"
        with self.desk.step(f"{self._name} keep {size}") as step:
            self._in_time(step)
            notes, _ = self.desk.ask(
                "repair_jobs:keep", {**self.depends, "kept": kept}, out=out,
                quantizing=msgspec.to_builtins(self.quantizing), kept=kept,
            )  # fmt: skip
            self._in_time(step)
            looked = self._look(out, CHANCES)
            tried = SetTried(size, out.stat().st_size, looked.status, looked.task, looked.reason)
            step.outcome, step.note = looked.status, _said(tried)
        return tried, out, list(notes)

    def _proved(self, good: Sequence[tuple[SetTried, Path, list[str]]], chances: int) -> tuple[SetTried, Path, list[str]]:
        """The smallest set that passes with the error shared among so many chances; the smallest of all if none does."""
        with self.desk.step(f"{self._name} compare") as step:
            for one in reversed(good):
                self._in_time(step)
                if one[0].status == "pass" and self._look(one[1], chances).status == "pass":
                    step.note = (
                        f"{_operators(one[0].kept)} {self._manner.left} pass though {len(self._tried)} sets were looked at"
                    )
                    return one
            step.note = f"none passes when {len(self._tried)} sets were looked at"
        return good[-1]

    def _look(self, model: Path, chances: int) -> Looked:
        trial = msgspec.structs.replace(self.quantizing.trial, chances=chances)
        answer, _ = self.desk.ask(
            "repair_jobs:look_at", {"file": identity(model)[0], **self._judged_by(trial)},
            trial=msgspec.to_builtins(trial), format=self.quantizing.format, precision=self.quantizing.precision,
            model=str(model),
        )  # fmt: skip
        return msgspec.convert(answer, Looked)

    def _judged_by(self, trial: Trial) -> dict[str, object]:
        """What a verdict depends on, besides the file."""
        paths = {"samples": trial.samples, "reference": trial.reference, "labels": trial.labels, "function": trial.metric.path}
        digests = {name: identity(Path(path))[0] for name, path in paths.items() if path}
        plain = {name: msgspec.to_builtins(getattr(trial, name)) for name in ("task", "scores", "budget", "chances", "data")}
        return {**digests, **plain, "metric": trial.metric.name, "format": self.quantizing.format}

    def _in_time(self, step: Step) -> None:
        if self.now() > self._deadline:
            step.outcome, step.note = "fail", f"{step.note}, out of time".removeprefix(", ")
            raise _OutOfTimeError

    def _hopeless(self, tried: SetTried) -> str:
        verb = "would not decide" if self.missed == "inconclusive" else "does not repair"
        some = f"{_operators(tried.kept)} of {len(self._ranked)} {self._manner.left}"
        return f"{self._manner.leaving} {verb} it: {some}, {_said(tried)}"

    def _without(self, reason: str, *, ended: bool = True) -> Found:
        return Found(self._record(reason, ended=ended))

    def _record(self, sentence: str, *, taken: int = 0, ended: bool = True) -> Repair:
        return Repair(
            sentence=sentence,
            kept=taken,
            ended=ended,
            ranked=tuple(_kept(one, self._manner) for one in self._ranked),
            tried=tuple(self._tried),
        )


def _kept(one: Sensitivity, manner: Manner) -> KeptFloat:
    extra = one.extra_bytes if manner is FLOAT else 0  # weights stay int8
    return KeptFloat(one.operator.name, one.operator.kind, one.error, extra, manner.bits)


def _notes(kept: Sequence[KeptFloat], tried: Sequence[SetTried], chances: int, manner: Manner) -> list[str]:
    notes = [
        f"{manner.left}: {short(one.name)!r} ({one.operator}), "
        f"which alone costs {share_of(one.error)} of the outputs' deviation"
        + (f"; {one.extra_bytes:+,} bytes" if manner is FLOAT else "")
        for one in kept[:NAMED]
    ]
    if len(kept) > NAMED:
        notes.append(f"{manner.left}: {len(kept) - NAMED} operators more")
    looks = ", ".join(str(one.kept) for one in tried)
    level = 100 * (1 - TAIL / chances)
    notes.append(
        f"looked at sets of {looks} operators {manner.left}, in this order, which calibration samples fixed before; "
        f"the bound is of {level:.4g} %, since this artifact had {chances} chances"
    )
    return notes


def _said(tried: SetTried) -> str:
    if tried.task is None:
        return tried.reason or "it is not the source"
    bound = "not bounded" if tried.task.upper95 >= UNMEASURED else f"at most {tried.task.upper95:.2f}"
    return f"{tried.bytes:,} bytes, {tried.task.metric} drop {tried.task.drop:+.2f} points, {bound}"


def _operators(count: int) -> str:
    return f"{count} operator{'s' if count != 1 else ''}"


def share_of(error: float) -> str:
    """An error in standard deviations, as a share of them."""
    return "all" if error >= UNMEASURED else f"{100 * error:.0f} %" if error > 0.1 else f"{100 * error:.2g} %"


def short(name: str) -> str:
    """The end of a long name: what converters put before it says nothing."""
    return name if len(name) <= SHORT else f"…{name[-SHORT + 1 :]}"
