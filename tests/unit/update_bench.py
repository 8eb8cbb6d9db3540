"""The update machine in memory: actions are carried out as the test says, and power can go between any two of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from edgeml.runtime import updater as u
from edgeml.wire.messages import Target

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
VERSIONS = {A: "1.0.0", B: "1.1.0", C: "1.2.0", D: "1.3.0"}
POLICY = u.Policy(soak_s=300.0, health_s=30.0, most_error_share=0.2, least_runs=20, backoff_s=10.0, backoff_cap_s=100.0)
SHADOW = msgspec.structs.replace(POLICY, shadow_s=600.0, shadow_calls=100, least_agreement=0.9, most_latency_ratio=2.0)


def target(digest: str, *, not_before: float = 0.0, deadline: float | None = None) -> Target:
    return Target("kws", VERSIONS[digest], digest, not_before=not_before, deadline=deadline)


@dataclass
class Bench:
    """A device in memory: carries out actions as the test says, and can lose its power between any two of them."""

    update: u.Update = field(default_factory=lambda: u.Update("kws"))
    now: float = 1000.0
    jitter: float = 0.5
    disk: set[str] = field(default_factory=set)
    serving: str | None = None
    told: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    work: list[u.Work] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)  # fail their self-test
    offline: bool = False
    policy: u.Policy = POLICY
    beside: str | None = None
    unlike: set[str] = field(default_factory=set)  # disagree with whatever answers
    calls: int = 10  # of the application, between two looks

    def send(self, event: u.Event) -> None:
        self.update, actions = u.step(self.update, event, self.now, policy=self.policy, jitter=self.jitter)
        self.update = msgspec.json.decode(msgspec.json.encode(self.update), type=u.Update)  # what is stored is all there is
        for action in actions:
            if isinstance(action, u.Tell):
                self.told.append(action.stage)
            else:
                self.work.append(action)

    def want(self, digest: str, rev: int) -> None:
        self.send(u.Wanted(rev, target(digest)))

    def do_one(self) -> None:
        action = self.work.pop(0)
        match action:
            case u.Fetch():
                digest = action.target.manifest_sha256 or ""
                if self.offline:
                    self.send(u.Waiting(digest, action.attempt, "unreachable", "no route"))
                    return
                self.disk.add(digest)
                self.fetched.append(digest)
                self.send(u.Fetched(digest, action.attempt, 100, 100))
            case u.SelfTest():
                failed = u.Failed(action.digest, action.attempt, "self_test", "off by one", retryable=False)
                self.send(failed if action.digest in self.broken else u.Tested(action.digest, action.attempt))
            case u.RunBeside():
                assert self.serving is not None
                self.beside = action.digest
            case u.Compare():
                agreed = 0 if action.digest in self.unlike else self.calls
                tally = u.Tally(self.calls, agreed, served_s=0.01 * self.calls, shadow_s=0.01 * self.calls)
                self.send(u.Compared(action.digest, tally if action.digest == self.beside else None))
            case u.StopBeside():
                self.beside = None
            case u.Switch():
                assert action.digest is None or action.digest in self.disk
                self.serving, self.beside = action.digest, None
            case u.CheckHealth():
                self.send(u.Health(action.digest, runs=100, errors=0))
            case u.Prune():
                self.disk &= set(action.keep)

    def settle(self) -> None:
        while self.work:
            self.do_one()

    def wait(self, seconds: float) -> None:
        """Let time pass, waking the machine when it asked to be."""
        until = self.now + seconds
        while self.update.wake_at is not None and self.update.wake_at <= until:
            self.now = max(self.now, self.update.wake_at)
            self.send(u.Tick())
            self.settle()
        self.now = until

    def boot(self) -> None:
        self.work.clear()
        self.serving = self.beside = None
        self.send(u.Booted(tuple(sorted(self.disk))))

    def confirm(self, digest: str, rev: int) -> None:
        self.want(digest, rev)
        self.settle()
        self.wait(400 + self.policy.shadow_s)
        assert self.update.stage == "confirmed"
        assert self.update.confirmed == digest
