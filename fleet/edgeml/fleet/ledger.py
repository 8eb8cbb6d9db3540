"""What the controller asks of the store. Reads return whole arms in one query; there is no round trip per device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from edgeml.fleet.rollout import RolloutState
from edgeml.wire.messages import Target, UpdateState
from edgeml.wire.sketches import Histogram, LatencySketch


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """A published version as the rollout needs it: from the signed metadata and the manifest."""

    model: str
    version: str
    manifest_sha256: str
    path: str  # TUF target path
    signature: str  # digest of the manifest's signature
    engines: frozenset[str]  # Requirement.engine of its artifacts
    confidence: Histogram | None = None  # Manifest.reference.confidence
    offload: float = 0.0  # share of answers that its artifacts ask the cloud for, as export promised; the largest


@dataclass(frozen=True, slots=True)
class Device:
    """One enrolled device as seen from one model.

    `signature` is what the application on it feeds that model (State.models), `None` when not said. `engines` is empty when the
    device was never heard. `target` is what the fleet wants now, `version` what the device says is active.
    `failed` holds the manifests that it gave up on for good (last report failed, rejected or rolled_back, not retryable).
    """

    id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    engines: frozenset[str] = frozenset()
    signature: str | None = None
    online: bool = False
    last_seen: float | None = None  # service clock, any message
    target: Target | None = None
    version: str | None = None
    manifest_sha256: str | None = None
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Assignment:
    """A device that a rollout told: in which wave, when, and what it was wanted to run before (`None`: nothing)."""

    device: str
    wave: int
    told_at: float
    previous: Target | None
    taken_back_at: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The newest report (by seq) of a device that names this rollout and its new version."""

    device: str
    state: UpdateState
    at: float  # service clock
    code: str | None = None
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class TelemetrySum:
    """All windows of one device and one version of the model that fell into a period, added up."""

    device: str
    version: str
    answers: int  # Telemetry.runs
    errors: int  # all codes
    fallbacks: int  # all reasons
    latency: LatencySketch | None = None
    confidence: Histogram | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """Want `target` on `device` for a rollout's sake.

    `offer` and `release` (to the hold-back, at the end) record an assignment with `previous`, what to go back to (once: an
    assignment that exists keeps its wave, time and previous); `take_back` sets its `taken_back_at`.
    """

    device: str
    target: Target
    rollout: str
    wave: int
    kind: Literal["offer", "release", "take_back"]
    at: float
    previous: Target | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the rollout's story, for people and the audit."""

    at: float
    rollout: str
    kind: str  # started, wave, hold, stop, rollback, done, paused, resumed, aborted, …
    text: str


class Ledger(Protocol):
    """What the controller reads and writes. Every write is one transaction and may be repeated without effect."""

    def rollouts(self) -> Sequence[RolloutState]:
        """Rollouts to drive: every one not ended, and of the `done` ones the newest of each model."""
        ...

    def version(self, model: str, version: str) -> VersionFacts | None:
        """What is published under this name; `None` if it is not, or was revoked."""
        ...

    def devices(self, model: str) -> Sequence[Device]:
        """Every enrolled, not blocked device."""
        ...

    def assignments(self, rollout: str) -> Sequence[Assignment]: ...

    def outcomes(self, rollout: str, version: str) -> Sequence[Outcome]: ...

    def telemetry(self, model: str, since: float, until: float) -> Sequence[TelemetrySum]:
        """Sums of the windows that started in [since, until), a sum per device and version.

        The store may round both ends down to its own grain (at most 60 s), so that it can keep sums instead of windows.
        """
        ...

    def save(self, state: RolloutState) -> None:
        """Keep the state, replacing what stood under `state.spec.id`."""
        ...

    def tell(self, orders: Sequence[Order]) -> int:
        """Set the desired targets, leaving the device's other models alone; gives how many changed.

        A device whose target for the model equals the order's already is left alone; otherwise its rev grows by one and the
        store sees to it that the device hears of it (retained message, ETag).
        """
        ...

    def append(self, event: Event) -> None: ...
