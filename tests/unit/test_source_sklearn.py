"""scikit-learn as a source: what it answers is what the estimator answers, in plain tensor code and in ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("skl2onnx")

import joblib
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, RobustScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC

from edgeml.exporter.convert import onnx as convert
from edgeml.exporter.data import read_data
from edgeml.exporter.plan import make_plan
from edgeml.exporter.quantize.onnx import to_fp16_onnx, to_int8_onnx
from edgeml.exporter.source import SourceModel, SourceRef, factory, locate
from edgeml.exporter.source import sklearn as source
from edgeml.exporter.source import torch as torch_source
from edgeml.runtime.backends import Array, EngineOptions, opener
from edgeml.wire.errors import ModelError, PlanError, UnsupportedError

IRIS, CANCER, DIABETES = load_iris(return_X_y=True), load_breast_cancer(return_X_y=True), load_diabetes(return_X_y=True)
WORDS = (IRIS[0], np.array(["setosa", "versicolor", "virginica"])[IRIS[1]])
CLOSE = 5e-6  # of the output range; float32 against float64


def saved(folder: Path, estimator: Any, data: Any) -> SourceRef:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about iterations, which few are enough for here
        joblib.dump(estimator.fit(*data), folder / "m.joblib")
    return locate(str(folder / "m.joblib"), trust=True)


def described(ref: SourceRef) -> SourceModel:
    return msgspec.convert(source.describe(msgspec.to_builtins(ref)), SourceModel)


def run_onnx(folder: Path, ref: SourceRef, rows: Array) -> Array:
    convert.from_sklearn(msgspec.to_builtins(ref), str(folder / "m.onnx"))
    return opener("onnx")((folder / "m.onnx").read_bytes(), EngineOptions()).run([rows])[0]


def error(got: Array, want: Array) -> float:
    return float(np.abs(got - want).max() / np.ptp(want))


LINEAR = {
    "standard scaler, logistic, words": (make_pipeline(StandardScaler(), LogisticRegression()), WORDS),
    "two classes": (make_pipeline(MinMaxScaler(clip=True), LogisticRegression()), CANCER),
    "robust scaler, PCA, MLP": (
        make_pipeline(RobustScaler(), PCA(3), MLPClassifier((8,), max_iter=30, random_state=0)), IRIS,
    ),
    "MLP of two classes": (
        make_pipeline(StandardScaler(), MLPClassifier((8, 4), activation="tanh", max_iter=30, random_state=0)), CANCER,
    ),
    "MLP regressor": (
        make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(8,), max_iter=30, random_state=0)), DIABETES,
    ),
    "ridge": (make_pipeline(MaxAbsScaler(), Ridge()), DIABETES),
    "two targets": (LinearRegression(), (DIABETES[0], np.stack([DIABETES[1], DIABETES[0][:, 0]], 1))),
    "linear SVC": (make_pipeline(StandardScaler(), LinearSVC()), CANCER),
    "ridge classifier": (make_pipeline(Normalizer(), RidgeClassifier()), IRIS),
    "LDA": (LinearDiscriminantAnalysis(), IRIS),
    "whitened PCA": (PCA(2, whiten=True), IRIS),
    "SVD": (make_pipeline("passthrough", TruncatedSVD(2)), IRIS),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_linear_and_neural_parts_are_exact_as_tensor_code(tmp_path: Path, name: str) -> None:
    estimator, data = LINEAR[name]
    ref = saved(tmp_path, estimator, data)
    rows = data[0].astype(np.float32)
    with torch.no_grad():
        (got,) = torch_source.load(ref).module(torch.from_numpy(rows))
    assert error(got.numpy(), source.load(ref).answer(rows)) < CLOSE


OTHERS = {
    "forest": (RandomForestClassifier(5, random_state=0), WORDS),
    "gradient boosting": (GradientBoostingClassifier(n_estimators=5, random_state=0), IRIS),
    "histogram boosting": (HistGradientBoostingClassifier(max_iter=10, random_state=0), CANCER),
    "histogram regressor": (HistGradientBoostingRegressor(max_iter=10, random_state=0), DIABETES),
    "naive Bayes": (GaussianNB(), IRIS),
    "neighbours": (KNeighborsClassifier(), IRIS),
    "k-means": (KMeans(3, n_init=1, random_state=0), IRIS),
    "isolation forest": (IsolationForest(n_estimators=10, random_state=0), IRIS),
    "kernel SVC": (make_pipeline(StandardScaler(), SVC()), IRIS),
    "kernel SVC of two classes": (make_pipeline(StandardScaler(), SVC()), CANCER),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_rest_is_exact_in_onnx(tmp_path: Path, name: str) -> None:
    estimator, data = OTHERS[name]
    ref = saved(tmp_path, estimator, data)
    rows = data[0].astype(np.float32)
    assert error(run_onnx(tmp_path, ref, rows), source.load(ref).answer(rows)) < CLOSE


def test_rows_that_hold_a_trees_threshold_go_the_estimators_way(tmp_path: Path) -> None:
    """A threshold rounded to the nearest float32 sends them to the other side; these rows lie on thresholds."""
    estimator, data = OTHERS["histogram boosting"]
    ref = saved(tmp_path, estimator, data)
    thresholds = [node["num_threshold"] for stage in source.load(ref).estimator._predictors for node in stage[0].nodes]
    rows = np.repeat(np.array(thresholds, np.float32)[:, None], data[0].shape[1], 1)
    assert error(run_onnx(tmp_path, ref, rows), source.load(ref).answer(rows)) < CLOSE


@pytest.mark.parametrize(("name", "why"), [("forest", "made of trees"), ("neighbours", "searches its training rows")])
def test_trees_and_neighbours_are_onnx_only_and_say_why(tmp_path: Path, name: str, why: str) -> None:
    estimator, data = OTHERS[name]
    with pytest.raises(UnsupportedError, match=f"ONNX only, because .*{why}.*; ask for --to onnx"):
        torch_source.load(saved(tmp_path, estimator, data))


def test_trees_have_no_smaller_form_and_say_so(tmp_path: Path) -> None:
    ref = saved(tmp_path, *OTHERS["forest"])
    convert.from_sklearn(msgspec.to_builtins(ref), str(tmp_path / "m.onnx"))
    model = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(UnsupportedError, match="no operator of this model can run on float16"):
        to_fp16_onnx(model)
    with pytest.raises(UnsupportedError, match="no operator of this model can run on integers"):
        to_int8_onnx(model, {"x": IRIS[0].astype(np.float32)})


def test_words_for_classes_become_the_bundles_labels(tmp_path: Path) -> None:
    model = described(saved(tmp_path, *LINEAR["standard scaler, logistic, words"]))
    assert model.labels == ("setosa", "versicolor", "virginica")
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.signature.outputs] == [
        ("probabilities", "float32", ("batch", 3))
    ]


def test_class_numbers_that_do_not_count_from_zero_are_understood_in_samples(tmp_path: Path) -> None:
    model = described(saved(tmp_path, LogisticRegression(max_iter=2000), (IRIS[0], IRIS[1] * 5 + 2)))
    assert model.classes == (2, 7, 12)
    np.savez(tmp_path / "eval.npz", x=IRIS[0][:3], y=np.array([12, 2, 7]))
    plan = make_plan("m.joblib", to="onnx", evaluation=tmp_path / "eval.npz")
    labels = read_data(plan, model.signature, model.classes).judging.labels
    assert labels is not None
    assert labels.tolist() == [2, 0, 1]
    np.savez(tmp_path / "eval.npz", x=IRIS[0][:1], y=np.array([3]))
    with pytest.raises(PlanError, match="label 3 in 'y' is no class of the model"):
        read_data(plan, model.signature, model.classes)


FACTORY = """
import numpy as np
from sklearn.linear_model import LinearRegression


