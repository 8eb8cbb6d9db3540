"""The gates' arithmetic against hand-made values, independent formulas and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgeml.fleet.statistics import (
    RATIOS,
    binomial_tail,
    blocks,
    ceiling_log_e,
    coin_log_e,
    log_mean_exp,
    needed_n,
    one_in,
    upper_bound,
)


def test_one_bad_device_is_the_coin_of_its_block() -> None:
    # theta0 = 1.25 / (1.25 + 9), theta_r = r / (r + 9)
    on_canary = coin_log_e(1, 9, 1, 0, tolerance=1.25)
    on_control = coin_log_e(1, 9, 0, 1, tolerance=1.25)
    for number, ratio in enumerate(RATIOS):
        theta, null = ratio / (ratio + 9), 1.25 / (1.25 + 9)
        assert math.exp(on_canary[number]) == pytest.approx(theta / null)
        assert math.exp(on_control[number]) == pytest.approx((1 - theta) / (1 - null))


@pytest.mark.parametrize(("canary", "control"), [(1, 9), (1, 1), (4, 1), (1, 3)])
def test_a_block_with_many_bad_is_fishers_noncentral_hypergeometric(canary: int, control: int) -> None:
    for x, y in itertools.product(range(canary + 1), range(control + 1)):
        got = coin_log_e(canary, control, x, y, tolerance=1.25)
        for number, ratio in enumerate(RATIOS):
            total, bad = canary + control, x + y
            expected = (
                stats.nchypergeom_fisher.pmf(x, total, canary, bad, ratio)
                / stats.nchypergeom_fisher.pmf(x, total, canary, bad, 1.25)
                if 0 < bad < total
                else 1.0
            )
            assert math.exp(got[number]) == pytest.approx(expected)


@pytest.mark.parametrize("odds", [0.2, 1.0, 1.25])
@pytest.mark.parametrize(("canary", "control", "bad"), [(1, 9, 1), (1, 9, 4), (5, 1, 2), (1, 1, 1)])
def test_evidence_does_not_grow_on_average_while_the_new_version_is_no_worse(
    odds: float, canary: int, control: int, bad: int
) -> None:
    urn = stats.nchypergeom_fisher(canary + control, canary, bad, odds)
    for number in range(len(RATIOS)):
        mean = sum(
            urn.pmf(x) * math.exp(coin_log_e(canary, control, x, bad - x, tolerance=1.25)[number])
            for x in range(max(0, bad - control), min(canary, bad) + 1)
        )
        assert mean <= 1 + 1e-9


def test_blocks_of_several_devices_on_both_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="one device on one side"):
        coin_log_e(2, 2, 1, 0, tolerance=1.25)


def test_a_ceiling_is_a_likelihood_ratio_of_coins() -> None:
    got = ceiling_log_e(3, 10, ceiling=0.05)
    for number, ratio in enumerate(RATIOS):
        worse = (ratio * 0.05 / 0.95) / (1 + ratio * 0.05 / 0.95)  # r times the odds
        expected = stats.binom.pmf(3, 10, worse) / stats.binom.pmf(3, 10, 0.05)
        assert math.exp(got[number]) == pytest.approx(expected)


def test_the_mean_of_evidence_survives_large_numbers() -> None:
    assert float(log_mean_exp([2000.0, 2000.0])) == pytest.approx(2000.0)
    assert float(log_mean_exp([0.0, math.log(3)])) == pytest.approx(math.log(2))


def test_the_upper_bound_is_clopper_and_pearsons() -> None:
    for bad, n in [(0, 59), (0, 50), (1, 60), (12, 40)]:
        assert upper_bound(bad, n, 0.05) == pytest.approx(stats.beta.ppf(0.95, bad + 1, n - bad))
    assert upper_bound(0, 50, 0.05) == pytest.approx(1 - 0.05 ** (1 / 50))
    assert (upper_bound(0, 0, 0.05), upper_bound(7, 7, 0.05)) == (1.0, 1.0)


@pytest.mark.parametrize(("limit", "devices"), [(0.05, 59), (0.02, 149), (0.01, 299), (0.005, 598), (0.001, 2995)])
def test_how_many_good_devices_show_a_limit(limit: float, devices: int) -> None:
    assert needed_n(limit, 0.05) == devices


@given(st.floats(0.01, 0.5), st.integers(0, 20))
def test_one_device_fewer_would_not_do(limit: float, bad: int) -> None:
    least = needed_n(limit, 0.05, bad)
    assert upper_bound(bad, least, 0.05) <= limit < upper_bound(bad, least - 1, 0.05)


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.01, 0.99))
def test_the_tail_is_the_binomials(k: int, n: int, p: float) -> None:
    assert float(binomial_tail(min(k, n), n, p)) == pytest.approx(stats.binom.sf(min(k, n) - 1, n, p), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0, 1, exclude_max=True)), max_size=60))
def test_every_block_has_one_device_on_one_side_and_no_stratum_but_its_own(devices: list[tuple[int, bool, float]]) -> None:
    stratum = np.array([d[0] for d in devices], dtype=np.int64)
    canary = np.array([d[1] for d in devices], dtype=np.bool_)
    order = np.array([d[2] for d in devices], dtype=np.float64)
    block = blocks(stratum, canary, order)
    lone = {s for s in set(stratum.tolist()) if len(set(canary[stratum == s].tolist())) < 2}
    for number in set(block.tolist()):
        inside = block == number
        arms = int(canary[inside].sum()), int((~canary[inside]).sum())
        assert min(arms) <= 1
        assert len(set(stratum[inside].tolist()) - lone) <= 1


def test_devices_of_a_stratum_are_dealt_out_evenly() -> None:
    block = blocks(np.zeros(12, dtype=np.int64), np.arange(12) < 3, np.arange(12) / 12)
    assert [int(((block == number) & (np.arange(12) >= 3)).sum()) for number in range(3)] == [3, 3, 3]


@pytest.mark.parametrize(("evidence", "words"), [(0.2, 1), (7.9, 7), (43_218.0, 43_000), (101.0, 100), (1e30, 1_000_000_000)])
def test_less_than_once_in_so_many_rollouts_is_rounded_down(evidence: float, words: int) -> None:
    assert one_in(math.log(evidence)) == words
