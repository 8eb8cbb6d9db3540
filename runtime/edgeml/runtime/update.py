"""The words of an update: its stored state, what can happen to it, and what it asks for. The rules are in `updater`."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import astuple

from edgeml.wire.messages import Target
from edgeml.wire.structs import learn

Stage = Literal[
    "offered", "downloading", "verified", "self_test", "shadow", "soaking", "confirmed", "failed", "rejected", "rolled_back"
]  # fmt: skip


class Tally(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a version did beside the one that answers, on the same inputs; everything in it adds."""

    runs: int = 0
    agreed: int = 0
    errors: int = 0
    skipped: int = 0  # inputs left out to keep to the share of the processor
    served_s: float = 0.0  # what the version that answers took
    shadow_s: float = 0.0

    def plus(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def minus(self, other: Tally) -> Tally:
        """What came since `other`."""
        return Tally(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def latency_ratio(self) -> float | None:
        return self.shadow_s / self.served_s if self.served_s > 0 else None


class Policy(msgspec.Struct, frozen=True):
    """How careful and how patient to be. `shadow_s` 0: a new version does not run beside the old one first."""

    soak_s: float = 300.0
    health_s: float = 30.0
    most_error_share: float = 0.2
    least_runs: int = 20
    backoff_s: float = 30.0
    backoff_cap_s: float = 3600.0
    shadow_s: float = 0.0
    shadow_calls: int = 200
    least_agreement: float = 0.9
    most_latency_ratio: float = 2.0


class Update(msgspec.Struct, frozen=True):
    """Where a device stands with one model; what survives a restart.

    `installed` are the manifest digests that can be opened here, `factory` among them if the device was shipped with one;
    `penalties` the digests not to try again, with the reason. `wake_at` is when the machine next has something to do by itself.
    `attempt` numbers what was begun: what comes back from an earlier attempt is not heard. `proven` are installed versions that
    stood a soak here: going back to one is no experiment.
    """

    model: str
    rev: int = 0
    target: Target | None = None
    stage: Stage | None = None
    active: str | None = None
    confirmed: str | None = None
    installed: tuple[str, ...] = ()
    factory: str | None = None
    attempt: int = 0
    tries: int = 0
    waits: int = 0
    boots: int = 0
    booted_at: float = 0.0
    soak_until: float = 0.0
    wake_at: float | None = None
    downloaded_bytes: int = 0
    code: str | None = None
    detail: str | None = None
    retryable: bool = False
    penalties: dict[str, str] = {}
    held_since: float | None = None  # since when the application postpones it
    proven: tuple[str, ...] = ()
    shadow_until: float | None = None
    shadow: Tally | None = None  # of the version that runs beside, over all processes

    @property
    def wanted(self) -> str | None:
        """Manifest digest of the version the fleet wants."""
        return None if self.target is None else self.target.manifest_sha256


class Wanted(msgspec.Struct, frozen=True):
    """The fleet's word for this model, as of a revision."""

    rev: int
    target: Target


class Booted(msgspec.Struct, frozen=True):
    """The process started; `installed` is what it found, `factory` what it was shipped with."""

    installed: tuple[str, ...]
    factory: str | None = None


class Tick(msgspec.Struct, frozen=True):
    """Time went by."""


class Fetched(msgspec.Struct, frozen=True):
    """The bundle lies in its slot, every byte checked; `moved_bytes` came over the network in this try."""

    digest: str
    attempt: int
    bytes: int
    moved_bytes: int


class Waiting(msgspec.Struct, frozen=True):
    """The service is out of reach, or its metadata is out of date: not this version's fault."""

    digest: str
    attempt: int
    code: str
    detail: str
    moved_bytes: int = 0


class Failed(msgspec.Struct, frozen=True):
    """Download, check or self-test failed."""

    digest: str
    attempt: int
    code: str
    detail: str
    retryable: bool
    moved_bytes: int = 0


class Tested(msgspec.Struct, frozen=True):
    """The golden vectors hold on this machine, and the version is loaded beside the running one."""

    digest: str
    attempt: int


class Compared(msgspec.Struct, frozen=True):
    """What the version that runs beside did since the last time; no `tally` if it does not run."""

    digest: str
    tally: Tally | None


class Health(msgspec.Struct, frozen=True):
    """How the active version does since its switch; `problem` if its self-test failed when run again."""

    digest: str
    runs: int
    errors: int
    problem: str | None = None


class Damaged(msgspec.Struct, frozen=True):
    """An installed version cannot be opened any more."""

    digest: str
    detail: str


Event = Wanted | Booted | Tick | Fetched | Waiting | Failed | Tested | Compared | Health | Damaged


class Fetch(msgspec.Struct, frozen=True):
    """Ask the signed metadata, download, check, put into a slot; answer with Fetched, Waiting or Failed."""

    target: Target
    attempt: int


class SelfTest(msgspec.Struct, frozen=True):
    """Load beside, run the golden vectors, warm; answer with Tested or Failed."""

    digest: str
    attempt: int


class RunBeside(msgspec.Struct, frozen=True):
    """Let this version see the inputs of live calls too, which the active one answers; answer with Failed if it cannot."""

    digest: str
    attempt: int


class Compare(msgspec.Struct, frozen=True):
    """Look at the version that runs beside; answer with Compared."""

    digest: str


class StopBeside(msgspec.Struct, frozen=True):
    """Nobody wants the version that runs beside any more."""


class Switch(msgspec.Struct, frozen=True):
    """Let this version answer from the next call on; `None`: nothing answers."""

    digest: str | None


class CheckHealth(msgspec.Struct, frozen=True):
    """Look at the active version; answer with Health."""

    digest: str


class Prune(msgspec.Struct, frozen=True):
    """Delete every slot but these."""

    keep: tuple[str, ...]


class Tell(msgspec.Struct, frozen=True):
    """Report where the update stands; the state says the rest."""

    stage: Stage


Work = Fetch | SelfTest | RunBeside | Compare | StopBeside | Switch | CheckHealth | Prune
Action = Work | Tell
Outcome = tuple[Update, tuple[Action, ...]]


learn(__name__)
