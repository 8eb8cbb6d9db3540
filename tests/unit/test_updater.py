"""The rules of an update, each against the machine alone: no disk, no network, a clock the test moves."""

from __future__ import annotations

import pytest

from edgeml.runtime import updater as u
from edgeml.runtime.endings import MOST_PENALTIES
from edgeml.wire.messages import Target
from tests.unit.update_bench import POLICY, A, B, Bench, C, target


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
