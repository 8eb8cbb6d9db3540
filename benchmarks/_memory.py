"""A ledger in memory: the controller's store for benchmarks and unit tests, kept by the same rules as the real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgeml.fleet.ledger import Assignment, Device, Event, Order, Outcome, TelemetrySum, VersionFacts
from edgeml.fleet.rollout import ENDED, RolloutState
from edgeml.wire.messages import Report, Slot, Target


@dataclass(slots=True)
class Kept:
    """One device as the service remembers it."""

    device: Device
    rev: int = 0
    last_seq: int = -1


@dataclass(slots=True)
class MemoryLedger:
    """`Ledger` in dictionaries; `windows` are (start, sum)."""

    versions: dict[tuple[str, str], VersionFacts] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    states: dict[str, RolloutState] = field(default_factory=dict)
    told: dict[tuple[str, str], Assignment] = field(default_factory=dict)
    reported: dict[tuple[str, str, str], Outcome] = field(default_factory=dict)
    windows: list[tuple[float, str, TelemetrySum]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    raised: int = 0
    is_dying: bool = False  # the next tell does not come to pass

    def rollouts(self) -> Sequence[RolloutState]:
        newest = {s.spec.model: s.spec.id for s in self.states.values() if s.phase == "done"}
        live = [s for s in self.states.values() if s.phase not in ENDED]
        return [s for s in live if s.phase != "done" or newest[s.spec.model] == s.spec.id]

    def version(self, model: str, version: str) -> VersionFacts | None:
        return self.versions.get((model, version))

    def devices(self, model: str) -> Sequence[Device]:
        del model
        return [one.device for one in self.kept.values()]

    def assignments(self, rollout: str) -> Sequence[Assignment]:
        return [a for (name, _), a in self.told.items() if name == rollout]

    def outcomes(self, rollout: str, version: str) -> Sequence[Outcome]:
        return [o for (name, of, _), o in self.reported.items() if (name, of) == (rollout, version)]

    def telemetry(self, model: str, since: float, until: float) -> Sequence[TelemetrySum]:
        sums: dict[tuple[str, str], TelemetrySum] = {}
        for start, of, one in self.windows:
            if of == model and since <= start < until:
                key = (one.device, one.version)
                sums[key] = add(sums[key], one) if key in sums else one
        return list(sums.values())

    def save(self, state: RolloutState) -> None:
        self.states[state.spec.id] = state

    def tell(self, orders: Sequence[Order]) -> int:
        if self.is_dying:
            raise KeyboardInterrupt
        return sum(self._tell(order) for order in orders)

    def append(self, event: Event) -> None:
        self.events.append(event)

    def take(self, report: Report, at: float, *, manifest: str | None) -> None:
        """A device's report, in any order and as often as one likes; `manifest` is what it says is active."""
        one = self.kept[report.device]
        if report.seq <= one.last_seq:
            return
        one.last_seq = report.seq
        version = next((v.version for v in self.versions.values() if v.manifest_sha256 == manifest), None)
        failed = one.device.failed
        if report.manifest_sha256 and report.state in {"failed", "rejected", "rolled_back"} and not report.retryable:
            failed |= {report.manifest_sha256}
        one.device = replace(one.device, version=version, manifest_sha256=manifest, failed=failed, online=True, last_seen=at)
        if report.rollout is not None and report.version is not None:
            key = (report.rollout, report.version, report.device)
            self.reported[key] = Outcome(report.device, report.state, at, report.code, report.retryable)

    def _tell(self, order: Order) -> bool:
        one = self.kept[order.device]
        key = (order.rollout, order.device)
        if order.kind != "take_back":
            self.told.setdefault(key, Assignment(order.device, order.wave, order.at, order.previous))
        elif key in self.told and self.told[key].taken_back_at is None:
            self.told[key] = replace(self.told[key], taken_back_at=order.at)
        if one.device.target == order.target:
            return False
        one.device = replace(one.device, target=order.target)
        one.rev += 1
        self.raised += 1
        return True


def add(a: TelemetrySum, b: TelemetrySum) -> TelemetrySum:
    return TelemetrySum(
        a.device, a.version, a.answers + b.answers, a.errors + b.errors, a.fallbacks + b.fallbacks,
        a.latency + b.latency if a.latency and b.latency else a.latency or b.latency,
        a.confidence + b.confidence if a.confidence and b.confidence else a.confidence or b.confidence,
    )  # fmt: skip


def slots(active: str, version: str) -> tuple[Slot, ...]:
    return (Slot(version, active, active=True),)


def target(facts: VersionFacts, rollout: str | None = None) -> Target:
    return Target(facts.model, facts.version, facts.manifest_sha256, facts.path, rollout)
