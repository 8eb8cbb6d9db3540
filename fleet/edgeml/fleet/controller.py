"""The clock of rollouts: read the ledger, judge, step, save, tell.

    controller = Controller(ledger)
    controller.tick(now)                      # every second or so; restart-safe, one leased controller per rollout

Operators' commands do not go through it: the API applies `rollout.apply(state, command, by, now)` and saves, and the next tick
does what follows. Nothing is remembered between ticks but what the ledger says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgeml.fleet.evidence import Evidence, Fleet, Reading, eligible, gather
from edgeml.fleet.gates import forecast, go_on_gate, log_evidence, stop_gate
from edgeml.fleet.ledger import Assignment, Device, Event, Ledger, Order, Outcome, TelemetrySum, VersionFacts
from edgeml.fleet.rollout import Note, Offer, RolloutState, Seen, TakeBack, Verdict, step
from edgeml.fleet.waves import due, stratum
from edgeml.wire.messages import Target

__all__ = [
    "Assignment", "Controller", "Device", "Event", "Ledger", "Order", "Outcome", "TelemetrySum", "VersionFacts", "foresee",
    "observe",
]  # fmt: skip

LOOK_BACK_S: Final = 86_400.0  # a day: what a device did before is measured over its whole daily round
_JUDGED: Final = frozenset({"running", "holding", "paused"})


@dataclass(frozen=True, slots=True)
class _Sight:
    """One rollout's devices at one tick."""

    version: VersionFacts | None
    devices: Mapping[str, Device]
    told: Mapping[str, Assignment]
    fleet: Fleet


class Controller:
    """Drives every live rollout of a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def tick(self, now: float) -> int:
        """Take every rollout one step; gives how many devices were told something new."""
        rollouts = self._ledger.rollouts()
        live = frozenset(r.spec.id for r in rollouts if r.phase != "done")
        devices: dict[str, Sequence[Device]] = {}
        told = 0
        for state in rollouts:
            if state.phase == "draft":
                continue
            model = state.spec.model
            if model not in devices:
                devices[model] = self._ledger.devices(model)
            changed = self._drive(state, devices[model], live, now)
            if changed:
                del devices[model]  # the next rollout of this model must see what this one has told
            told += changed
        return told

    def _drive(self, state: RolloutState, devices: Sequence[Device], live: frozenset[str], now: float) -> int:
        sight = _look(self._ledger, state, devices)
        seen = self._see(state, sight, now)
        after, actions = step(state, seen, now)
        if after != state:
            self._ledger.save(after)
        orders: list[Order] = []
        for action in actions:
            match action:
                case Note():
                    self._ledger.append(Event(now, after.spec.id, action.kind, action.text))
                case Offer():
                    orders += _offers(after, action, sight, live, now)
                case TakeBack():
                    orders += _take_back(self._ledger, after, sight, now)
        return self._ledger.tell(orders) if orders else 0

    def _see(self, state: RolloutState, sight: _Sight, now: float) -> Seen:
        if state.phase == "rolling_back":
            return Seen(to_take_back=len(_mine(state, sight)) + len(_others(state, sight)), away=_away(state, sight))
        if state.phase not in _JUDGED:
            return Seen()
        if sight.version is None:
            return Seen(verdict=_revoked(state, now)) if state.phase == "running" else Seen()
        evidence = _evidence(self._ledger, state, sight, now)
        verdict = stop_gate(state, evidence, now) or (go_on_gate(state, evidence, now) if state.phase == "running" else None)
        return Seen(verdict=verdict, log_e=log_evidence(state, evidence))


def observe(ledger: Ledger, state: RolloutState, now: float) -> Evidence | None:
    """The evidence of a rollout as the gates would see it now; `None` where there is nothing to judge."""
    if state.wave < 0:
        return None
    sight = _look(ledger, state, ledger.devices(state.spec.model))
    return _evidence(ledger, state, sight, now) if sight.version else None


def foresee(ledger: Ledger, state: RolloutState) -> list[str]:
    """What each wave of a rollout will be able to show on the devices that can take the version; one sentence a wave."""
    sight = _look(ledger, state, ledger.devices(state.spec.model))
    return forecast(state.spec.gate, [wave.share for wave in state.spec.waves], len(sight.fleet.eligible))


def _look(ledger: Ledger, state: RolloutState, devices: Sequence[Device]) -> _Sight:
    told = {a.device: a for a in ledger.assignments(state.spec.id)}
    version = ledger.version(state.spec.model, state.spec.version)
    if version is not None and version.manifest_sha256 != state.spec.manifest_sha256:
        version = None
    return _Sight(
        version=version,
        devices={device.id: device for device in devices},
        told=told,
        fleet=eligible(state, version, devices, told) if version else Fleet.empty(),
    )


def _evidence(ledger: Ledger, state: RolloutState, sight: _Sight, now: float) -> Evidence:
    spec = state.spec
    started = state.started_at if state.started_at is not None else now
    since_start = ledger.telemetry(spec.model, started, now)
    wave_started = state.wave_started_at if state.wave_started_at is not None else started
    since_wave = since_start if wave_started == started else ledger.telemetry(spec.model, wave_started, now)
    names = {device.version for device in sight.devices.values() if device.version is not None} | {spec.version}
    reading = Reading(
        fleet=sight.fleet,
        told={a.device: a for a in sight.told.values() if a.device in sight.devices},
        outcomes={outcome.device: outcome for outcome in ledger.outcomes(spec.id, spec.version)},
        since_start=since_start,
        since_wave=since_wave,
        before=ledger.telemetry(spec.model, started - LOOK_BACK_S, started),
        versions={name: ledger.version(spec.model, name) for name in names},
    )
    return gather(state, reading, now)


def _offers(state: RolloutState, offer: Offer, sight: _Sight, live: frozenset[str], now: float) -> list[Order]:
    if sight.version is None:
        return []
    free = {
        device.id: stratum(device.tags, state.spec.strata)
        for device in sight.fleet.eligible.values()
        # devices that another rollout of this model is trying something on are its own
        if device.target is None or device.target.rollout == state.spec.id or device.target.rollout not in live
    }
    target = Target(
        model=state.spec.model, version=state.spec.version, manifest_sha256=state.spec.manifest_sha256,
        path=sight.version.path, rollout=state.spec.id, wave=offer.wave,
    )  # fmt: skip
    return [
        Order(
            device=device, target=target, rollout=state.spec.id, wave=offer.wave, at=now,
            kind="release" if state.phase == "done" else "offer", previous=_running(state, sight.devices[device]),
        )
        for device in due(state.spec.salt, free, offer.share, sight.told)
    ]  # fmt: skip


def _running(state: RolloutState, device: Device) -> Target | None:
    """What a device goes back to: what the fleet wanted of it, else the version it came with."""
    if device.target is not None or device.version is None:
        return device.target
    return Target(
        model=state.spec.model, version=device.version, manifest_sha256=device.manifest_sha256,
        path=f"models/{state.spec.model}/{device.version}.edgeml",
    )  # fmt: skip


def _take_back(ledger: Ledger, state: RolloutState, sight: _Sight, now: float) -> list[Order]:
    """Send this rollout's devices back, and strike out those that a later one has: it must not return them to this version."""
    spec, known = state.spec, {state.spec.id: sight.told}

    def order(device: Device, target: Target) -> Order:
        return Order(device.id, target, spec.id, sight.told[device.id].wave, "take_back", now)

    back = [order(device, _way_back(ledger, device.id, spec.id, known) or Target(spec.model)) for device in _mine(state, sight)]
    return back + [order(device, device.target) for device in _others(state, sight) if device.target is not None]


