"""Task metrics against scikit-learn's, and what their bounds promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as oracle

from edgeml.exporter.metric import Metric, parse_metric
from edgeml.exporter.parity import UNMEASURED, score
from edgeml.exporter.parity.intervals import LEAST_RESAMPLED, resampled_upper
from edgeml.exporter.parity.ranked import area_under_curve
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Task


def noisy(labels: Array, classes: int, *, seed: int, noise: float = 1.0) -> Array:
    """Probabilities that lean to the labels; rounded, so that some tie."""
    rng = np.random.default_rng(seed)
    logits = np.round(2 * np.eye(classes)[labels] + noise * rng.normal(size=(len(labels), classes)), 1)
    shares = np.exp(logits)
    return np.asarray((shares / shares.sum(axis=1, keepdims=True)).astype(np.float32))


def judged(metric: str, source: Array, got: Array, labels: Array | None, budget: float | None = 1.0) -> Task:
    kind = "regress" if metric in {"mse", "mae", "r2"} else "classify"
    return score({"p": source}, {"p": got}, labels, task=kind, budget=budget, metric=parse_metric(metric))  # type: ignore[arg-type]


LABELS = np.random.default_rng(0).integers(0, 4, 300)
SOURCE, ARTIFACT = noisy(LABELS, 4, seed=1), noisy(LABELS, 4, seed=2, noise=1.3)
PAIR = LABELS % 2
SOURCE2, ARTIFACT2 = noisy(PAIR, 2, seed=3), noisy(PAIR, 2, seed=4, noise=1.6)


def test_auc_of_several_classes_is_scikit_learns() -> None:
    task = judged("auc", SOURCE, ARTIFACT, LABELS)

    assert task.source_value == pytest.approx(
        oracle.roc_auc_score(LABELS, SOURCE, multi_class="ovr", average="macro"), abs=1e-6
    )
    assert task.value == pytest.approx(oracle.roc_auc_score(LABELS, ARTIFACT, multi_class="ovr", average="macro"), abs=1e-6)
    assert task.drop == pytest.approx(100 * (task.source_value - task.value))


def test_auc_of_two_classes_is_scikit_learns_as_is_that_of_a_single_score() -> None:
    wanted = oracle.roc_auc_score(PAIR, SOURCE2[:, 1])

    assert judged("auc", SOURCE2, ARTIFACT2, PAIR).source_value == pytest.approx(wanted, abs=1e-6)
    assert judged("auc", SOURCE2[:, 1:], ARTIFACT2[:, 1:], PAIR).source_value == pytest.approx(wanted, abs=1e-6)


def test_auc_of_drawn_samples_is_scikit_learns_of_repeated_ones() -> None:
    counts = np.random.default_rng(5).integers(0, 4, (3, len(PAIR))).astype(np.float64)

    areas = area_under_curve(SOURCE2.astype(np.float64), PAIR)(counts)

    wanted = [oracle.roc_auc_score(PAIR, SOURCE2[:, 1], sample_weight=row) for row in counts]
    assert areas == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("labels", "scores", "average"), [(LABELS, SOURCE, "macro"), (PAIR, SOURCE2, "binary")])
def test_f1_is_scikit_learns(labels: Array, scores: Array, average: str) -> None:
    task = judged("f1", scores, scores, labels)

    assert task.value == pytest.approx(oracle.f1_score(labels, scores.argmax(axis=1), average=average))
    assert task.drop == 0.0


def test_top_k_is_scikit_learns_where_nothing_ties() -> None:
    scores = SOURCE + np.random.default_rng(6).uniform(0, 1e-5, SOURCE.shape).astype(np.float32)

    assert judged("top2", scores, scores, LABELS).value == pytest.approx(oracle.top_k_accuracy_score(LABELS, scores, k=2))


@pytest.mark.parametrize(("metric", "wanted"), [("mse", oracle.mean_squared_error), ("mae", oracle.mean_absolute_error)])
def test_errors_are_scikit_learns_and_their_drop_is_growth_in_percent(metric: str, wanted: object) -> None:
    rng = np.random.default_rng(7)
    truth = rng.normal(size=(200, 3))
    source, got = truth + 0.1 * rng.normal(size=(200, 3)), truth + 0.2 * rng.normal(size=(200, 3))

    task = judged(metric, source.astype(np.float32), got.astype(np.float32), truth)

    assert callable(wanted)
    assert (task.source_value, task.value) == pytest.approx((wanted(truth, source), wanted(truth, got)), rel=1e-5)
    assert task.drop == pytest.approx(100 * (task.value / task.source_value - 1))
    assert task.status == "fail"


def test_the_bound_of_auc_covers_the_true_drop_as_often_as_it_says() -> None:
    """Two scores whose true areas are known by a very large sample; 95 % of bounds from small ones must lie above."""
    rng, runs = np.random.default_rng(8), 100

    def draw(count: int) -> tuple[Array, Array, Array]:
        y = np.arange(count) % 2
        shared = rng.normal(size=count)
        return y, 1.2 * y + shared + 0.3 * rng.normal(size=count), 1.2 * y + shared + 0.8 * rng.normal(size=count)

    y, a, b = draw(200_000)
    truth = oracle.roc_auc_score(y, a) - oracle.roc_auc_score(y, b)
    covered = 0
    for _ in range(runs):
        y, a, b = draw(120)
        before, after = (area_under_curve(np.stack([-s, s], axis=1), y) for s in (a, b))
        covered += resampled_upper(lambda w, before=before, after=after: before(w) - after(w), y, resamples=300) >= truth  # type: ignore[misc]

    assert covered / runs >= 0.95 - 2 * (0.05 * 0.95 / runs) ** 0.5


def test_few_samples_bound_no_area() -> None:
    few = slice(0, LEAST_RESAMPLED - 1)

    task = judged("auc", SOURCE2[few], SOURCE2[few], PAIR[few])

    assert (task.drop, task.upper95, task.status) == (0.0, UNMEASURED, "inconclusive")


def test_a_second_chance_is_bounded_more_strictly() -> None:
    once, twice = (
        score({"p": SOURCE}, {"p": ARTIFACT}, LABELS, task="classify", budget=1.0, chances=chances).upper95
        for chances in (1, 2)
    )

    assert twice > once


@pytest.mark.parametrize("metric", ["top2", "auc", "f1", "mse", "mae"])
def test_a_metric_without_its_labels_is_refused(metric: str) -> None:
    with pytest.raises(PlanError, match=f"--metric {metric} without labels"):
        judged(metric, SOURCE, ARTIFACT, None)


def test_top_k_of_all_classes_is_refused() -> None:
    with pytest.raises(PlanError, match="less than the model's 4 classes"):
        judged("top4", SOURCE, ARTIFACT, LABELS)


def test_the_area_of_one_class_is_refused() -> None:
    with pytest.raises(PlanError, match="all have one label"):
        judged("auc", SOURCE, ARTIFACT, np.zeros(300, np.int64))


FUNCTIONS = """
import numpy as np
def whole(outputs, labels): return float((outputs["p"].argmax(axis=1) == labels).mean())
def right(outputs, labels): return outputs["p"].argmax(axis=1) == labels
def each(outputs, labels): return (outputs["p"].argmax(axis=1) == labels).astype(float)
def wrong(outputs, labels): return float((outputs["p"].argmax(axis=1) != labels).mean())
wrong.lower_is_better = True
def raises(outputs, labels): raise KeyError("boxes")
def text(outputs, labels): return "good"
def short(outputs, labels): return np.zeros(3)
def nan(outputs, labels): return float("nan")
def writes(outputs, labels):
    outputs["p"][:] = 0; labels[:] = 0
    return 1.0
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("metrics") / "mine.py"
    path.write_text(FUNCTIONS)
    return str(path)


