"""Drift is judged against chance at the number of calls at hand, and chance is what resampling whole samples gives."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import chi2

from edgeml.exporter.chance import chi_square_weights, make_nulls, quantile
from edgeml.runtime.backends import Array
from edgeml.runtime.drift import (
    BLOCK_CALLS,
    DAY_CALLS,
    FLOOR_PSI,
    Line,
    State,
    Tally,
    Verdict,
    chance,
    chance_of_shift,
    chi_square_tail,
    divergences,
    rank_shift,
    start,
    step,
)
from edgeml.wire.manifest import Null

INDEPENDENT = Null(n=1000, weights=(1.0,), repeats=(9,))
EVEN = np.full(10, 0.1)
TILTED = np.asarray([0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18])  # about half a standard deviation


def line(counts: Array | None = None, null: Null = INDEPENDENT) -> Line:
    return Line("input:x", 100 * np.ones(10) if counts is None else counts, null)


def tally(counts: Array) -> Tally:
    counts = np.asarray(counts, np.float64)[None]
    return Tally(counts, counts.sum(axis=1), np.zeros(1))


def run(
    state: State, shares: Array, windows: int, *, calls: int = 30, seconds: float = 60.0, seed: int = 0
) -> tuple[State, list[Verdict]]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(windows):
        counts = generator.multinomial(calls, shares)[None].astype(float)
        state, verdict = step(line(), state, counts, np.asarray([float(calls)]), seconds)
        found += [verdict] if verdict is not None else []
    return state, found


@pytest.mark.parametrize("freedom", [1, 2, 5, 19])
@pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-8])
def test_the_tail_is_that_of_chi_square_where_all_weights_are_one(freedom: int, share: float) -> None:
    x = float(chi2.isf(share, freedom))
    got = chi_square_tail(x, np.ones(1), np.asarray([float(freedom)]))
    assert share * 0.99 <= got <= share * 1.12  # never less than the truth by more than 1 %


def test_the_tail_of_unequal_weights_is_the_one_that_drawing_finds() -> None:
    weights, repeats = np.asarray([3.0, 1.0, 0.2]), np.asarray([1.0, 4.0, 5.0])
    drawn = np.random.default_rng(0).chisquare(1, (400_000, 10)) @ np.repeat(weights, repeats.astype(int))
    for x in (12.0, 20.0, 30.0):
        true = float((drawn > x).mean())
        assert 0.95 * true <= chi_square_tail(x, weights, repeats) <= 1.15 * true


def test_divergences_are_those_of_the_formula() -> None:
    # 8 of 10 calls in bin 0 where the reference has 5 of 10; +0.5 a bin on both sides: 8.5/11 and 5.5/11
    psi, js = divergences(Line("x", np.asarray([5.0, 5.0]), Null(10, (1.0,), (1,))), tally(np.asarray([8, 2])))
    q, p = np.asarray([8.5, 2.5]) / 11, np.asarray([5.5, 5.5]) / 11
    assert psi[0] == pytest.approx(((q - p) * np.log(q / p)).sum())
    middle = (p + q) / 2
    entropy = [-(share * np.log(share)).sum() for share in (middle, p, q)]
    assert js[0] == pytest.approx(entropy[0] - (entropy[1] + entropy[2]) / 2)


def test_nothing_seen_of_half_the_bins_gives_finite_divergences() -> None:
    psi, js = divergences(line(), tally(np.asarray([1e6] + [0] * 9)))
    assert np.isfinite(psi).all()
    assert js[0] < np.log(2)


def test_a_psi_of_a_tenth_is_chance_over_50_calls_and_drift_over_5000() -> None:
    null = Null(n=100_000, weights=(1.0,), repeats=(9,))
    assert chance(line(null=null), 50, 0.1, 0.1 / 8) > 0.5
    assert chance(line(null=null), 5000, 0.1, 0.1 / 8) < 1e-9


def test_a_coarse_reference_makes_more_of_it_chance() -> None:
    few, many = Null(n=100, weights=(1.0,), repeats=(9,)), Null(n=10_000, weights=(1.0,), repeats=(9,))
    assert chance(line(null=few), 1000, 0.15, 0.15 / 8) > 100 * chance(line(null=many), 1000, 0.15, 0.15 / 8)


def test_both_divergences_must_be_beyond_chance() -> None:
    assert chance(line(), 1000, 1.0, 0.001) > 0.5
    assert chance(line(), 1000, 0.001, 0.1) > 0.5


def test_a_shift_by_half_a_standard_deviation_is_found_within_two_blocks() -> None:
    state, clean = run(start(line()), EVEN, 300)
    assert not any(verdict.began.any() for verdict in clean)
    state, found = run(state, TILTED, 2 * BLOCK_CALLS // 30, seed=1)
    assert sum(verdict.began.any() for verdict in found) == 1
    assert state.alarmed.all()


def found_within(calls: int, *, samples: int, onset: int, devices: int = 200) -> float:
    """The share of devices, with references of so many samples, that see half a standard deviation within so many calls."""
    generator = np.random.default_rng(7)
    edges = np.asarray([NormalDist().inv_cdf(i / 10) for i in range(1, 10)])
    shifted = np.diff([0.0, *(NormalDist(0.5).cdf(float(edge)) for edge in edges), 1.0])
    references = generator.multinomial(samples, EVEN, devices).astype(float)
    watched = Line("input:x", references, Null(samples, (1.0,), (9,)), streams=3, is_ordered=True)
    state, seen = start(watched, devices), np.zeros(devices, np.bool_)
    for window in range((onset + calls) // 30):
        counts = generator.multinomial(30, shifted if window * 30 >= onset else EVEN, devices).astype(float)
        state, verdict = step(watched, state, counts, np.full(devices, 30.0), 60.0)
        if verdict is not None and window * 30 >= onset:
            seen |= verdict.began
    return float(seen.mean())


@pytest.mark.parametrize("samples", [300, 1000])
@pytest.mark.parametrize("onset", [0, 600, 1200, 9450])
def test_half_a_standard_deviation_is_found_within_two_thousand_calls_also_by_a_new_device(samples: int, onset: int) -> None:
    assert found_within(2000, samples=samples, onset=onset) >= 0.95


def test_the_mean_rank_is_that_of_the_formula() -> None:
    # shares 1/4, 3/4 (with +0.5 calls a bin): ranks 1/8, 5/8; variance 1/4 / 64 + 3/4 * 25/64 - 1/4 = 3/64; q = 3/4, 1/4
    watched = Line("x", np.asarray([24.5, 74.5]), Null(99, (1.0,), (1,)))
    mean = 0.75 / 8 + 0.25 * 5 / 8
    assert rank_shift(watched, tally(np.asarray([74.5, 24.5])))[0] == pytest.approx((mean - 0.5) ** 2 / (3 / 64))


def test_a_mean_rank_is_beyond_chance_as_often_as_said() -> None:
    generator = np.random.default_rng(8)
    references, fed = (generator.multinomial(count, EVEN, 20_000).astype(float) for count in (300, 900))
    shifts = rank_shift(Line("x", references, INDEPENDENT), Tally(fed, np.full(20_000, 900.0), np.zeros(20_000)))
    null = Line("x", references, Null(300, (1.0,), (9,)))
    tails = np.asarray([chance_of_shift(null, 900, float(shift)) for shift in shifts])
    assert (tails < 0.01).mean() == pytest.approx(0.01, abs=0.003)


def test_calls_that_are_alike_make_more_of_a_mean_rank_chance() -> None:
    assert chance_of_shift(line(), 900, 0.05, excess=30.0) > 100 * chance_of_shift(line(), 900, 0.05)


def test_a_shift_is_one_step_among_many_and_does_not_pass_for_alike_calls() -> None:
    state, _ = run(start(line()), EVEN, 30)
    state, _ = run(state, TILTED, 33, seed=1)
    assert np.nanmax(state.excess) == 0.0


def test_an_alarm_ends_when_the_stream_is_back_and_counts_once_while_it_lasts() -> None:
    state, _ = run(start(line()), EVEN, 300)
    state, found = run(state, TILTED, 300, seed=1)
    assert sum(int(verdict.began.sum()) for verdict in found) == 1
    state, back = run(state, EVEN, 62, seed=2)
    assert sum(int(verdict.ended.sum()) for verdict in back) == 1
    assert not state.alarmed.any()


def test_ten_clean_days_give_no_alarm() -> None:
    _, found = run(start(line()), EVEN, 14_400)
    assert len(found) > 400
    assert not any(verdict.began.any() for verdict in found)


def test_few_calls_are_judged_by_the_day() -> None:
    state, found = run(start(line()), EVEN, 6 * 24, calls=10, seconds=3600.0)  # 240 calls a day
    assert {float(verdict.calls[0]) for verdict in found} >= {240.0}
    shifted = np.asarray([0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.2, 0.3, 0.3])
    _, found = run(state, shifted, 2 * 24, calls=10, seconds=3600.0)
    assert any(verdict.began.any() for verdict in found)


def test_fewer_calls_than_a_histogram_needs_are_never_judged() -> None:
    windows = (DAY_CALLS - 1) * 2
    state, found = run(start(line()), np.eye(10)[0], windows, calls=1, seconds=1.0)
    assert found == []
    assert not state.alarmed.any()


def test_calls_that_are_alike_are_no_drift() -> None:
    """Each window repeats one draw 30 times: 900 calls say as much as 30 do."""
    generator, state = np.random.default_rng(3), start(line())
    for _ in range(6000):
        counts = 30.0 * np.eye(10)[generator.integers(10)][None]
        state, verdict = step(line(), state, counts, np.asarray([30.0]), 60.0)
        assert verdict is None or not verdict.began.any()


def test_a_device_is_judged_the_same_alone_and_among_others() -> None:
    generator = np.random.default_rng(4)
    alone, among = start(line()), start(line(), 3)
    for _ in range(90):
        counts = generator.multinomial(30, EVEN, 3).astype(float)
        among, together = step(line(), among, counts, np.full(3, 30.0), 60.0)
        alone, single = step(line(), alone, counts[1:2], np.asarray([30.0]), 60.0)
        assert (single is None) == (together is None)
        if single is not None and together is not None:
            assert single.psi[0] == pytest.approx(together.psi[1])


def test_a_jumping_clock_buys_no_chances() -> None:
    counts = np.asarray([1.0] + [0.0] * 9)[None]
    state, _ = step(line(), start(line()), counts, np.ones(1), 1e9)
    assert state.day.seconds[0] == 3600.0
    state, _ = step(line(), state, counts, np.ones(1), -5.0)
    assert state.day.seconds[0] == 3600.0


def test_a_step_leaves_the_state_it_was_given_as_it_was() -> None:
    state = start(line())
    step(line(), state, np.ones((1, 10)), np.full(1, 10.0), 60.0)
    assert state.block.calls[0] == 0.0
    assert FLOOR_PSI == 0.1


def test_independent_samples_have_weights_of_one() -> None:
    rows = np.eye(10)[np.random.default_rng(0).integers(10, size=5000)]
    assert chi_square_weights(rows) == pytest.approx(np.ones(9), abs=0.02)


def test_elements_that_go_together_weigh_less_than_a_call_and_more_than_alone() -> None:
    """16 elements a call. Independent ones: each call counts 16 times, so the weight is 1/16; all the same: 1."""
    generator = np.random.default_rng(0)
    bins = np.eye(10)
    apart = bins[generator.integers(10, size=(4000, 16))].mean(axis=1)
    together = bins[generator.integers(10, size=4000)]
    half = bins[
        np.where(
            generator.random((4000, 16)) < 0.5, generator.integers(10, size=(4000, 1)), generator.integers(10, size=(4000, 16))
        )
    ].mean(axis=1)
    assert chi_square_weights(apart).mean() == pytest.approx(1 / 16, rel=0.05)
    assert chi_square_weights(together).mean() == pytest.approx(1.0, rel=0.05)
    assert 1 / 16 < chi_square_weights(half).mean() < 1.0


def test_the_calibration_gives_the_false_alarms_it_promises() -> None:
    """Fresh references and fresh devices of a population with alike elements: 1 % of them beyond the 1 % line."""
    generator = np.random.default_rng(1)
    edges = chi2.ppf(np.arange(1, 10) / 10, 1)

    def calls(count: int) -> Array:
        x = (generator.standard_normal((count, 8)) + generator.standard_normal((count, 1))) ** 2 / 2
        bins = np.searchsorted(edges, x)
        return np.asarray(np.stack([(bins == i).mean(axis=1) for i in range(10)], axis=1))

    beyond = 0
    null = make_nulls({"x": calls(500)}, seed=0)["x"]
    for _ in range(600):
        reference, seen = calls(500).sum(axis=0), tally(calls(300).sum(axis=0))
        one = Line("x", reference, null)
        psi, js = divergences(one, seen)
        beyond += chance(one, 300, float(psi[0]), float(js[0])) < 0.05
    assert 10 <= beyond <= 45  # 30 expected; binomial within 3 standard deviations: 14 to 46


def test_the_same_samples_and_seed_give_the_same_calibration() -> None:
    rows = np.eye(4)[np.random.default_rng(0).integers(4, size=200)]
    assert make_nulls({"x": rows}, seed=5) == make_nulls({"x": rows}, seed=5)


def test_the_quantile_is_where_the_tail_is() -> None:
    assert quantile(0.01, np.ones(1), np.asarray([9.0])) == pytest.approx(chi2.isf(0.01, 9), rel=0.005)


def test_one_sample_calibrates_nothing() -> None:
    assert make_nulls({"x": np.eye(3)[:1]}, seed=0) == {}
