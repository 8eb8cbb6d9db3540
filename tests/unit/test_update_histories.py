"""Random histories of wishes, failures and power cuts: whatever happened, an update ends on what was wanted last."""

from __future__ import annotations

import random

import pytest

from edgeml.runtime import updater as u
from tests.unit.update_bench import POLICY, SHADOW, A, B, Bench, C, D, target


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
