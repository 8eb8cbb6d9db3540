"""A rollout as data and as an IO-free machine: `step(state, event, now) -> state, actions`.

    draft ─start→ running ─go-on gate→ running (next wave) … → done
                     │ ├─inconclusive→ holding ─approve→ running
                     │ ├─pause→ paused ─resume→ running or holding
                     │ └─stop gate→ stopped ─(at once, unless told to wait)→ rolling_back → rolled_back
                     └─abort→ aborted      and from anywhere alive or done: rollback → rolling_back

Actions are level-triggered: each tick names everything that should be true (`Offer` up to a share, `TakeBack` from everyone
told), and telling a device what it was told already does nothing. So a crash between saving and telling loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from edgeml.wire.errors import ServiceError
from edgeml.wire.manifest import Name, Sha256, Version
from edgeml.wire.structs import learn

Phase = Literal["draft", "running", "holding", "paused", "stopped", "rolling_back", "rolled_back", "done", "aborted"]
ENDED: Final[frozenset[Phase]] = frozenset({"rolled_back", "aborted"})
"""Phases with nothing left to do. `done` is not among them: late joiners still get its version."""

GuardName = Literal[
    "install_failure", "self_test", "crash", "rollback", "silence", "error_rate", "confidence", "fallback", "latency"
]
GUARDS: Final[tuple[GuardName, ...]] = (
    "install_failure", "self_test", "crash", "rollback", "silence", "error_rate", "confidence", "fallback", "latency",
)  # fmt: skip

VERDICTS_KEPT: Final = 20

Fraction = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Wave(_Record, frozen=True):
    """A cumulative share of the eligible fleet, and what it takes to go on after it.

    After `soak_s` and once `least_devices` have settled, the go-on gate looks once. If they have not by `longest_s`, it holds.
    """

    share: Fraction
    soak_s: Seconds = 3600.0
    longest_s: Seconds = 7 * 86_400.0
    least_devices: Annotated[int, msgspec.Meta(ge=1)] = 1


class GateSpec(_Record, frozen=True):
    """How a rollout is judged.

    `alpha` is the chance that any stop gate ever stops a rollout that is fine. `tolerance` is how many times worse than the
    hold-back still counts as fine. A wave goes on when the upper bound of its bad devices' share is at most
    max(`limit`, the hold-back's share + `margin`); all go-on gates together are wrong with chance `go_on_alpha`.
    `ceiling` is the share of devices that may have an event the hold-back cannot have (an install that fails), and of any
    event where there is no hold-back. A device is judged by telemetry after `least_answers`; 0 leaves telemetry out.
    """

    alpha: Fraction = 0.01
    tolerance: Annotated[float, msgspec.Meta(ge=1.0)] = 1.25
    limit: Fraction = 0.05
    margin: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.02
    go_on_alpha: Fraction = 0.05
    ceiling: Fraction = 0.05
    least_answers: Annotated[int, msgspec.Meta(ge=0)] = 20
    silence_s: Seconds = 3600.0
    guards: tuple[GuardName, ...] = GUARDS


class RolloutSpec(_Record, frozen=True):
    """What an operator asked for; never changes once the rollout exists.

    `waves` grow; the first is the canary. `hold_back` is the share that keeps the old version until the rollout is done (the
    last wave ends at 1 - hold_back). `where` picks devices by tag; `strata` are the tags inside which shares are drawn.
    """

    id: str
    model: Name
    version: Version
    manifest_sha256: Sha256
    path: str
    salt: str
    waves: tuple[Wave, ...]
    hold_back: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.1
    strata: tuple[str, ...] = ("site", "hardware")
    where: dict[str, str] = {}
    gate: GateSpec = GateSpec()
    auto_rollback: bool = True
    confirm_small: bool = True  # below 60 devices a person confirms each wave
    created_at: float = 0.0
    created_by: str = ""


class Verdict(_Record, frozen=True):
    """What a gate said, in one sentence, with the numbers it rests on.

    `bad` of `canary` and `control_bad` of `control` are devices; `e_value` is the evidence of the stop gate, `upper` the bound
    of the go-on gate.
    """

    outcome: Literal["stop", "proceed", "hold", "wait"]
    sentence: str
    at: float
    wave: int
    guard: GuardName | Literal["health"] | None = None
    canary: int = 0
    bad: int = 0
    control: int = 0
    control_bad: int = 0
    e_value: float | None = None
    upper: float | None = None
    guaranteed: bool = True


class RolloutState(_Record, frozen=True):
    """Where a rollout stands: everything the controller needs after a restart.

    `wave` is the wave being soaked (-1 before the start). `paused_from` is the phase that `resume` returns to. `carried` is the
    log evidence of finished waves, guard -> one number per alternative. `verdicts` has the last few, newest last.
    """

    spec: RolloutSpec
    phase: Phase = "draft"
    wave: int = -1
    started_at: float | None = None
    wave_started_at: float | None = None
    ended_at: float | None = None
    paused_from: Phase | None = None
    sentence: str = "not started"
    carried: dict[str, tuple[float, ...]] = {}
    verdicts: tuple[Verdict, ...] = ()

    @property
    def share(self) -> float:
        """The share of the eligible fleet that should run the new version now."""
        if self.phase == "done":
            return 1.0
        return self.spec.waves[self.wave].share if 0 <= self.wave < len(self.spec.waves) else 0.0


Command = Literal["start", "pause", "resume", "approve", "abort", "rollback"]
ALLOWED: Final[dict[Command, frozenset[Phase]]] = {
    "start": frozenset({"draft"}),
    "pause": frozenset({"running", "holding"}),
    "resume": frozenset({"paused"}),
    "approve": frozenset({"holding"}),
    "abort": frozenset({"draft", "running", "holding", "paused", "stopped"}),
    "rollback": frozenset({"running", "holding", "paused", "stopped", "done", "aborted"}),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What one tick saw.

    `verdict` is the stop gate's if it stops, else the go-on gate's; `None` where nothing is judged. `log_e` is the evidence so
    far, guard -> one number per alternative, to be carried into the next wave. `to_take_back` counts devices whose wanted
    version is still this rollout's, `away` those told to go back that are online and still run the new version.
    """

    verdict: Verdict | None = None
    log_e: dict[str, tuple[float, ...]] | None = None
    to_take_back: int = 0
    away: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """Every eligible device below `share` should be told the new version, as part of `wave`; 1.0 includes the hold-back."""

    share: float
    wave: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Every device told by this rollout, and not by a later one, should be told its previous version."""


@dataclass(frozen=True, slots=True)
class Note:
    """A transition to put on record."""

    kind: str
    text: str


Action = Offer | TakeBack | Note


def apply(state: RolloutState, command: Command, by: str, now: float) -> RolloutState:
    """What a person decided. `by` is who, for the sentence.

    Raises:
        ServiceError: (409) the rollout is in a phase where this makes no sense.
    """
    if state.phase not in ALLOWED[command]:
        raise ServiceError(
            f"rollout {state.spec.id!r} is {state.phase}: cannot {command}",
            status=409,
            hint=f"possible when {', '.join(sorted(ALLOWED[command]))}",
        )
    match command:
        case "start":
            return _enter_wave(msgspec.structs.replace(state, started_at=now), 0, f"started by {by}", now)
        case "pause":
            return msgspec.structs.replace(state, phase="paused", paused_from=state.phase, sentence=f"paused by {by}")
        case "resume":
            return msgspec.structs.replace(
                state, phase=state.paused_from or "running", paused_from=None, sentence=f"resumed by {by}"
            )
        case "approve":
            return _next_wave(state, f"approved by {by}", now)
        case "abort":
            return msgspec.structs.replace(
                state, phase="aborted", ended_at=now, sentence=f"aborted by {by}: nothing more is handed out"
            )
        case "rollback":
            return msgspec.structs.replace(state, phase="rolling_back", sentence=f"rolled back by {by}")


def step(state: RolloutState, seen: Seen, now: float) -> tuple[RolloutState, tuple[Action, ...]]:
    """One tick. The actions follow from the new state, so that repeating the tick repeats them and nothing else."""
    after = _judge(state, seen, now)
    if after.phase == "rolling_back" and state.phase == "rolling_back" and not seen.to_take_back and not seen.away:
        after = msgspec.structs.replace(after, phase="rolled_back", ended_at=now)
    notes = () if (after.phase, after.wave) == (state.phase, state.wave) else (Note(after.phase, after.sentence),)
    return after, notes + _due(after)


def _judge(state: RolloutState, seen: Seen, now: float) -> RolloutState:
    verdict = seen.verdict
    if verdict is None or state.phase not in {"running", "holding", "paused"}:
        return state
    if verdict.outcome == "stop":
        phase: Phase = "rolling_back" if state.spec.auto_rollback else "stopped"
        return msgspec.structs.replace(_record(state, verdict), phase=phase)
    if state.phase != "running":
        return state
    if verdict.outcome == "proceed":
        carried = state.carried if seen.log_e is None else seen.log_e
        return _next_wave(msgspec.structs.replace(_record(state, verdict), carried=carried), verdict.sentence, now)
    if verdict.outcome == "hold":
        return msgspec.structs.replace(_record(state, verdict), phase="holding")
    return state if verdict.sentence == state.sentence else msgspec.structs.replace(state, sentence=verdict.sentence)


def _record(state: RolloutState, verdict: Verdict) -> RolloutState:
    return msgspec.structs.replace(state, sentence=verdict.sentence, verdicts=(*state.verdicts, verdict)[-VERDICTS_KEPT:])


def _next_wave(state: RolloutState, sentence: str, now: float) -> RolloutState:
    if state.wave + 1 < len(state.spec.waves):
        return _enter_wave(state, state.wave + 1, sentence, now)
    return msgspec.structs.replace(state, phase="done", ended_at=now, sentence=sentence)


def _enter_wave(state: RolloutState, wave: int, sentence: str, now: float) -> RolloutState:
    return msgspec.structs.replace(state, phase="running", wave=wave, wave_started_at=now, sentence=sentence)


def _due(state: RolloutState) -> tuple[Action, ...]:
    if state.phase in {"running", "holding"}:
        return (Offer(state.share, state.wave),)
    if state.phase == "done":
        return (Offer(1.0, len(state.spec.waves)),)
    if state.phase == "rolling_back":
        return (TakeBack(),)
    return ()


learn(__name__)
