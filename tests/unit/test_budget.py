"""The verdict on an accuracy drop, checked against published formulas, closed forms and simulation."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from scipy import stats

from edgeml.exporter.parity import UNMEASURED, score
from edgeml.exporter.parity.intervals import Z95, drop_upper, mean_upper, needed_samples
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError


def answers(classes: list[int] | Array, count: int = 3) -> dict[str, Array]:
    """Probabilities with the given best classes."""
    rows = np.full((len(classes), count), 0.1, np.float32)
    rows[np.arange(len(classes)), classes] = 1 - 0.1 * (count - 1)
    return {"p": rows}


def test_without_wins_the_bound_is_wilsons() -> None:
    # statsmodels' and everyone's formula: centre + half width of the score interval of one proportion.
    for lost, count in ((0, 36), (3, 50), (10, 800)):
        p = lost / count
        z2 = Z95**2 / count
        wilson = (p + z2 / 2 + math.sqrt(p * (1 - p) * z2 + z2**2 / 4)) / (1 + z2)
        assert drop_upper(lost, 0, count) == pytest.approx(wilson, abs=1e-9)


def test_the_bound_solves_tangos_equation_with_the_likelihood_searched_by_brute_force() -> None:
    for lost, won, count in ((1, 0, 44), (0, 1, 44), (9, 5, 60), (20, 22, 800)):
        upper = drop_upper(lost, won, count)
        assert score_statistic(lost, won, count, upper) == pytest.approx(-Z95, abs=1e-4)


def score_statistic(lost: int, won: int, count: int, drop: float) -> float:
    """(p_lost - p_won - D) over its standard error, with the constrained maximum likelihood found by brute search."""
    least = max(0.0, -drop)
    grid = np.linspace(least, (1 - drop) / 2, 2_000_001)[1:-1]
    likelihood = lost * np.log(grid + drop) + won * np.log(grid) + (count - lost - won) * np.log1p(-2 * grid - drop)
    q = float(grid[int(np.argmax(likelihood))])
    return (lost - won - count * drop) / math.sqrt(count * (2 * q + drop - drop**2))


def test_no_disagreement_on_few_samples_proves_little() -> None:
    assert drop_upper(0, 0, 36) == pytest.approx(Z95**2 / (36 + Z95**2))  # 7.0 points: 36 samples cannot prove one
    assert drop_upper(0, 0, 800) < 0.0034


def test_everything_lost_is_a_drop_of_one() -> None:
    assert drop_upper(10, 0, 10) == 1.0


@pytest.mark.parametrize(
    ("lost", "won", "normal"), [(5, 7, 0.46), (6, 5, 0.81), (21, 23, 1.11)], ids=["kws", "kws reduced range", "resnet8"]
)
def test_bounds_are_near_those_of_the_normal_approximation_for_800_samples(lost: int, won: int, normal: float) -> None:
    drop = (lost - won) / 800
    assert 100 * (drop + Z95 * math.sqrt((lost + won) / 800 - drop**2) / math.sqrt(800)) == pytest.approx(normal, abs=0.01)
    assert 0 <= 100 * drop_upper(lost, won, 800) - normal < 0.1  # a little wider where few disagree, and for that reason right


@pytest.mark.slow
def test_the_paired_bound_covers_at_least_94_percent() -> None:
    cached = cache(drop_upper)
    generator = np.random.default_rng(7)
    for count in (50, 200, 800):
        for lost, won in ((0.01, 0.01), (0.02, 0.005), (0.05, 0.04), (0.01, 0.0), (0.1, 0.05)):
            drawn = generator.multinomial(count, [lost, won, 1 - lost - won], size=4000)
            covered = np.mean([cached(int(a), int(b), count) >= lost - won for a, b, _ in drawn])
            assert covered >= 0.94, (count, lost, won)  # 4,000 draws: standard error 0.35 %


@pytest.mark.slow
def test_the_mean_bound_covers_skewed_errors_where_a_t_interval_does_not() -> None:
    generator = np.random.default_rng(7)
    ours = theirs = 0
    for seed in range(400):
        values = generator.chisquare(1, 200)  # squared errors of a normal: mean 1
        ours += mean_upper(values, seed) >= 1.0
        theirs += values.mean() + stats.t.ppf(0.95, 199) * values.std(ddof=1) / math.sqrt(200) >= 1.0
    assert ours / 400 >= 0.925
    assert ours > theirs


def test_the_mean_bound_of_normal_values_is_near_the_t_bound() -> None:
    values = np.random.default_rng(3).normal(1.0, 1.0, 400)
    exact = values.mean() + stats.t.ppf(0.95, 399) * values.std(ddof=1) / math.sqrt(400)
    assert mean_upper(values) == pytest.approx(exact, rel=0.01)
    assert mean_upper(values) == mean_upper(values)


def test_equal_differences_are_their_own_bound_and_few_give_none() -> None:
    assert mean_upper(np.full(20, 0.5)) == 0.5
    assert mean_upper(np.array([0.1, 0.5])) == UNMEASURED


def test_needed_samples_are_just_enough() -> None:
    needed = needed_samples(20, 22, 800, 0.01)
    assert needed is not None
    assert drop_upper(20 * needed / 800, 22 * needed / 800, needed) <= 0.01
    assert drop_upper(20 * (needed - 1) / 800, 22 * (needed - 1) / 800, needed - 1) > 0.01


def test_no_number_of_samples_decides_a_drop_at_the_budget() -> None:
    assert needed_samples(8, 0, 800, 0.01) is None


def test_accuracy_is_judged_on_labels_paired_sample_by_sample() -> None:
    labels = np.array([0, 1, 2, 0] * 50)
    source, got = labels.copy(), labels.copy()
    source[:10] = (labels[:10] + 1) % 3  # 10 wrong in the source,
    got[4:11] = (labels[4:11] + 2) % 3  # 7 in the artifact, 6 of them wrong in both: lost 1, won 4
    task = score(answers(source), answers(got), labels, task="classify", budget=1.0)
    assert (task.metric, task.value, task.source_value, task.n) == ("top1_accuracy", 193 / 200, 190 / 200, 200)
    assert task.drop == pytest.approx(-1.5)
    assert task.upper95 == pytest.approx(100 * drop_upper(1, 4, 200))
    assert task.status == "pass"


def test_without_labels_the_source_is_the_measure() -> None:
    got = np.zeros(1000, int)
    got[:3] = 1
    task = score(answers(np.zeros(1000, int)), answers(got), None, task="classify", budget=1.0, data="calibration")
    assert (task.metric, task.value, task.source_value) == ("top1_agreement", 0.997, 1.0)
    assert task.drop == pytest.approx(0.3)
    assert (task.status, task.data) == ("pass", "calibration")


def test_a_drop_over_the_budget_fails() -> None:
    labels = np.zeros(100, int)
    task = score(answers(labels), answers([1] * 2 + [0] * 98), labels, task="classify", budget=1.0)
    assert task.drop == pytest.approx(2.0)
    assert (task.status, task.needed_n) == ("fail", None)


def test_too_few_samples_are_inconclusive_and_say_how_many_would_do() -> None:
    labels = np.zeros(36, int)
    task = score(answers(labels), answers(labels), labels, task="classify", budget=1.0)
    assert (task.drop, task.status) == (0.0, "inconclusive")
    assert task.needed_n == math.ceil(Z95**2 * 0.99 / 0.01)  # z^2 / (n + z^2) <= 0.01


def test_without_a_budget_any_drop_passes() -> None:
    labels = np.zeros(10, int)
    assert score(answers(labels), answers([1] * 10), labels, task="classify", budget=None).status == "pass"


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(PlanError, match="expected 0 … 2, got 0 … 3"):
        score(answers([0, 1]), answers([0, 1]), np.array([0, 3]), task="classify", budget=1.0)


def test_regression_without_labels_keeps_a_share_of_the_sources_variance() -> None:
    generator = np.random.default_rng(1)
    source = generator.normal(0, 2, (500, 10))
    got = source + generator.normal(0, 2 * 0.063, source.shape)  # rms error 0.063 of the standard deviation
    task = score({"y": source}, {"y": got}, None, task="regress", budget=1.0)
    assert (task.metric, task.source_value, task.status) == ("r2_to_source", 1.0, "pass")
    assert task.drop == pytest.approx(100 * 0.063**2, rel=0.05)
    assert task.drop < task.upper95 < task.drop * 1.1


def test_regression_with_targets_compares_two_r2() -> None:
    generator = np.random.default_rng(1)
    target = generator.normal(0, 1, 300)
    source, got = target + generator.normal(0, 0.1, 300), target + generator.normal(0, 0.5, 300)
    task = score({"y": source[:, None]}, {"y": got[:, None]}, target, task="regress", budget=1.0)
    assert task.metric == "r2"
    assert task.source_value == pytest.approx(1 - np.mean((source - target) ** 2) / np.var(target))
    assert task.value == pytest.approx(1 - np.mean((got - target) ** 2) / np.var(target))
    assert task.status == "fail"


def test_targets_that_fit_no_output_are_not_used() -> None:
    source = np.random.default_rng(0).normal(size=(40, 6))
    task = score({"y": source}, {"y": source}, np.array([0, 1] * 20), task="regress", budget=1.0)
    assert (task.metric, task.drop, task.upper95, task.status) == ("r2_to_source", 0.0, 0.0, "pass")


def test_the_output_that_lost_most_is_judged() -> None:
    source = np.random.default_rng(0).normal(size=(100, 4))
    task = score({"a": source, "b": source}, {"a": source, "b": 0.5 * source}, None, task="regress", budget=1.0)
    assert task.drop == pytest.approx(25.0, rel=0.02)


def test_needed_samples_of_a_mean_shrink_its_bound_to_the_budget() -> None:
    generator = np.random.default_rng(5)
    source = generator.normal(size=(30, 1))
    got = source + generator.normal(0, 0.075, size=(30, 1))
    task = score({"y": source}, {"y": got}, None, task="regress", budget=1.0)
    assert task.status == "inconclusive"
    assert task.needed_n is not None
    assert task.needed_n > 30
