"""The linear and neural parts of scikit-learn as plain tensor code: exact, and compared with the estimator at export.

Each function gives what one estimator does to a batch of rows; a pipeline is one after the other. What is not in the tables at
the end goes to ONNX alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from edgeml.runtime.backends import Array
from edgeml.wire.errors import UnsupportedError

Step = Callable[[Tensor], Tensor]


class Affine(nn.Module):
    """(x - before) W + after; each part may be missing. Weights are (in, out), or (in,) for a scale."""

    def __init__(self, weights: Array, *, before: Array | None = None, after: Array | None = None) -> None:
        super().__init__()
        for name, values in (("weights", weights), ("before", before), ("after", after)):
            self.register_buffer(name, None if values is None else torch.from_numpy(np.asarray(values, np.float32).copy()))

    def forward(self, x: Tensor) -> Tensor:
        weights, before, after = self.weights, self.before, self.after
        assert isinstance(weights, Tensor), "weights are always there"
        x = x if not isinstance(before, Tensor) else x - before
        x = x @ weights if weights.ndim == 2 else x * weights
        return x if not isinstance(after, Tensor) else x + after


class Function(nn.Module):
    """A function without weights as a module."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Rows(nn.Module):
    """All steps, with a tuple for an output as converters of other torch sources are given."""

    def __init__(self, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.Sequential(*steps)

    def forward(self, *rows: Tensor) -> tuple[Tensor]:
        return (self.steps(rows[0]),)


def as_torch(estimator: Any, method: str) -> nn.Module:
    """A module that answers as `estimator.<method>` does.

    Raises:
        UnsupportedError: a part that is neither linear nor neural; it is named.
    """
    return Rows(_steps(estimator, method)).eval()


def has_torch(estimator: Any, method: str) -> bool:
    try:
        _steps(estimator, method)
    except UnsupportedError:
        return False
    return True


def _steps(estimator: Any, method: str) -> list[nn.Module]:
    kind = type(estimator).__name__
    if kind == "Pipeline":
        *before, (_, last) = estimator.steps
        first = [step for _, part in before if part not in {None, "passthrough"} for step in _steps(part, "transform")]
        return first + ([] if last in {None, "passthrough"} else _steps(last, method))
    makers = {"transform": TRANSFORMS, "predict_proba": PROBABILITIES, "decision_function": SCORES, "predict": PREDICTIONS}
    maker = makers[method].get(kind)
    if maker is None or not type(estimator).__module__.startswith("sklearn."):
        raise UnsupportedError(f"ONNX only, because {_why(estimator)}", hint="ask for --to onnx")
    return maker(estimator)


def _why(estimator: Any) -> str:
    module, kind = type(estimator).__module__, type(estimator).__name__
    if "ensemble" in module or "tree" in module:
        return f"{kind} is made of trees, for which TFLite and Core ML have no operator"
    if "neighbors" in module:
        return f"{kind} searches its training rows, for which TFLite and Core ML have no operator"
    return f"{kind} is neither linear nor neural"


def _standard(one: Any) -> list[nn.Module]:
    scale = np.ones(one.n_features_in_) if one.scale_ is None else 1 / one.scale_
    return [Affine(scale, before=one.mean_ if one.with_mean else None)]


def _robust(one: Any) -> list[nn.Module]:
    scale = np.ones(one.n_features_in_) if one.scale_ is None else 1 / one.scale_
    return [Affine(scale, before=one.center_ if one.with_centering else None)]


def _min_max(one: Any) -> list[nn.Module]:
    # (x - low) / width: x * scale + offset loses digits where a feature is far from 0
    steps: list[nn.Module] = [Affine(one.scale_, before=one.data_min_, after=np.full_like(one.scale_, one.feature_range[0]))]
    low, high = map(float, one.feature_range)
    return [*steps, Function(lambda x: x.clamp(low, high))] if one.clip else steps


def _normalizer(one: Any) -> list[nn.Module]:
    def norms(x: Tensor) -> Tensor:
        if one.norm == "l1":
            return x.abs().sum(1, keepdim=True)
        return x.abs().amax(1, keepdim=True) if one.norm == "max" else (x * x).sum(1, keepdim=True).sqrt()

    return [Function(lambda x: x / torch.where(norms(x) == 0, torch.ones_like(norms(x)), norms(x)))]


def _pca(one: Any) -> list[nn.Module]:
    weights = one.components_.T
    if one.whiten:
        weights = weights / np.sqrt(np.maximum(one.explained_variance_, np.finfo(np.float64).eps))
    return [Affine(weights, before=one.mean_)]


def _svd(one: Any) -> list[nn.Module]:
    return [Affine(one.components_.T)]


def _linear(one: Any) -> list[nn.Module]:
    weights = np.atleast_2d(one.coef_).T
    return [Affine(weights, after=np.broadcast_to(one.intercept_, (weights.shape[1],)))]


def _both(score: Tensor) -> Tensor:
    """Probabilities of both classes from the score of the second."""
    second = torch.sigmoid(score)
    return torch.cat([1 - second, second], 1)


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, 1)


def _logistic(one: Any) -> list[nn.Module]:
    return [*_linear(one), Function(_both if len(one.classes_) == 2 else _softmax)]


ACTIVATIONS: Final[dict[str, Step]] = {
    "relu": torch.relu, "tanh": torch.tanh, "logistic": torch.sigmoid, "softmax": _softmax,
}  # fmt: skip


def _network(one: Any) -> list[nn.Module]:
    steps: list[nn.Module] = []
    for weights, offsets in zip(one.coefs_, one.intercepts_, strict=True):
        steps += [Affine(weights, after=offsets)]
        if len(steps) and weights is not one.coefs_[-1] and one.activation != "identity":
            steps.append(Function(ACTIVATIONS[one.activation]))
    return steps


def _mlp_classes(one: Any) -> list[nn.Module]:
    if one.out_activation_ == "logistic" and one.n_outputs_ == 1:
        return [*_network(one), Function(_both)]
    return [*_network(one), Function(ACTIVATIONS[one.out_activation_])]


def _mlp_values(one: Any) -> list[nn.Module]:
    return _network(one) if one.out_activation_ == "identity" else [*_network(one), Function(ACTIVATIONS[one.out_activation_])]


Maker = Callable[[Any], list[nn.Module]]
TRANSFORMS: Final[dict[str, Maker]] = {
    "StandardScaler": _standard,
    "RobustScaler": _robust,
    "MinMaxScaler": _min_max,
    "MaxAbsScaler": lambda one: [Affine(1 / one.scale_)],
    "Normalizer": _normalizer,
    "PCA": _pca,
    "IncrementalPCA": _pca,
    "TruncatedSVD": _svd,
}
PROBABILITIES: Final[dict[str, Maker]] = {
    "LogisticRegression": _logistic,
    "LogisticRegressionCV": _logistic,
    "LinearDiscriminantAnalysis": _logistic,
    "MLPClassifier": _mlp_classes,
}
SCORES: Final[dict[str, Maker]] = dict.fromkeys(
    ("LinearSVC", "RidgeClassifier", "RidgeClassifierCV", "Perceptron", "SGDClassifier", "PassiveAggressiveClassifier"), _linear
)
PREDICTIONS: Final[dict[str, Maker]] = {
    "MLPRegressor": _mlp_values,
    **dict.fromkeys(
        (
            "LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "Lars", "LassoLars",
            "BayesianRidge", "ARDRegression", "HuberRegressor", "TheilSenRegressor", "SGDRegressor", "LinearSVR",
        ),
        _linear,
    ),
}  # fmt: skip
