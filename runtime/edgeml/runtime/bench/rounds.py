"""A benchmark on this machine: every artifact gets a fresh process in every round, so that they take turns.

What slows the board for a while (heat, a neighbour, a governor) then slows all of them, and ratios between them stay fair.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.bench.child import Answer, Request
from edgeml.runtime.bench.intervals import median_ratio, quantiles, verdict
from edgeml.runtime.bench.records import Bench, Comparison, Heat, Interval, Machine, Timing
from edgeml.runtime.board import read_board
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.choose import Choice, rank, this_board
from edgeml.wire.contract import label
from edgeml.wire.errors import UsageError
from edgeml.wire.manifest import Artifact, Manifest

ROUNDS: Final = 10
USUAL_CALLS: Final = 1000
USUAL_LIMIT_S: Final = 10.0  # for the calls of one artifact, unless their number was asked for
LEAST_FOR_P99: Final = 1000  # under that, ten calls or fewer lie beyond it
ROUND_LIMIT_S: Final = 600.0  # a child that takes longer hangs,
CALL_LIMIT_S: Final = 10.0  # unless so many calls were asked for
LAST_WORDS: Final = 300


@dataclass(frozen=True, slots=True)
class Plan:
    """`calls` of each artifact, `None`: 1,000, or those that fit in ten seconds. `artifacts` by label, empty: all."""

    calls: int | None = None
    threads: int = 1
    artifacts: tuple[str, ...] = ()

    def request(self, bundle: Path, artifact: Artifact, index: int) -> Request:
        """What the process of round `index` is asked. The first proves the artifact."""
        calls = USUAL_CALLS if self.calls is None else self.calls
        share = calls // ROUNDS + (index < calls % ROUNDS)
        limit_s = USUAL_LIMIT_S / ROUNDS if self.calls is None else None
        return Request(str(bundle), label(artifact), share, limit_s, self.threads, prove=index == 0)


@dataclass(slots=True)
class _Runner:
    """An artifact and what its processes said so far."""

    artifact: Artifact
    answers: list[Answer] = field(default_factory=list)
    error: str | None = None

    @property
    def seconds(self) -> list[Array]:
        return [np.array(answer.seconds) for answer in self.answers if answer.seconds]


def bench(path: Path, plan: Plan, told: Callable[[str], None]) -> Bench:
    """Measure. `told` hears which round begins, and nothing once the last is over.

    Raises:
        BundleError: the bundle is not what it says.
        UsageError: an artifact was asked for that the bundle does not have, or fewer calls than rounds.
    """
    if plan.calls is not None and plan.calls < ROUNDS:
        raise UsageError("--runs", expected=f"at least {ROUNDS}, one a round", got=str(plan.calls))
    if plan.threads < 1:
        raise UsageError("--threads", expected="at least 1", got=str(plan.threads))
    with open_bundle(path) as bundle:
        manifest, digest = bundle.manifest, bundle.digest
    choices = _asked(manifest, plan.artifacts)
    runners = [_Runner(choice.artifact) for choice in choices if choice.fits]
    before, throttled = read_board(), _Throttled()
    for index in range(ROUNDS):
        told(f"round {index + 1} of {ROUNDS}")
        for runner in runners:
            _turn(runner, plan.request(path, runner.artifact, index))
            throttled.look()
    told("")
    after = read_board()
    return Bench(
        name=manifest.name,
        version=manifest.version,
        digest=digest,
        machine=Machine(this_board().arch, os.cpu_count() or 1, after.model or "", _edgeml()),
        threads=plan.threads,
        artifacts=tuple(_timing(choice, runners) for choice in choices),
        comparisons=tuple(_compare([runner for runner in runners if runner.error is None])),
        heat=Heat(
            before.hottest.celsius if before.hottest else None,
            after.hottest.celsius if after.hottest else None,
            throttled.words,
        ),
        notes=tuple(_notes(runners)),
    )


def _asked(manifest: Manifest, labels: Sequence[str]) -> list[Choice]:
    """Those asked for, in the order that this board would choose among them.

    Raises:
        UsageError: the bundle has no such artifact.
    """
    held = [label(artifact) for artifact in manifest.artifacts]
    for asked in labels:
        if asked not in held:
            raise UsageError("no such artifact in the bundle", expected=", ".join(held), got=repr(asked))
    return [choice for choice in rank(manifest, this_board()) if not labels or label(choice.artifact) in labels]


def _turn(runner: _Runner, request: Request) -> None:
    """One round of one artifact; one that failed gets no more turns."""
    if runner.error is not None or request.calls == 0:
        return
    answer = ask(request)
    if answer.error is not None:
        runner.error = answer.error
    else:
        runner.answers.append(answer)


def ask(request: Request) -> Answer:
    """A process's answer; its death is one too."""
    command = [sys.executable, "-m", "edgeml.runtime.bench.child"]
    limit_s = ROUND_LIMIT_S + (CALL_LIMIT_S * request.calls if request.limit_s is None else request.limit_s)
    try:
        ran = subprocess.run(command, input=msgspec.json.encode(request), capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Answer(error=f"no answer from its process in {limit_s:.0f} s; it was ended")
    if ran.returncode < 0:
        return Answer(error=f"its process died of {signal.Signals(-ran.returncode).name}")
    try:
        return msgspec.json.decode(ran.stdout, type=Answer)
    except msgspec.MsgspecError:
        last = ran.stderr.decode("utf-8", "replace").strip()[-LAST_WORDS:]
        return Answer(error=f"its process ended with {ran.returncode}: {last}")


class _Throttled:
    """What the firmware held back, over all looks; `None` while it has not said anything."""

    def __init__(self) -> None:
        self.words: tuple[str, ...] | None = None

    def look(self) -> None:
        now = read_board().throttled
        if now is not None:
            self.words = tuple(dict.fromkeys((*(self.words or ()), *now)))


def _timing(choice: Choice, runners: Iterable[_Runner]) -> Timing:
    artifact = choice.artifact
    runner = next((one for one in runners if one.artifact is artifact), None)
    if runner is None:
        return Timing(artifact.format, artifact.precision, "not run", choice.reason, artifact.bytes)
    if runner.error is not None:
        return Timing(artifact.format, artifact.precision, "fail", runner.error, artifact.bytes)
    rounds, answers = runner.seconds, runner.answers
    calls = sum(map(len, rounds))
    enough = calls >= LEAST_FOR_P99
    p50, p90, *p99 = quantiles(rounds, (0.5, 0.9, 0.99) if enough else (0.5, 0.9))
    peaks = [answer.peak_bytes for answer in answers if answer.peak_bytes is not None]
    return Timing(
        format=artifact.format,
        precision=artifact.precision,
        state="measured",
        detail=answers[0].engine,
        bytes=artifact.bytes,
        calls=calls,
        rounds=len(rounds),
        load=_median([answer.load_s for answer in answers]),
        first=_median([answer.first_s for answer in answers]),
        p50=p50,
        p90=p90,
        p99=p99[0] if p99 else None,
        peak_bytes=max(peaks, default=None),
    )


def _median(seconds: Sequence[float]) -> Interval:
    """Of one figure a round."""
    return quantiles([np.array([figure]) for figure in seconds], (0.5,))[0]


def _compare(runners: Sequence[_Runner]) -> Iterator[Comparison]:
    """Every precision against fp32 of its format."""
    whole = {runner.artifact.format: runner for runner in runners if runner.artifact.precision == "fp32"}
    for runner in runners:
        base = whole.get(runner.artifact.format)
        if base is not None and runner is not base:
            ratio = median_ratio(runner.seconds, base.seconds)
            yield Comparison(runner.artifact.format, runner.artifact.precision, ratio, verdict(ratio))


def _notes(runners: Sequence[_Runner]) -> Iterator[str]:
    fewest = min((sum(map(len, runner.seconds)) for runner in runners if runner.error is None), default=LEAST_FOR_P99)
    if fewest < LEAST_FOR_P99:
        yield (
            f"no p99: it needs {LEAST_FOR_P99:,} calls, of which ten lie beyond it, and an artifact had {fewest:,} "
            f"(--runs {LEAST_FOR_P99})"
        )


def _edgeml() -> str:
    try:
        return version("edgeml-toolkit")
    except PackageNotFoundError:
        return ""