def test_a_function_that_says_right_or_wrong_is_bounded_as_accuracy_is(functions: str) -> None:
    mine, own = judged(f"{functions}:right", SOURCE, ARTIFACT, LABELS), judged("top1", SOURCE, ARTIFACT, LABELS)

    assert (mine.metric, mine.value, mine.drop, mine.upper95) == ("right", own.value, own.drop, own.upper95)


@pytest.mark.parametrize("name", ["whole", "each"])
def test_a_function_of_numbers_is_bounded_near_where_accuracy_is(functions: str, name: str) -> None:
    mine, own = judged(f"{functions}:{name}", SOURCE, ARTIFACT, LABELS), judged("top1", SOURCE, ARTIFACT, LABELS)

    assert (mine.value, mine.drop) == pytest.approx((own.value, own.drop))
    assert mine.upper95 == pytest.approx(own.upper95, abs=1.5)


def test_an_error_rate_drops_when_it_grows(functions: str) -> None:
    mine, own = judged(f"{functions}:wrong", SOURCE, ARTIFACT, LABELS), judged("top1", SOURCE, ARTIFACT, LABELS)

    assert mine.value == pytest.approx(1 - own.value)
    assert mine.drop == pytest.approx(own.drop)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised KeyError: 'boxes'"),
        ("text", "expected a finite number, or one for each sample (n,), got str"),
        ("short", "got shape (3,)"),
        ("nan", "got nan"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_function_that_gives_no_metric_is_refused(functions: str, name: str, message: str) -> None:
    with pytest.raises(PlanError) as refusal:
        judged(f"{functions}:{name}", SOURCE, ARTIFACT, LABELS)
    assert message in str(refusal.value)


def test_a_function_cannot_change_what_is_judged(functions: str) -> None:
    source, labels = SOURCE.copy(), LABELS.copy()

    judged(f"{functions}:writes", source, ARTIFACT, labels)

    assert np.array_equal(source, SOURCE)
    assert np.array_equal(labels, LABELS)


def test_words_name_metrics(functions: str) -> None:
    assert parse_metric("top5") == parse_metric("top-5") == Metric("top", 5)
    assert parse_metric(f"{functions}:whole").name == "mine.py:whole"


@pytest.mark.parametrize("text", ["accuracy", "call", "top", "top0", "mine.py", "nowhere.py:f", "model.onnx:f", "mine.py:"])
def test_what_names_no_metric_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="--metric"):
        parse_metric(text)


def test_a_file_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_like_this")
    with pytest.raises(PlanError, match=r"--metric broken.py:f: loading it raised ModuleNotFoundError"):
        judged(f"{tmp_path / 'broken.py'}:f", SOURCE, ARTIFACT, LABELS)
