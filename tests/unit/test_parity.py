"""An artifact agrees with its source, or the reason says where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from edgeml.exporter.parity import UNMEASURED, answers, class_output, compare, detect_task, post_processing
from edgeml.exporter.parity.metrics import agrees, are_probabilities, correlation, max_abs, relative_rms, spread
from edgeml.exporter.samples import make_samples
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import Signature, TensorSpec


def rows(*values: list[float]) -> Array:
    return np.array(values, np.float32)


SOURCE = {"p": rows([0.1, 0.9], [0.6, 0.4], [0.5, 0.5])}


def shifted(by: float) -> dict[str, Array]:
    return {"p": SOURCE["p"] + np.float32(by)}


def test_equal_outputs_pass_with_zero_error() -> None:
    parity = compare(SOURCE, SOURCE, task="classify", where="verified")
    assert (parity.status, parity.max_abs, parity.rms, parity.top1_agreement, parity.n) == ("pass", 0.0, 0.0, 1.0, 3)


def test_error_is_given_in_units_of_the_sources_range() -> None:
    # The range of p is 0.9 - 0.1 = 0.8; its variance is mean(0.16, 0.16, 0.01, 0.01, 0, 0) = 0.34 / 6.
    parity = compare(SOURCE, shifted(0.008), task="classify", where="verified", limit=0.02)
    assert parity.max_abs == pytest.approx(0.01, rel=1e-4)
    assert parity.rms == pytest.approx(0.008 / np.sqrt(0.34 / 6), rel=1e-4)


def test_a_difference_over_the_limit_names_output_sample_element_and_both_values() -> None:
    got = {"p": SOURCE["p"].copy()}
    got["p"][1, 0] += 0.01
    parity = compare(SOURCE, got, task="classify", where="emulated")
    assert parity.status == "fail"
    assert parity.reason == (
        "output 'p', sample 1, element (0,): expected 0.6, got 0.61; |difference| 1.25e-02 of the range 0.8, limit 0.0001"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_non_finite_outputs_fail_before_any_metric(value: float, precision: str) -> None:
    got = {"p": SOURCE["p"].copy()}
    got["p"][2, 1] = value
    parity = compare(SOURCE, got, task="classify", where="verified", precision=precision)  # type: ignore[arg-type]
    assert (parity.status, parity.max_abs, parity.top1_agreement) == ("fail", UNMEASURED, None)
    assert parity.reason is not None
    assert "output 'p' of the artifact, sample 2, element (1,)" in parity.reason


def test_a_source_that_is_not_finite_is_blamed_itself() -> None:
    parity = compare({"p": rows([np.nan, 0.0])}, {"p": rows([np.nan, 0.0])}, task="classify", where="verified")
    assert parity.reason is not None
    assert "of the source" in parity.reason


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        pytest.param({"q": SOURCE["p"]}, "expected ['p'], got ['q']", id="name"),
        pytest.param({"p": SOURCE["p"][:, :1]}, "(3, 2), got (3, 1)", id="shape"),
        pytest.param({"p": SOURCE["p"].astype(np.float64)}, "expected float32, got float64", id="dtype"),
    ],
)
def test_the_contract_is_checked_before_values(got: dict[str, Array], reason: str) -> None:
    parity = compare(SOURCE, got, task="classify", where="verified")
    assert parity.status == "fail"
    assert parity.reason is not None
    assert reason in parity.reason


def test_a_flipped_class_fails_a_float_artifact_however_near_it_is() -> None:
    source = {"logits": rows([10.0, -10.0], [1.0, 1.0005])}
    got = {"logits": rows([10.0, -10.0], [1.0005, 1.0])}  # 2.5e-5 of the range, within the limit
    parity = compare(source, got, task="classify", where="verified")
    assert parity.max_abs < 1e-4
    assert parity.status == "fail"
    assert parity.reason == "sample 1: another top-1 class than the source (1 of 2 samples differ, limit 0)"


def test_a_source_that_is_undecided_by_float_rounding_accepts_either_class() -> None:
    source = rows([0.5, np.nextafter(np.float32(0.5), np.float32(1))], [0.1, 0.9])
    got = rows([0.5, 0.5], [0.1, 0.9])
    assert agrees(source, got).tolist() == [True, True]


def test_an_artifact_that_is_undecided_gets_no_such_grace() -> None:
    assert agrees(rows([0.4, 0.6], [0.0, 1.0]), rows([0.5, 0.5], [0.0, 1.0])).tolist() == [False, True]


def test_a_single_probability_changes_class_at_one_half() -> None:
    assert agrees(rows([0.7], [0.3], [0.5]), rows([0.51], [0.49], [0.9])).tolist() == [True, True, True]
    assert agrees(rows([0.7], [0.3]), rows([0.49], [0.51])).tolist() == [False, False]


def test_fp16_may_flip_one_sample_in_200_and_no_more() -> None:
    source = {"p": np.tile(rows([0.2, 0.8]), (400, 1))}
    for flips, status in ((2, "pass"), (3, "fail")):
        got = {"p": source["p"].copy()}
        got["p"][:flips] = [0.6, 0.4]
        assert compare(source, got, task="classify", where="verified", precision="fp16").status == status


def test_fp16_regression_is_held_to_one_percent_of_the_standard_deviation() -> None:
    source = {"y": np.array([[-1.0], [1.0]] * 50, np.float32)}  # standard deviation 1
    for error, status in ((0.0099, "pass"), (0.0101, "fail")):
        got = {"y": source["y"] + np.float32(error)}
        assert compare(source, got, task="regress", where="verified", precision="fp16").status == status


def test_int8_is_left_to_the_budget() -> None:
    parity = compare(SOURCE, shifted(0.4), task="classify", where="verified", precision="int8")
    assert (parity.status, parity.limit) == ("pass", None)


def test_what_kernels_add_is_told_apart_from_what_the_file_holds() -> None:
    parity = compare(SOURCE, shifted(0.08), task="classify", where="verified", precision="int8", exact=shifted(0.06))
    assert parity.max_abs == pytest.approx(0.1, rel=1e-4)
    assert parity.kernel_max_abs == pytest.approx(0.025, rel=1e-4)


def test_the_worst_output_counts() -> None:
    source = {"a": rows([0.0], [1.0]), "b": rows([0.0], [100.0])}
    got = {"a": source["a"] + np.float32(0.5), "b": source["b"] + np.float32(1)}
    assert compare(source, got, task="regress", where="verified", precision="int8").max_abs == pytest.approx(0.5)


def test_constant_outputs_have_a_unit_too() -> None:
    assert spread(np.full((3, 2), 4.0)) == 4.0
    assert spread(np.zeros((3, 2))) == 1.0
    assert max_abs(np.full((3, 2), 4.0), np.full((3, 2), 5.0)) == 0.25
    assert relative_rms(np.full((3, 2), 4.0), np.full((3, 2), 5.0)) == 0.25


def test_correlation_is_pearsons_and_says_zero_for_a_stuck_output() -> None:
    x = np.array([[1.0], [2.0], [4.0]])
    assert correlation(x, 3 - 2 * x) == pytest.approx(-1.0)
    assert correlation(x, x**2) == pytest.approx(np.corrcoef(x[:, 0], x[:, 0] ** 2)[0, 1])
    assert correlation(x, np.ones((3, 1))) == 0.0
    assert correlation(np.ones((3, 1)), np.ones((3, 1))) == 1.0


def test_integer_outputs_are_compared_exactly() -> None:
    source = {"class": np.array([[3], [1]])}
    assert compare(source, source, task="classify", where="verified").status == "pass"
    assert compare(source, {"class": np.array([[3], [2]])}, task="classify", where="verified").status == "fail"


def test_probabilities_are_preferred_as_class_scores_and_maps_are_none() -> None:
    outputs = {
        "label": np.array([[1], [0]]),
        "logits": rows([3.0, 5.0], [1.0, 0.0]),
        "p": SOURCE["p"][:2],
        "map": np.zeros((2, 4, 4)),
    }
    assert class_output(outputs) == "p"
    assert class_output({"map": np.zeros((2, 4, 4))}) is None
    assert not are_probabilities(outputs["logits"])


IMAGE = make_samples({"x": np.zeros((4, 3), np.float32)}, np.array([0, 1, 1, 0]))


@pytest.mark.parametrize(
    ("output", "labels", "task"),
    [
        pytest.param(rows(*[[0.3, 0.7]] * 4), None, "classify", id="probabilities"),
        pytest.param(rows(*[[3.0, -7.0]] * 4), np.array([0, 1, 1, 0]), "classify", id="logits with classes"),
        pytest.param(rows(*[[3.0, -7.0]] * 4), None, "regress", id="numbers"),
        pytest.param(rows(*[[3.0, -7.0]] * 4), np.array([0, 1, 2, 0]), "regress", id="labels beyond the outputs"),
        pytest.param(rows(*[[3.0, -7.0, 1.0]] * 4), np.array([0, 1, 1, 0]), "regress", id="autoencoder"),
        pytest.param(np.zeros((4, 2, 2), np.float32), np.array([0, 1, 1, 0]), "regress", id="map"),
    ],
)
def test_the_task_is_told_from_outputs_and_labels(output: Array, labels: Array | None, task: str) -> None:
    assert detect_task(make_samples(IMAGE.inputs, labels), {"out": output}) == task


def test_logits_get_a_softmax_and_probabilities_none() -> None:
    post = post_processing({"out": rows([3.0, -7.0], [0.0, 1.0])}, "classify")
    assert post is not None
    assert (post.output, post.activation) == ("out", "softmax")
    post = post_processing(SOURCE, "classify")
    assert post is not None
    assert post.activation == "none"
    assert post_processing(SOURCE, "regress") is None


def test_answers_are_collected_one_sample_a_call_without_batch_axes() -> None:
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 3)),), (TensorSpec("sum", "float32", ("batch",)), TensorSpec("n", "int64", ()))
    )
    samples = make_samples({"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    got = answers(lambda feed: {"sum": feed["x"].sum(axis=1), "n": np.array(feed["x"].shape[0])}, samples, signature)
    assert got["sum"].tolist() == [3.0, 12.0]
    assert got["n"].tolist() == [1, 1]
