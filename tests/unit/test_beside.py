"""The shadow stage of an update: what passes, what is refused, and that a restart or a new wish leaves nothing behind."""

from __future__ import annotations

from edgeml.runtime import updater as u
from edgeml.runtime.window import Hold
from tests.unit.update_bench import SHADOW, A, B, Bench, C


def bench_with(digest: str = A) -> Bench:
    bench = Bench(policy=SHADOW)
    bench.confirm(digest, 1)
    bench.told.clear()
    return bench


def test_a_version_that_agrees_goes_on_to_its_soak_and_says_how_it_did() -> None:
    bench = bench_with()
    bench.want(B, 2)
    bench.settle()
    assert (bench.update.stage, bench.serving, bench.beside) == ("shadow", A, B)
    bench.wait(9 * SHADOW.health_s)
    assert bench.serving == A
    bench.wait(SHADOW.health_s)
    assert (bench.update.stage, bench.serving, bench.beside) == ("soaking", B, None)
    assert bench.update.detail == "100 of 100 answers as the old version's, 1.00 times its time, 0 errors"
    bench.wait(400)
    assert bench.told == ["downloading", "verified", "self_test", "shadow", "soaking", "confirmed"]


def test_a_version_that_disagrees_is_refused_without_ever_answering() -> None:
    bench = bench_with()
    bench.unlike = {B}
    bench.want(B, 2)
    bench.settle()
    bench.wait(1000)
    assert (bench.update.stage, bench.update.code, bench.serving, bench.beside) == ("rejected", "shadow", A, None)
    assert bench.update.penalties == {B: "shadow"}
    assert "0 of 100 answers" in (bench.update.detail or "")


def test_a_slow_version_and_one_that_fails_are_refused() -> None:
    for tally, words in (
        (u.Tally(200, 200, served_s=1.0, shadow_s=2.1), "2 times as long"),
        (u.Tally(150, 150, errors=50, served_s=1.0, shadow_s=1.0), "too many calls failed"),
    ):
        bench = bench_with()
        bench.want(B, 2)
        bench.settle()
        bench.send(u.Compared(B, tally))
        assert bench.update.stage == "rejected"
        assert words in (bench.update.detail or "")


def test_a_device_with_few_calls_does_not_wait_for_ever() -> None:
    bench = bench_with()
    bench.calls = 0
    bench.want(B, 2)
    bench.settle()
    bench.wait(SHADOW.shadow_s + SHADOW.health_s)
    assert (bench.update.stage, bench.serving) == ("soaking", B)


def test_the_first_version_and_a_way_back_need_no_shadow() -> None:
    bench = bench_with()
    bench.confirm(B, 2)
    bench.told.clear()
    bench.want(A, 3)
    bench.settle()
    assert bench.serving == A
    assert "shadow" not in bench.told


def test_a_restart_goes_on_with_the_calls_and_the_time_that_were_there() -> None:
    bench = bench_with()
    bench.want(B, 2)
    bench.settle()
    bench.wait(5 * SHADOW.health_s)
    until = bench.update.shadow_until
    bench.boot()
    bench.settle()
    assert (bench.update.stage, bench.serving, bench.beside, bench.update.shadow_until) == ("shadow", A, B, until)
    bench.wait(5 * SHADOW.health_s)
    assert bench.update.stage == "soaking"


def test_a_version_that_restarts_the_device_from_beside_is_given_up() -> None:
    bench = bench_with()
    bench.want(B, 2)
    bench.settle()
    for _ in range(u.TRIAL_BOOTS):
        bench.now += 10
        bench.boot()
        bench.settle()
    assert (bench.update.stage, bench.update.code, bench.serving) == ("failed", "crash", A)


def test_a_new_wish_frees_the_version_that_runs_beside() -> None:
    bench = bench_with()
    bench.want(B, 2)
    bench.settle()
    bench.want(A, 3)
    bench.settle()
    assert (bench.update.stage, bench.serving, bench.beside) == ("confirmed", A, None)
    bench.want(C, 4)
    bench.settle()
    assert bench.beside == C


def test_what_stopped_running_beside_is_tested_and_started_again() -> None:
    bench = bench_with()
    bench.want(B, 2)
    bench.settle()
    bench.beside = None
    bench.wait(SHADOW.health_s)
    assert bench.beside == B


def test_the_switch_waits_for_its_window_though_the_answers_agree() -> None:
    bench = bench_with()
    bench.want(B, 2)
    bench.settle()
    closed = Hold("window", "waits for its maintenance window", until=bench.now + 9000)
    good = u.Compared(B, u.Tally(200, 200))
    update, actions = u.step(bench.update, good, bench.now, policy=SHADOW, jitter=0.5, hold=closed)
    assert (update.stage, update.code, actions) == ("shadow", "window", (u.Tell("shadow"),))
    update, actions = u.step(update, good, bench.now + 60, policy=SHADOW, jitter=0.5, hold=closed)
    assert actions == ()  # said once
    update, actions = u.step(update, good, bench.now + 120, policy=SHADOW, jitter=0.5)
    assert (update.stage, update.code, actions) == ("soaking", None, (u.Switch(B), u.Tell("soaking")))


def test_without_shadow_s_nothing_runs_beside() -> None:
    bench = Bench()
    bench.confirm(A, 1)
    bench.confirm(B, 2)
    assert "shadow" not in bench.told
