"""From the ledger's rows to what gates judge: counts of devices, and one row a device of the running wave and its hold-back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from edgeml.fleet.behaviour import BEHAVIOUR, Behaviour, LowRule, judge, low_rules
from edgeml.fleet.ledger import Assignment, Device, Outcome, TelemetrySum, VersionFacts
from edgeml.fleet.rollout import GuardName, RolloutState
from edgeml.fleet.statistics import Bools, Floats, Ints
from edgeml.fleet.waves import bucket, stratum

INSTALL: Final[tuple[GuardName, ...]] = ("install_failure", "self_test", "crash", "rollback", "silence")
"""Guards that only a device that was told can fail: judged against a ceiling."""
INNOCENT: Final = frozenset({"no_variant", "signature", "penalty_box", "deadline", "postponed"})
"""Codes that say nothing of the version: the device was not for it, or its owner said later."""
CRASHES: Final = frozenset({"crash", "boot_loop", "watchdog"})
_ENDS: Final = frozenset({"failed", "rejected", "rolled_back", "confirmed"})


@dataclass(frozen=True, slots=True, eq=False)
class Arms:
    """A row a device of the running wave (`canary`) and of the hold-back: stratum, hash, and how it behaved."""

    stratum: Ints
    canary: Bools
    order: Floats
    behaviour: Behaviour

    @property
    def has_control(self) -> bool:
        return bool(np.any(~self.canary))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a rollout at one moment; every number counts devices.

    `settled` devices confirmed and were judged, or turned out bad; `pending` ones were heard since the offer and are neither;
    `started` ones were heard at all, `judged` ones have telemetry enough, `turned_bad` of them are bad by it; `quiet` ones
    confirmed and have too few answers to be judged. `install_bad` and `behaviour_bad` count all waves so far; `arms` has the
    running wave.
    """

    version: str
    previous: str | None  # what most of the hold-back runs
    eligible: int
    told: int
    started: int
    settled: int
    pending: int
    bad: int
    judged: int
    turned_bad: int
    install_bad: Mapping[GuardName, int]
    behaviour_bad: Mapping[GuardName, int]
    arms: Arms
    left_out: Mapping[str, int] = field(default_factory=dict)
    quiet: int = 0


@dataclass(frozen=True, slots=True)
class Fleet:
    """The devices a rollout may touch, and why the others not."""

    eligible: dict[str, Device]
    left_out: Counter[str]

    @classmethod
    def empty(cls) -> Fleet:
        return cls({}, Counter())


def eligible(state: RolloutState, version: VersionFacts, devices: Sequence[Device], told: Mapping[str, Assignment]) -> Fleet:
    """Devices that can take this version, and all that were told already."""
    chosen: dict[str, Device] = {}
    left_out: Counter[str] = Counter()
    for device in devices:
        if any(device.tags.get(name) != value for name, value in state.spec.where.items()):
            continue
        reason = None if device.id in told else why_not(device, version)
        if reason is None:
            chosen[device.id] = device
        else:
            left_out[reason] += 1
    return Fleet(chosen, left_out)


def why_not(device: Device, version: VersionFacts) -> str | None:
    """Why a device is not offered a version; `None` if it may be."""
    if not device.engines:
        return "never heard from"
    if device.signature is not None and device.signature != version.signature:
        return "fed with another signature by their application"
    if not device.engines & version.engines:
        return "without an engine for its artifacts"
    if version.manifest_sha256 in device.failed:
        return "on which this version failed before"
    return None


@dataclass(frozen=True, slots=True)
class Reading:
    """The ledger's rows of one rollout at one moment. `since_start` and `since_wave` are sums of telemetry, `before` older."""

    fleet: Fleet
    told: Mapping[str, Assignment]
    outcomes: Mapping[str, Outcome]
    since_start: Sequence[TelemetrySum]
    since_wave: Sequence[TelemetrySum]
    before: Sequence[TelemetrySum]
    versions: Mapping[str, VersionFacts | None]  # of every version that telemetry names


