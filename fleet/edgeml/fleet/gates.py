"""The two gates: one may stop a rollout at any tick, the other lets a wave end, once, on enough good devices.

**Stop.** Each guard gathers evidence (`statistics.py`) that the new version is worse: by coin flips against the hold-back where
the hold-back can fail the guard too, against the ceiling otherwise. All guards of a rollout share alpha. Most of it goes to
`health`, a device that any behaviour guard finds bad: a broken model is rarely bad in one way only, and never in all.

**Go on.** When a wave has soaked and its devices have settled, the exact upper bound of the share of bad devices must be at
most max(limit, the hold-back's share + margin). If it is not, a person decides. Silence, missing telemetry and devices that are
off are not settled, so they never let a wave end.

Below `SMALL_FLEET` devices nothing here can be shown, so it is said: plain ceilings, and a person between waves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np

from edgeml.fleet.behaviour import BEHAVIOUR
from edgeml.fleet.evidence import INSTALL, Arms, Evidence
from edgeml.fleet.rollout import GateSpec, GuardName, RolloutState, Verdict
from edgeml.fleet.statistics import (
    RATIOS,
    Bools,
    Floats,
    blocks,
    ceiling_log_e,
    coin_log_e,
    log_mean_exp,
    needed_n,
    one_in,
    upper_bound,
)

GateGuard = GuardName | Literal["health"]
SMALL_FLEET: Final = 60  # 0 bad of 59 shows < 5 %; fewer devices show nothing worth the name
HEALTH_SHARE: Final = 0.7  # of alpha
STRAGGLERS: Final = 0.1  # share of the heard devices that a look need not wait for
_DID: Final[Mapping[GateGuard, str]] = {
    "install_failure": "could not install it",
    "self_test": "failed its self-test",
    "crash": "crashed with it",
    "rollback": "took it back by themselves",
    "silence": "fell silent with it",
    "error_rate": "fail more often",
    "confidence": "lost confidence",
    "fallback": "ask the cloud more often",
    "latency": "became slower",
    "health": "got worse",
}


def weights(gate: GateSpec) -> dict[GateGuard, float]:
    """How alpha is shared; sums to 1."""
    install = [g for g in INSTALL if g in gate.guards]
    behaviour = [g for g in BEHAVIOUR if g in gate.guards]
    each = len(install) + len(behaviour)
    if not behaviour:
        return dict.fromkeys(install, 1 / each)
    shared: dict[GateGuard, float] = dict.fromkeys([*install, *behaviour], (1 - HEALTH_SHARE) / each)
    return {"health": HEALTH_SHARE, **shared}


def log_evidence(state: RolloutState, evidence: Evidence) -> dict[str, tuple[float, ...]]:
    """Log evidence of the coin-flip guards so far, one number per alternative, the waves before included."""
    if not evidence.arms.has_control:
        return dict(state.carried)
    counts = _Blocks(evidence.arms)
    columns: dict[str, Bools] = {str(guard): bad for guard, bad in evidence.arms.behaviour.bad.items()}
    if columns:
        columns["health"] = np.any(np.stack(list(columns.values())), axis=0)
    found = {}
    for guard, bad in columns.items():
        total = counts.log_e(bad, state.spec.gate.tolerance) + np.asarray(state.carried.get(guard, 0.0))
        found[guard] = tuple(float(value) for value in total)
    return found


class _Blocks:
    """The judged devices of both arms, by block."""

    def __init__(self, arms: Arms) -> None:
        judged = arms.behaviour.judged
        self._canary = arms.canary
        self._judged = judged
        self._block = blocks(arms.stratum, arms.canary, arms.order)
        self._size = int(self._block.max(initial=-1)) + 1
        self.canary = self._count(judged & arms.canary)
        self.control = self._count(judged & ~arms.canary)

    def log_e(self, bad: Bools, tolerance: float) -> Floats:
        counted = bad & self._judged
        hit = self._count(counted & self._canary)
        missed = self._count(counted & ~self._canary)
        tells = (hit + missed) > 0
        if not tells.any():
            return np.zeros(len(RATIOS))
        log_e = coin_log_e(self.canary[tells], self.control[tells], hit[tells], missed[tells], tolerance=tolerance)
        return np.asarray(log_e.sum(axis=0))

    def _count(self, rows: Bools) -> Floats:
        return np.bincount(self._block[rows], minlength=self._size).astype(np.float64)


def stop_gate(state: RolloutState, evidence: Evidence, now: float) -> Verdict | None:
    """A verdict that stops, or `None`. May be asked at any time and as often as one likes."""
    if evidence.eligible < SMALL_FLEET:
        return _small_stop(state, evidence, now)
    gate = state.spec.gate
    found = _log_e_values(state, evidence)
    share = weights(gate)
    guard = max(found, key=lambda name: found[name] + math.log(share[name]), default=None)
    if guard is None:
        return None
    weighed = found[guard] + math.log(share[guard])
    if weighed < -math.log(gate.alpha):
        return None
    arms = evidence.arms
    by_coin = guard not in INSTALL and arms.has_control
    if by_coin:
        canary, bad, control, control_bad = _counts(arms, guard)
        sentence = _coin_sentence(evidence, guard, weighed)
    else:
        canary, bad, control, control_bad = *_total(evidence, guard), 0, 0
        sentence = _ceiling_sentence(state, evidence, guard, weighed)
    return Verdict(
        outcome="stop", sentence=sentence, at=now, wave=state.wave, guard=guard, canary=canary, bad=bad,
        control=control, control_bad=control_bad, e_value=math.exp(min(weighed, 700.0)),
    )  # fmt: skip


def go_on_gate(state: RolloutState, evidence: Evidence, now: float) -> Verdict:
    """Proceed, hold for a person, or wait. Its proceed or hold ends the look at this wave."""
    spec, wave = state.spec, state.spec.waves[state.wave]
    elapsed = 0.0 if state.wave_started_at is None else now - state.wave_started_at
    name = f"wave {state.wave + 1} of {len(spec.waves)}"
    progress = f"{evidence.settled} of {_devices(evidence.told)} told have settled, {evidence.bad} bad"
    if evidence.quiet:
        progress += f", {evidence.quiet} confirmed but gave fewer than {spec.gate.least_answers} answers so far"
    if evidence.left_out:
        progress += f"; left out: {', '.join(f'{count:,} {why}' for why, count in sorted(evidence.left_out.items()))}"
    overdue = elapsed >= wave.longest_s
    if elapsed < wave.soak_s:
        return _verdict(state, evidence, "wait", f"{name}: {progress}; soaking for {_span(wave.soak_s)}", now)
    if evidence.settled < wave.least_devices:
        missing = f"{name}: {progress}; at least {wave.least_devices} must settle"
        if overdue:
            return _verdict(state, evidence, "hold", f"held: {missing}: no data promotes nothing; approve or abort", now)
        return _verdict(state, evidence, "wait", missing, now)
    if evidence.pending > STRAGGLERS * evidence.started and not overdue:
        return _verdict(state, evidence, "wait", f"{name}: {progress}; waiting for {evidence.pending} more", now)
    return _look(state, evidence, name, now)


def _look(state: RolloutState, evidence: Evidence, name: str, now: float) -> Verdict:
    spec = state.spec
    if evidence.eligible < SMALL_FLEET:
        return _small_look(state, evidence, name, now)
    alpha = spec.gate.go_on_alpha / len(spec.waves)
    upper = upper_bound(evidence.bad, evidence.settled, alpha)
    limit = max(spec.gate.limit, control_share(evidence.arms) + spec.gate.margin)
    counted = f"{evidence.bad} of {_devices(evidence.settled)} on {spec.version} bad"
    shown = f"{counted}, which shows that fewer than {_percent(upper)} are"
    if upper <= limit:
        return _verdict(state, evidence, "proceed", f"{name} passed: {shown} (limit {_percent(limit)})", now, upper=upper)
    way_out = "approve or abort"
    if evidence.bad <= limit * evidence.settled:
        needed = needed_n(limit, alpha, evidence.bad)
        way_out = f"{_devices(needed)} with no more bad ones would show it; {way_out}"
    return _verdict(
        state, evidence, "hold", f"held after {name}: {shown}, limit {_percent(limit)}; {way_out}", now, upper=upper
    )


def _small_look(state: RolloutState, evidence: Evidence, name: str, now: float) -> Verdict:
    spec = state.spec
    shown = f"{evidence.bad} of {_devices(evidence.settled)} on {spec.version} bad; {_too_few(evidence.eligible)}"
    if evidence.bad > spec.gate.limit * evidence.settled:
        return _verdict(state, evidence, "hold", f"held after {name}: {shown}; approve or abort", now, guaranteed=False)
    if spec.confirm_small:
        return _verdict(state, evidence, "hold", f"held after {name}: {shown}; approve to go on", now, guaranteed=False)
    return _verdict(state, evidence, "proceed", f"{name} passed: {shown}", now, guaranteed=False)


def _small_stop(state: RolloutState, evidence: Evidence, now: float) -> Verdict | None:
    gate, arms = state.spec.gate, evidence.arms
    allowed = gate.ceiling + control_share(arms)
    if not evidence.bad or evidence.bad <= allowed * evidence.told:
        return None
    causes = {**evidence.install_bad, **evidence.behaviour_bad}
    guard: GuardName = max(causes, key=lambda name: causes[name])
    sentence = (
        f"stopped: {evidence.bad} of {_devices(evidence.told)} {_told(guard, evidence.version)} {_DID[guard]}, "
        f"more than the ceiling of {_percent(allowed)}; {_too_few(evidence.eligible)}"
    )
    return _verdict(state, evidence, "stop", sentence, now, guard=guard, guaranteed=False)


def control_share(arms: Arms) -> float:
    """Share of the judged hold-back that is bad; 0 without one."""
    canary, _, control, bad = _counts(arms, "health")
    del canary
    return bad / control if control else 0.0


def _log_e_values(state: RolloutState, evidence: Evidence) -> dict[GateGuard, float]:
    """Log evidence of each guard, the alternatives averaged."""
    gate = state.spec.gate
    found: dict[GateGuard, float] = {}
    for name in evidence.install_bad:
        found[name] = _ceiling(evidence, name, gate)
    coins = log_evidence(state, evidence)
    behaviour: list[GateGuard] = [*evidence.behaviour_bad, *(["health"] if evidence.behaviour_bad else [])]  # type: ignore[list-item]
    for guard in behaviour:
        coin = float(log_mean_exp(coins[guard])) if guard in coins else None
        if evidence.arms.has_control:
            assert coin is not None
            found[guard] = coin
        else:  # two ways to gather evidence for one guard share its part of alpha
            ceiling = _ceiling(evidence, guard, gate)
            found[guard] = ceiling if coin is None else float(log_mean_exp([coin, ceiling]))
    return found


def _ceiling(evidence: Evidence, guard: GateGuard, gate: GateSpec) -> float:
    devices, bad = _total(evidence, guard)
    return float(log_mean_exp(ceiling_log_e(bad, devices, ceiling=gate.ceiling)))


def _total(evidence: Evidence, guard: GateGuard) -> tuple[int, int]:
    """(devices, bad ones) over all waves for a guard without a hold-back."""
    if guard in evidence.install_bad:
        return evidence.started, evidence.install_bad[guard]  # type: ignore[index]
    if guard == "health":
        return evidence.judged, evidence.turned_bad
    return evidence.judged, evidence.behaviour_bad[guard]


def _counts(arms: Arms, guard: GateGuard) -> tuple[int, int, int, int]:
    """(canary, bad ones, hold-back, bad ones) among the judged devices of the running wave."""
    columns = arms.behaviour.bad
    judged, canary = arms.behaviour.judged, arms.canary
    if not columns:
        return 0, 0, 0, 0
    bad = np.any(np.stack(list(columns.values())), axis=0) if guard == "health" else columns[guard]
    rows = (judged & canary, judged & canary & bad, judged & ~canary, judged & ~canary & bad)
    return tuple(int(np.sum(row)) for row in rows)  # type: ignore[return-value]


def _coin_sentence(evidence: Evidence, guard: GateGuard, weighed: float) -> str:
    canary, bad, control, control_bad = _counts(evidence.arms, guard)
    version, previous = evidence.version, evidence.previous
    seen = f"{bad} of {_devices(canary)} on {version} {_cause(evidence, guard)}, {control_bad} of {control} on {previous}"
    return f"stopped: {seen}; if {version} were no worse this would happen less than once in {one_in(weighed):,} rollouts"


def _ceiling_sentence(state: RolloutState, evidence: Evidence, guard: GateGuard, weighed: float) -> str:
    devices, bad = _total(evidence, guard)
    ceiling = _percent(state.spec.gate.ceiling)
    alone = "" if guard in INSTALL else f"; no version ran before, so this is judged against a ceiling of {ceiling}"
    return (
        f"stopped: {bad} of {_devices(devices)} {_told(guard, evidence.version)} {_cause(evidence, guard)}{alone}; "
        f"if no more than {ceiling} of devices did this would happen less than once in {one_in(weighed):,} rollouts"
    )


def _cause(evidence: Evidence, guard: GateGuard) -> str:
    """What the bad devices did; for `health`, how many did what."""
    if guard != "health":
        return _DID[guard]
    arms = evidence.arms
    if arms.has_control:
        counts = {name: _counts(arms, name)[1] for name in evidence.behaviour_bad}
        worst = _counts(arms, guard)[1]
    else:
        counts, worst = dict(evidence.behaviour_bad), evidence.turned_bad
    causes = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])
    if len(causes) == 1 or counts[causes[0]] == worst:
        return _DID[causes[0]]
    return f"{_DID['health']} ({', '.join(f'{counts[name]} {_DID[name]}' for name in causes)})"


def _verdict(
    state: RolloutState,
    evidence: Evidence,
    outcome: Literal["stop", "proceed", "hold", "wait"],
    sentence: str,
    now: float,
    *,
    guard: GateGuard | None = None,
    upper: float | None = None,
    guaranteed: bool = True,
) -> Verdict:
    _, _, control, control_bad = _counts(evidence.arms, "health")
    return Verdict(
        outcome=outcome, sentence=sentence, at=now, wave=state.wave, guard=guard, canary=evidence.settled, bad=evidence.bad,
        control=control, control_bad=control_bad, upper=upper, guaranteed=guaranteed,
    )  # fmt: skip


def _told(guard: GateGuard, version: str) -> str:
    return f"told to run {version}" if guard in INSTALL else f"on {version}"


def _too_few(devices: int) -> str:
    return f"{_devices(devices)} {'is' if devices == 1 else 'are'} too few for a statistical guarantee"


def _devices(count: int) -> str:
    return f"{count:,} device" if count == 1 else f"{count:,} devices"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def forecast(gate: GateSpec, shares: Sequence[float], devices: int) -> list[str]:
    """What each wave can and cannot show, before it starts; one sentence a wave."""
    if devices < SMALL_FLEET:
        return [f"{_too_few(devices)}: plain ceilings, and a person between waves"]
    alpha = gate.go_on_alpha / len(shares)
    lines = []
    for number, share in enumerate(shares, start=1):
        told = max(1, round(share * devices))
        upper = upper_bound(0, told, alpha)
        line = f"wave {number}: {_devices(told)}; none bad shows fewer than {_percent(upper)}"
        if upper > gate.limit:
            least = needed_n(gate.limit, alpha)
            line += f", not the limit of {_percent(gate.limit)}: it will hold for a person ({_devices(least)} would do)"
        lines.append(line)
    return lines
