"""What a restart, and a damaged slot, do to an update: the machine alone, with a clock the test moves."""

from __future__ import annotations

from edgeml.runtime import updater as u
from tests.unit.update_bench import POLICY, A, B, Bench, C


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