def gather(state: RolloutState, reading: Reading, now: float) -> Evidence:
    """All of a rollout's evidence. Told devices are judged since its start, the hold-back since the wave's."""
    spec = state.spec
    control = [
        device
        for device in reading.fleet.eligible.values()
        if device.id not in reading.told and device.version not in {None, spec.version}
    ]
    counts = Counter(device.version for device in control)
    previous = counts.most_common(1)[0][0] if counts else None
    before = _longest(reading.before, without=spec.version)
    rules = _rules(reading.versions, spec.version, previous)
    promised = {name: facts.offload for name, facts in reading.versions.items() if facts}
    least = spec.gate.least_answers

    told = list(reading.told.values())
    new = {s.device: s for s in reading.since_start if s.version == spec.version}
    canary_behaviour = judge([new.get(a.device) for a in told], before, rules, least, promised)
    old = _longest(reading.since_wave, without=spec.version)
    control_behaviour = judge([old.get(device.id) for device in control], before, rules, least, promised)

    install = [_install_guard(a, reading, spec.gate.silence_s, now) for a in told]
    watched = [g for g in BEHAVIOUR if g in spec.gate.guards]
    turned_bad = _any([canary_behaviour.bad[g] for g in watched], len(told)) & canary_behaviour.judged
    failed = np.asarray([g is not None and g in spec.gate.guards for g in install], dtype=np.bool_)
    confirmed = np.asarray([_state(a, reading) == "confirmed" for a in told], dtype=np.bool_)
    good = confirmed & (canary_behaviour.judged | (least == 0))
    innocent = np.asarray([_is_innocent(reading.outcomes.get(a.device)) for a in told], dtype=np.bool_)
    started = (np.asarray([_heard(a, reading) for a in told], dtype=np.bool_) | canary_behaviour.judged) & ~innocent
    bad = failed | turned_bad
    settled = bad | good
    return Evidence(
        version=spec.version,
        previous=previous,
        eligible=len(reading.fleet.eligible),
        told=len(told),
        started=int(np.sum(started | failed)),
        settled=int(np.sum(settled)),
        pending=int(np.sum(started & ~settled)),
        bad=int(np.sum(bad)),
        judged=int(np.sum(canary_behaviour.judged)),
        turned_bad=int(np.sum(turned_bad)),
        install_bad={g: sum(found == g for found in install) for g in INSTALL if g in spec.gate.guards},
        behaviour_bad={g: int(np.sum(canary_behaviour.bad[g] & canary_behaviour.judged)) for g in watched},
        arms=_arms(state, reading, control, canary=canary_behaviour, held=control_behaviour, watched=watched),
        left_out=reading.fleet.left_out,
        quiet=int(np.sum(confirmed & ~settled)),
    )


def _arms(
    state: RolloutState,
    reading: Reading,
    control: Sequence[Device],
    *,
    canary: Behaviour,
    held: Behaviour,
    watched: Sequence[GuardName],
) -> Arms:
    spec, told = state.spec, list(reading.told.values())
    rows = np.asarray(
        [i for i, a in enumerate(told) if a.wave == state.wave and a.device in reading.fleet.eligible], dtype=np.int64
    )
    ids = [told[i].device for i in rows] + [device.id for device in control]
    names = [stratum(reading.fleet.eligible[device].tags, spec.strata) for device in ids]
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return Arms(
        stratum=np.asarray([codes[name] for name in names], dtype=np.int64),
        canary=np.arange(len(ids)) < len(rows),
        order=np.asarray([bucket(spec.salt, device) for device in ids], dtype=np.float64),
        behaviour=Behaviour(
            judged=np.concatenate([canary.judged[rows], held.judged]),
            bad={g: np.concatenate([canary.bad[g][rows], held.bad[g]]) for g in watched},
        ),
    )


def _rules(versions: Mapping[str, VersionFacts | None], new: str, previous: str | None) -> dict[str, tuple[LowRule, ...]]:
    before = versions.get(previous) if previous else None
    return {name: low_rules(facts, before if name == new else None) for name, facts in versions.items()}


def _longest(sums: Sequence[TelemetrySum], without: str) -> dict[str, TelemetrySum]:
    """For each device the other version that it answered most with."""
    found: dict[str, TelemetrySum] = {}
    for one in sums:
        if one.version != without and (one.device not in found or one.answers > found[one.device].answers):
            found[one.device] = one
    return found


def _install_guard(assignment: Assignment, reading: Reading, silence_s: float, now: float) -> GuardName | None:
    outcome = reading.outcomes.get(assignment.device)
    if outcome is None or outcome.state not in _ENDS or outcome.retryable:
        return "silence" if _is_silent(assignment, outcome, reading, silence_s, now) else None
    if outcome.state == "confirmed" or _is_innocent(outcome):
        return None
    if outcome.code in CRASHES:
        return "crash"
    if outcome.code == "self_test":
        return "self_test"
    return "rollback" if outcome.state == "rolled_back" else "install_failure"


def _is_silent(assignment: Assignment, outcome: Outcome | None, reading: Reading, silence_s: float, now: float) -> bool:
    """Heard since it was told, and no step forward for `silence_s`; a soaking device owes only a sign of life."""
    if not _heard(assignment, reading):
        return False
    device = reading.fleet.eligible.get(assignment.device)
    newest = outcome.at if outcome else assignment.told_at
    if outcome is not None and outcome.state in {"soaking", "shadow"} and device is not None:
        newest = max(newest, device.last_seen or newest)
    return now - max(newest, assignment.told_at) > silence_s


def _heard(assignment: Assignment, reading: Reading) -> bool:
    device = reading.fleet.eligible.get(assignment.device)
    seen = device is not None and device.last_seen is not None and device.last_seen > assignment.told_at
    return seen or assignment.device in reading.outcomes


def _state(assignment: Assignment, reading: Reading) -> str | None:
    outcome = reading.outcomes.get(assignment.device)
    return outcome.state if outcome else None


def _is_innocent(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.state in {"failed", "rejected"} and outcome.code in INNOCENT


def _any(columns: Sequence[Bools], rows: int) -> Bools:
    return np.any(np.stack(columns), axis=0) if columns else np.zeros(rows, dtype=np.bool_)