def drawn():
    x = np.random.normal(size=(20, 3))
    return LinearRegression().fit(x, x.sum(1))


def unfitted():
    return LinearRegression()
"""


def test_a_factory_may_build_an_estimator_and_draws_the_same_numbers_each_time(tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text(FACTORY)
    ref = locate(f"{tmp_path}/build.py:drawn")
    first = msgspec.convert(torch_source.describe(msgspec.to_builtins(ref)), SourceModel)
    factory._build.cache_clear()
    source.load.cache_clear()
    assert first.kind == "sklearn-py"
    assert msgspec.convert(torch_source.describe(msgspec.to_builtins(ref)), SourceModel) == first


def test_an_estimator_that_was_never_fitted_is_refused(tmp_path: Path) -> None:
    joblib.dump(LogisticRegression(), tmp_path / "m.joblib")
    with pytest.raises(ModelError, match="LogisticRegression is not fitted; call fit"):
        source.load(locate(str(tmp_path / "m.joblib"), trust=True))


@pytest.mark.parametrize(
    ("content", "message"), [(b"\x80\x04garbage", "cannot be loaded"), (b"\x1f\x8bgarbage", "cannot be loaded")]
)
def test_a_damaged_pickle_is_an_error_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.joblib").write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        source.load(locate(str(tmp_path / "m.joblib"), trust=True))
    assert "\n" not in str(caught.value)


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    joblib.dump({"weights": [1, 2]}, tmp_path / "m.pkl")
    with pytest.raises(UnsupportedError, match="holds a dict, not a scikit-learn estimator"):
        source.load(locate(str(tmp_path / "m.pkl"), trust=True))