def _way_back(ledger: Ledger, device: str, rollout: str, known: dict[str, Mapping[str, Assignment]]) -> Target | None:
    """What a device ran before this rollout, and before every one before it that was itself taken back.

    `known` keeps the assignments of rollouts that were read.
    """
    previous = known[rollout][device].previous
    passed = {rollout}
    while previous is not None and previous.rollout is not None and previous.rollout not in passed:
        name = previous.rollout
        passed.add(name)
        if name not in known:
            known[name] = {a.device: a for a in ledger.assignments(name)}
        earlier = known[name].get(device)
        if earlier is None or earlier.taken_back_at is None:
            break
        previous = earlier.previous
    return previous


def _mine(state: RolloutState, sight: _Sight) -> list[Device]:
    """Devices that this rollout told, and no later one."""
    told = (sight.devices[name] for name in sight.told if name in sight.devices)
    return [device for device in told if device.target is not None and device.target.rollout == state.spec.id]


def _others(state: RolloutState, sight: _Sight) -> list[Device]:
    """Devices that this rollout told, that a later one has now, and that are not struck out yet."""
    told = (sight.devices[a.device] for a in sight.told.values() if a.taken_back_at is None and a.device in sight.devices)
    return [device for device in told if device.target is not None and device.target.rollout != state.spec.id]


def _away(state: RolloutState, sight: _Sight) -> int:
    """Devices told to go back that are online, still say that they run the new version, and have not given up on going back."""
    back = (sight.devices[name] for name, a in sight.told.items() if a.taken_back_at is not None and name in sight.devices)
    new = state.spec.manifest_sha256
    return sum(
        device.online
        and device.manifest_sha256 == new
        and device.target is not None
        and device.target.manifest_sha256 != new
        and device.target.manifest_sha256 not in device.failed
        for device in back
    )


def _revoked(state: RolloutState, now: float) -> Verdict:
    sentence = f"held: {state.spec.model} {state.spec.version} is not published any more; nothing is handed out"
    return Verdict(outcome="hold", sentence=sentence, at=now, wave=state.wave)
