"""Temperature, threshold and promise: found back where the truth is known, and honest where the samples cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom, binom

from edgeml.exporter.parity.answers import probabilities
from edgeml.exporter.parity.bounds import field_interval, high_bound, least_share, low_bound
from edgeml.exporter.parity.confidence import calibration_error, fit_temperature
from edgeml.exporter.parity.deferral import Deferred, check_goal, defer, source_post
from edgeml.exporter.plan import DeferGoal
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import PostProcessing, Promise

SOFTMAX = PostProcessing("z", "softmax")
SHARES = PostProcessing("z")


def softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def labelled(count: int, seed: int, *, sharpness: float = 3.0) -> tuple[Array, Array]:
    """Logits (count, 4), and labels drawn from exactly their softmax."""
    generator = np.random.default_rng(seed)
    z = generator.normal(0, sharpness, (count, 4))
    drawn = (softmax(z).cumsum(axis=1) < generator.random((count, 1))).sum(axis=1)
    return z, np.minimum(drawn, 3)


def pairs(confidence: list[float]) -> Array:
    """Two classes: class 0 with this confidence."""
    best = np.asarray(confidence)
    return np.stack([best, 1 - best], axis=1)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_temperature_that_logits_were_scaled_by_is_found_back(factor: float) -> None:
    z, y = labelled(2000, 0)
    assert fit_temperature(SOFTMAX, {"z": factor * z}, y) == pytest.approx(factor, rel=0.08)


def test_probabilities_have_the_temperature_of_their_logits() -> None:
    z, y = labelled(2000, 0)
    assert fit_temperature(SHARES, {"z": softmax(2 * z)}, y) == pytest.approx(
        fit_temperature(SOFTMAX, {"z": 2 * z}, y), rel=1e-3
    )


def test_a_temperature_on_probabilities_is_the_one_on_their_logits() -> None:
    z, _ = labelled(50, 1)
    warm = PostProcessing("z", "softmax", temperature=1.7)
    assert probabilities(PostProcessing("z", temperature=1.7), {"z": softmax(z)}) == pytest.approx(
        probabilities(warm, {"z": z})
    )


def test_a_single_score_has_the_temperature_of_its_pair() -> None:
    z = np.array([[2.0], [-1.0]])
    p = 1 / (1 + np.exp(-z / 1.5))
    assert probabilities(PostProcessing("z", "sigmoid", 1.5), {"z": z}) == pytest.approx(np.hstack([1 - p, p]))
    shares = PostProcessing("z", temperature=1.5)
    assert probabilities(shares, {"z": 1 / (1 + np.exp(-z))}) == pytest.approx(np.hstack([1 - p, p]))


def test_without_a_single_mistake_the_temperature_stays_within_reason() -> None:
    z = np.eye(4)[np.arange(100) % 4] * 4.0  # the likeliest temperature would be 0
    assert 0.2 < fit_temperature(SOFTMAX, {"z": z}, np.arange(100) % 4) < 1.0


def test_the_calibration_error_is_that_of_the_formula() -> None:
    # ten bins of two: nine hold 0.9 and are always right, one holds 0.5 and is never right
    confidence = np.asarray([0.5] * 2 + [0.9] * 18)
    right = np.asarray([False] * 2 + [True] * 18)
    assert calibration_error(confidence, right) == pytest.approx(0.1 * 0.5 + 0.9 * 0.1)


def test_calibrated_answers_have_a_small_error_and_overconfident_ones_a_large_one() -> None:
    z, y = labelled(5000, 2)
    for factor, least, most in ((1.0, 0.0, 0.02), (4.0, 0.08, 0.5)):
        rows = softmax(factor * z)
        assert least <= calibration_error(rows.max(axis=1), rows.argmax(axis=1) == y) <= most


def test_bounds_are_where_the_binomial_tail_is_five_percent() -> None:
    low = float(low_bound(np.asarray(0.9), 200))
    assert binom.sf(179, 200, low) == pytest.approx(0.05)
    assert float(low_bound(np.asarray(1.0), 30)) == pytest.approx(0.05 ** (1 / 30))
    assert float(high_bound(np.asarray(0.1), 200)) == pytest.approx(1 - low)
    assert float(low_bound(np.asarray(0.0), 30)) == 0.0


def test_without_a_goal_one_sample_in_twenty_asks() -> None:
    z, y = labelled(1000, 3)
    found = defer(SOFTMAX, {"z": z}, {"z": z}, y).deferral
    assert found.defer_below is not None
    assert (softmax(z / found.temperature).max(axis=1) < found.defer_below).mean() == pytest.approx(0.05, abs=1e-3)
    assert found.promise is not None
    assert found.promise.offload == pytest.approx(0.05, abs=0.01)


def test_without_labels_there_is_a_threshold_and_no_promise() -> None:
    found = defer(SHARES, {"z": pairs([0.6])}, {"z": pairs(np.linspace(0.5, 1.0, 101).tolist())}, None).deferral
    assert found.defer_below == pytest.approx(0.525)
    assert (found.temperature, found.promise) == (1.0, None)


@pytest.mark.parametrize(("goal", "count"), [(0.93, 400), (0.5, 30), (0.999, 5000)])
def test_the_least_share_is_the_one_whose_bound_just_meets_the_goal(goal: float, count: int) -> None:
    least = least_share(goal, count)
    assert float(low_bound(np.asarray(least), count)) == pytest.approx(goal, abs=1e-9)
    assert least_share(0.999, 100) > 1  # a hundred samples prove no more than 97 %


@pytest.mark.parametrize("hits", [0, 1, 40, 199, 200])
def test_a_field_of_as_many_samples_lies_where_the_beta_binomial_says(hits: int) -> None:
    low, high = field_interval(hits / 200, 200)
    lowest = 0 if hits == 0 else betabinom.ppf(0.025, 200, hits, 201 - hits)
    highest = 200 if hits == 200 else betabinom.ppf(0.975, 200, hits + 1, 200 - hits)
    assert (200 * low, 200 * high) == pytest.approx((lowest, highest))


def test_the_promise_is_what_other_samples_of_the_kind_then_show() -> None:
    """Sixty exports on 500 samples, each held to 500 others: no bias, and all but one in twenty inside both intervals."""
    goal = DeferGoal(accuracy=0.93, offload=0.4, cloud=0.99)
    kept, inside = [], 0
    for seed in range(60):
        z, y = labelled(1000, 100 + seed)
        z = 1.8 * z
        found = defer(SOFTMAX, {"z": z[:500]}, {"z": z[:500]}, y[:500], goal).deferral
        assert found.promise is not None
        assert found.defer_below is not None
        rows = softmax(z[500:] / found.temperature)
        asked, right = rows.max(axis=1) < found.defer_below, rows.argmax(axis=1) == y[500:]
        accuracy, offload = np.where(asked, 0.99, right).mean(), asked.mean()
        error = calibration_error(rows.max(axis=1), right)
        kept.append(np.subtract((accuracy, offload, error), (found.promise.accuracy, found.promise.offload, found.promise.ece)))
        inside += within(found.promise, float(accuracy), float(offload))
    assert np.abs(np.mean(kept, axis=0)).max() < 0.01
    assert inside >= 57


def within(promise: Promise, accuracy: float, offload: float) -> bool:
    assert promise.accuracy_within is not None
    assert promise.offload_within is not None
    (worst, best), (least, most) = promise.accuracy_within, promise.offload_within
    return worst <= accuracy <= best and least <= offload <= most


def test_a_device_that_never_asks_is_promised_to_ask_never() -> None:
    z, y = labelled(500, 6, sharpness=9.0)
    found = defer(SOFTMAX, {"z": z}, {"z": z}, y, DeferGoal(accuracy=0.5, offload=0.1, cloud=1.0)).deferral
    assert found.promise is not None
    assert (found.defer_below, found.promise.offload, found.promise.offload_within) == (0.0, 0.0, (0.0, 0.0))


def test_a_goal_within_reach_passes_with_the_least_offload_that_proves_it() -> None:
    # 1,000 samples: the 100 least sure are half right, the others always
    confidence = [0.55] * 100 + np.linspace(0.9, 0.99, 900).tolist()
    y = np.asarray([0, 1] * 50 + [0] * 900)
    got = {"z": pairs(confidence)}
    found = defer(SHARES, got, got, y, DeferGoal(accuracy=0.96, offload=0.15, cloud=1.0))
    assert (found.status, found.reason) == ("pass", None)
    assert found.deferral.promise is not None
    assert found.deferral.promise.offload == pytest.approx(0.1)
    assert found.deferral.promise.accuracy == 1.0
    assert found.deferral.promise.alone == pytest.approx(0.95)


def missed(goal: DeferGoal, count: int = 1000) -> Deferred:
    confidence = [0.55] * (count // 10) + np.linspace(0.9, 0.99, count - count // 10).tolist()
    y = np.asarray([0, 1] * (count // 20) + [0] * (count - count // 10))
    return defer(SHARES, {"z": pairs(confidence)}, {"z": pairs(confidence)}, y, goal)


def test_a_goal_out_of_reach_fails_and_says_what_it_would_take() -> None:
    found = missed(DeferGoal(accuracy=0.99, offload=0.05, cloud=1.0))
    assert found.status == "fail"
    assert found.reason == "device and cloud reach 95.0 % at 0 % offload; 99.0 % takes 10.0 % on these samples"


def test_a_cloud_that_is_no_better_helps_nobody() -> None:
    found = missed(DeferGoal(accuracy=0.97, offload=0.5))  # the source is as often wrong
    assert found.status == "fail"
    assert found.reason is not None
    assert found.reason.endswith("no threshold reaches 97.0 %: the best is 95.0 %")


def test_too_few_samples_are_inconclusive() -> None:
    found = missed(DeferGoal(accuracy=0.96, offload=0.15, cloud=1.0), count=100)
    assert found.status == "inconclusive"
    assert found.reason is not None
    assert "but 100 samples prove no more than" in found.reason


def test_the_source_is_the_cloud_where_none_is_described() -> None:
    z, y = labelled(2000, 4)
    coarse = np.round(z / 4) * 4  # quantized: ties, and other winners
    found = defer(SOFTMAX, {"z": z}, {"z": coarse}, y).deferral
    assert found.promise is not None
    assert found.promise.accuracy > found.promise.alone
    assert found.promise.cloud is None


def test_answers_of_equal_confidence_are_asked_together() -> None:
    found = defer(SHARES, {"z": pairs([0.8] * 50)}, {"z": pairs([0.8] * 50)}, np.asarray([0] * 40 + [1] * 10)).deferral
    assert found.promise is not None
    assert found.promise.offload in {0.0, 1.0}


def test_the_source_is_read_at_its_own_temperature() -> None:
    z, y = labelled(2000, 5)
    post = source_post({"z": 3 * z}, "classify", y)
    assert post is not None
    assert post.temperature == pytest.approx(3.0, rel=0.08)
    assert source_post({"z": z}, "regress", None) is None


@pytest.mark.parametrize(
    ("labels", "classifies", "message"),
    [
        (None, True, "no class numbers"),
        (np.zeros(4), True, "no class numbers"),
        (np.zeros(4, np.int64), False, "does not classify"),
    ],
    ids=["no-labels", "targets", "regression"],
)
def test_a_goal_without_anything_to_measure_is_refused(labels: Array | None, *, classifies: bool, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_goal(labels, classifies=classifies)
