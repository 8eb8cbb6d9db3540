"""The rules of an update, each against the machine alone: no disk, no network, a clock the test moves."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import pytest

from edgeml.runtime import updater as u
from edgeml.runtime.endings import MOST_PENALTIES
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


def test_an_update_goes_through_every_stage_in_order() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    assert bench.told == ["downloading", "verified", "self_test", "soaking", "confirmed"]
    assert bench.serving == A


@pytest.mark.parametrize("rev", [1, 0, -5], ids=["equal", "lower", "negative"])
def test_a_revision_that_is_not_higher_changes_nothing(rev: int) -> None:
    bench = Bench()
    bench.confirm(A, 1)
    before = bench.update
    bench.want(B, rev)
    assert bench.update == before
    assert not bench.work


def test_going_back_to_the_previous_version_downloads_nothing() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.confirm(B, 2)
    bench.offline = True
    bench.confirm(A, 3)
    assert bench.fetched == [A, B]
    assert bench.update.downloaded_bytes == 0


def test_two_slots_are_kept_until_a_third_version_needs_the_room() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.confirm(B, 2)
    assert bench.disk == {A, B}
    bench.confirm(C, 3)
    assert bench.disk == {B, C}


def test_a_higher_revision_supersedes_a_download() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.want(B, 2)
    bench.want(C, 3)
    bench.send(u.Fetched(B, 2, 100, 100))  # the worker was not fast enough to stop
    bench.settle()
    bench.wait(400)
    assert bench.serving == C
    assert bench.update.confirmed == C


def test_a_version_superseded_while_it_soaks_does_not_go_on_unwatched() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.want(B, 2)
    bench.settle()
    assert bench.serving == B
    bench.offline = True
    bench.want(C, 3)
    bench.settle()
    assert bench.serving == A


def test_the_same_target_under_a_higher_revision_goes_on_soaking() -> None:
    bench = Bench()
    bench.want(A, 1)
    bench.settle()
    until = bench.update.soak_until
    bench.want(A, 2)
    assert bench.update.stage == "soaking"
    assert bench.update.soak_until == until
    assert bench.update.rev == 2


def test_a_failed_self_test_keeps_the_old_version_and_is_not_tried_again() -> None:
    bench = Bench(broken={B})
    bench.confirm(A, 1)
    bench.want(B, 2)
    bench.settle()
    assert (bench.update.stage, bench.update.code, bench.update.retryable) == ("failed", "self_test", False)
    assert bench.serving == A
    bench.wait(10_000)
    assert bench.fetched == [A, B]


def test_a_version_that_failed_here_is_refused_under_a_new_revision() -> None:
    bench = Bench(broken={B})
    bench.confirm(A, 1)
    bench.want(B, 2)
    bench.settle()
    bench.confirm(A, 3)
    bench.want(B, 4)
    assert (bench.update.stage, bench.update.code) == ("rejected", "penalty_box")


def test_a_failure_that_can_mend_is_tried_three_times_with_growing_pauses() -> None:
    bench = Bench()
    bench.want(A, 1)
    pauses = []
    for _ in range(3):
        bench.work.clear()
        bench.send(u.Failed(A, bench.update.attempt, "download", "bytes of another sha256", retryable=True, moved_bytes=100))
        if bench.update.wake_at is not None:
            pauses.append(bench.update.wake_at - bench.now)
            bench.now = bench.update.wake_at
            bench.send(u.Tick())
    assert pauses == [5.0, 10.0]  # half (the jitter) of 10 s, then of 20 s
    assert (bench.update.stage, bench.update.retryable) == ("failed", False)
    assert bench.update.downloaded_bytes == 300


def test_a_new_revision_grants_new_tries_to_what_could_mend() -> None:
    bench = Bench()
    bench.want(A, 1)
    for _ in range(3):
        bench.send(u.Failed(A, bench.update.attempt, "disk_full", "no space", retryable=True))
        bench.wait(100)
        bench.send(u.Tick())
    bench.confirm(A, 2)


def test_a_service_out_of_reach_is_waited_for_and_reported_once() -> None:
    bench = Bench(offline=True)
    bench.want(A, 1)
    bench.settle()
    bench.wait(5000)
    assert bench.update.stage == "downloading"
    assert bench.update.tries == 0
    assert bench.told == ["downloading", "downloading"]
    bench.offline = False
    bench.wait(500)
    assert bench.told[-1] == "confirmed"


def test_nothing_starts_before_its_time() -> None:
    bench = Bench()
    bench.send(u.Wanted(1, target(A, not_before=1500.0)))
    assert bench.update.stage == "offered"
    bench.wait(499.0)
    assert bench.fetched == []
    bench.wait(1.0)
    assert bench.fetched == [A]


def test_nothing_starts_after_its_deadline() -> None:
    bench = Bench()
    bench.send(u.Wanted(1, target(A, deadline=999.0)))
    assert (bench.update.stage, bench.update.code) == ("rejected", "deadline")


def test_a_version_without_a_digest_is_refused() -> None:
    bench = Bench()
    bench.send(u.Wanted(1, Target("kws", "1.0.0")))
    assert (bench.update.stage, bench.update.code) == ("rejected", "bad_target")


def test_a_model_that_is_not_wanted_any_more_is_removed() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.send(u.Wanted(2, Target("kws")))
    bench.settle()
    assert bench.serving is None
    assert bench.disk == set()
    assert bench.update.stage == "confirmed"


@pytest.mark.parametrize(
    ("runs", "errors", "stage"),
    [(100, 20, "soaking"), (100, 21, "rolled_back"), (19, 19, "soaking"), (20, 20, "rolled_back")],
    ids=["at the limit", "above it", "too few runs to say", "just enough runs"],
)
def test_soaking_ends_early_when_too_many_runs_fail(runs: int, errors: int, stage: str) -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.want(B, 2)
    bench.settle()
    bench.send(u.Health(B, runs, errors))
    bench.settle()
    assert bench.update.stage == stage
    assert bench.serving == (A if stage == "rolled_back" else B)


def test_a_self_test_that_fails_while_soaking_takes_the_version_back() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.want(B, 2)
    bench.settle()
    bench.send(u.Health(B, 0, 0, problem="output 'y' is not finite"))
    bench.settle()
    assert (bench.update.stage, bench.update.code, bench.serving) == ("rolled_back", "health", A)


def test_three_restarts_while_soaking_break_the_loop() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.want(B, 2)
    bench.settle()
    for _ in range(u.TRIAL_BOOTS):
        bench.now += 10
        bench.boot()
    bench.settle()
    assert (bench.update.stage, bench.update.code, bench.serving) == ("rolled_back", "boot_loop", A)
    assert bench.update.penalties == {B: "boot_loop"}


def test_restarts_far_apart_are_no_boot_loop() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.want(B, 2)
    bench.settle()
    for _ in range(u.TRIAL_BOOTS + 2):
        bench.boot()
        bench.settle()
        bench.now += POLICY.soak_s / 2  # steady for that long, the count starts again
        bench.send(u.Health(B, 100, 0))
    assert bench.update.stage in {"soaking", "confirmed"}
    assert bench.serving == B


def test_a_self_test_that_kills_the_process_is_given_up() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.want(B, 2)
    bench.do_one()  # prune
    bench.do_one()  # fetch
    assert isinstance(bench.work[0], u.SelfTest)
    for _ in range(u.TRIAL_BOOTS):
        bench.boot()
    bench.settle()
    assert (bench.update.stage, bench.update.code, bench.serving) == ("failed", "crash", A)


def test_a_damaged_active_version_gives_way_to_the_previous_and_is_fetched_again() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.confirm(B, 2)
    bench.disk.discard(B)
    bench.boot()
    assert bench.work[0] == u.Switch(B)
    bench.work.clear()
    bench.send(u.Damaged(B, "one byte changed"))
    bench.settle()
    assert bench.serving == A
    assert (bench.update.stage, bench.update.code, bench.update.retryable) == ("failed", "damaged", True)
    bench.wait(1000)
    assert bench.serving == B
    assert bench.update.stage == "confirmed"


def test_the_factory_version_stays_a_way_back() -> None:
    bench = Bench(disk={A})
    bench.send(u.Booted((), factory=A))
    bench.settle()
    assert bench.serving == A
    bench.confirm(B, 1)
    bench.confirm(C, 2)
    assert A in bench.update.installed
    bench.want(A, 3)
    bench.settle()
    assert bench.fetched == [B, C]


def test_a_first_version_that_fails_its_soak_leaves_nothing_to_answer() -> None:
    bench = Bench()
    bench.want(A, 1)
    bench.settle()
    bench.send(u.Health(A, 100, 100))
    bench.settle()
    assert (bench.update.stage, bench.serving) == ("rolled_back", None)


def test_bad_digests_are_remembered_up_to_a_limit() -> None:
    update = u.Update("kws")
    digests = [f"{i:064x}" for i in range(MOST_PENALTIES + 3)]
    for rev, digest in enumerate(digests, start=1):
        update, _ = u.step(update, u.Wanted(rev, Target("kws", f"1.0.{rev}", digest)), 0.0, policy=POLICY, jitter=0.0)
        failed = u.Failed(digest, update.attempt, "self_test", "", retryable=False)
        update, _ = u.step(update, failed, 0.0, policy=POLICY, jitter=0.0)
    assert list(update.penalties) == digests[3:]


@pytest.mark.parametrize("jitter", [0.0, 0.25, 0.999])
def test_backoff_is_between_zero_and_its_cap(jitter: float) -> None:
    assert u.backoff_s(1, POLICY, jitter) == jitter * 10.0
    assert u.backoff_s(3, POLICY, jitter) == jitter * 40.0
    assert u.backoff_s(1000, POLICY, jitter) == jitter * 100.0


def _history(seed: int, policy: u.Policy = POLICY) -> None:
    """Random wishes, duplicated, reordered and late, with power cuts at any action; then peace."""
    luck = random.Random(seed)
    broken = {d for d in (B, C, D) if luck.random() < 0.25}
    unlike = {d for d in (B, C, D) if policy.shadow_s > 0 and luck.random() < 0.25}
    bench = Bench(disk={A}, broken=broken, policy=policy, unlike=unlike)
    bench.send(u.Booted((A,), factory=A))
    wishes = [u.Wanted(rev, target(luck.choice([A, B, C, D]))) for rev in range(1, luck.randint(2, 8))]
    line = [w for w in wishes for _ in range(luck.choice([1, 1, 2, 3]))]
    luck.shuffle(line)
    while line or bench.work:
        bench.jitter = luck.random()
        dice = luck.random()
        if line and dice < 0.25:
            bench.send(line.pop())
        elif dice < 0.35:
            bench.disk.add(A)
            bench.work.clear()
            bench.beside = None
            bench.send(u.Booted(tuple(sorted(bench.disk)), factory=A))
        elif dice < 0.45:
            bench.offline = not bench.offline
        elif dice < 0.55:
            bench.wait(luck.random() * 200)
        elif bench.work:
            bench.do_one()
            bench.disk.add(A)
        _invariants(bench)
    bench.offline = False
    bench.settle()
    for _ in range(4):
        bench.wait(2000)
        bench.settle()
    last = wishes[-1]
    wanted = last.target.manifest_sha256 or ""
    assert bench.update.rev == last.rev, seed
    if wanted in bench.update.penalties:
        assert bench.update.active != wanted, seed
        assert bench.update.stage in {"failed", "rejected", "rolled_back"}, (seed, bench.update)
    else:
        assert (bench.update.stage, bench.serving) == ("confirmed", wanted), (seed, bench.update)
    assert bench.serving == bench.update.active, seed


def _invariants(bench: Bench) -> None:
    update = bench.update
    assert update.active is None or update.active not in bench.broken | bench.unlike
    assert bench.beside is None or update.stage == "shadow" or bench.work
    assert update.active is not None  # a factory version is there, so something always answers
    assert len(update.installed) <= 4


def test_a_thousand_random_histories_end_on_what_was_wanted() -> None:
    for seed in range(1000):
        _history(seed)


def test_five_hundred_random_histories_with_a_shadow_stage_end_on_what_was_wanted() -> None:
    for seed in range(500):
        _history(seed, SHADOW)


@pytest.mark.slow
def test_ten_thousand_more_random_histories_end_on_what_was_wanted() -> None:
    for seed in range(1000, 11_000):
        _history(seed)
