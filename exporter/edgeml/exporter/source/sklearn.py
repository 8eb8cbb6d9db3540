"""scikit-learn sources: an estimator or pipeline that was fitted, from a pickle or a factory.

It takes rows of numbers `x` and gives one output: `probabilities` or `scores` of a classifier, the `prediction` of a regressor,
the `transformed` rows of a transformer. The label is not an output: engines know no text, and class numbers that are computed
twice may differ where two classes tie; the classes' names travel as the bundle's labels. The reference is the estimator itself.
"""

from __future__ import annotations

import functools
import pickle
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from edgeml.exporter.extras import missing
from edgeml.exporter.source.factory import build, is_estimator
from edgeml.exporter.source.model import SourceModel, SourceRef, identity, read_arrays, write_arrays
from edgeml.exporter.source.torch import TorchModel
from edgeml.runtime.backends import Array
from edgeml.wire.canonical import encode_json, sha256_hex
from edgeml.wire.errors import EdgemlError, MissingExtraError, ModelError, UnsupportedError
from edgeml.wire.manifest import BATCH, Signature, TensorSpec

INPUT: Final = "x"
Method = Literal["predict_proba", "decision_function", "predict", "transform"]
OUTPUTS: Final[dict[Method, str]] = {
    "predict_proba": "probabilities",
    "decision_function": "scores",
    "predict": "prediction",
    "transform": "transformed",
}


@dataclass(frozen=True, slots=True)
class SklearnModel:
    """A fitted estimator, and the method that the export reproduces. `classes` are a classifier's, in order of its columns."""

    estimator: Any
    method: Method
    signature: Signature
    classes: tuple[Any, ...]
    notes: tuple[str, ...]

    def answer(self, rows: Array) -> Array:
        """What the estimator says to rows (n, features), as float32 (n, columns).

        It computes in float64 on the very values that a device is fed: rows are float32 already.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about feature names, which arrays do not have
            answers = np.asarray(getattr(self.estimator, self.method)(rows.astype(np.float64)))
        return answers.reshape(len(rows), -1).astype(np.float32)


@functools.lru_cache(maxsize=1)
def load(source: SourceRef) -> SklearnModel:
    """Load a source.

    Raises:
        ModelError: damaged, raising, or not fitted.
        UnsupportedError: not an estimator, or one that no numbers can be fed to.
    """
    try:
        import sklearn
    except ModuleNotFoundError as error:
        raise MissingExtraError("sklearn", "sklearn") from error
    name = Path(source.path).name
    try:
        estimator, notes = _open(source)
    except EdgemlError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise missing(error) or ModelError(f"{name!r} cannot be loaded: {type(error).__name__}: {text}") from error
    if not is_estimator(estimator):
        raise UnsupportedError(
            f"{name!r} holds a {type(estimator).__name__}, not a scikit-learn estimator",
            hint="save the fitted estimator itself",
        )
    estimator = getattr(estimator, "best_estimator_", estimator)  # of a search
    try:
        sklearn.utils.validation.check_is_fitted(estimator)
    except sklearn.exceptions.NotFittedError as error:
        raise ModelError(f"{type(estimator).__name__} is not fitted", hint="call fit before it is saved") from error
    return _described(sklearn, estimator, notes)


def _open(source: SourceRef) -> tuple[Any, tuple[str, ...]]:
    if source.factory is not None:
        made = build(source)
        return (made[0] if isinstance(made, tuple) else made), ()
    import joblib

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        estimator = joblib.load(source.path)  # reads plain pickles too
    return estimator, tuple({str(one.message).partition(".\n")[0][:200] for one in said if "version" in str(one.message)})


def _described(sklearn: Any, estimator: Any, notes: tuple[str, ...]) -> SklearnModel:
    features = _features(estimator)
    kind = type(estimator).__name__
    if features is None:
        raise UnsupportedError(f"{kind} does not say how many numbers a row has", hint="fit it on an array of numbers")
    if getattr(estimator, "feature_names_in_", None) is not None and not _takes_arrays(estimator):
        raise UnsupportedError(
            f"{kind} picks its columns by name: a device feeds arrays", hint="name columns by position, and fit on an array"
        )
    method = _method(sklearn, estimator)
    model = SklearnModel(estimator, method, Signature((), ()), _classes(sklearn, estimator), notes)
    try:
        found = model.answer(np.zeros((1, features), np.float32))
    except (ValueError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:200]
        raise UnsupportedError(
            f"{kind} does not answer to rows of numbers: {text}", hint="fit it on an array of numbers"
        ) from error
    outputs = (TensorSpec(OUTPUTS[method], "float32", (BATCH, found.shape[1])),)
    signature = Signature((TensorSpec(INPUT, "float32", (BATCH, features)),), outputs)
    return SklearnModel(estimator, method, signature, model.classes, notes)


def _features(estimator: Any) -> int | None:
    """How many numbers a row has; a pipeline does not know it if its first step passes rows through."""
    parts = [estimator, *(step for _, step in getattr(estimator, "steps", []))]
    return next((int(part.n_features_in_) for part in parts if hasattr(part, "n_features_in_")), None)


def _takes_arrays(estimator: Any) -> bool:
    """Whether no step picks columns by their names."""
    steps = [step for _, step in getattr(estimator, "steps", [])]
    chosen = [columns for _, _, columns in getattr(estimator, "transformers_", [])]
    named = any(isinstance(column, str) for columns in chosen for column in np.ravel(columns).tolist())
    return not named and all(map(_takes_arrays, steps))


def _method(sklearn: Any, estimator: Any) -> Method:
    base, kind = sklearn.base, type(estimator).__name__
    if base.is_classifier(estimator):
        if len(np.shape(getattr(estimator, "classes_", ()))) != 1:
            raise UnsupportedError(f"{kind} answers several questions at once", hint="export one classifier for each")
        for method in ("predict_proba", "decision_function"):
            if hasattr(estimator, method):
                return method
        raise UnsupportedError(f"{kind} gives no score for a class", hint="wrap it in CalibratedClassifierCV")
    if base.is_outlier_detector(estimator) and hasattr(estimator, "decision_function"):
        return "decision_function"
    if base.is_regressor(estimator):
        return "predict"
    if hasattr(estimator, "transform"):
        return "transform"
    raise UnsupportedError(f"{kind} neither predicts nor transforms", hint="export a classifier, regressor or transformer")


def _classes(sklearn: Any, estimator: Any) -> tuple[Any, ...]:
    return tuple(np.asarray(estimator.classes_).tolist()) if sklearn.base.is_classifier(estimator) else ()


def as_module(source: SourceRef) -> TorchModel:
    """The estimator as plain tensor code, so that torch's converters take it.

    Raises:
        UnsupportedError: it is not made of linear and neural parts; the part is named.
    """
    import torch

    from edgeml.exporter.source.sklearn_layers import as_torch

    model = load(source)
    module = as_torch(model.estimator, model.method)
    return TorchModel(model.signature, module, (torch.zeros(1, int(model.signature.inputs[0].shape[1])),), any_batch=True)


def describe(source: dict[str, Any]) -> Any:
    """Job: `SourceModel` of a `SourceRef`. A factory's identity is its file together with what it built."""
    ref = msgspec.convert(source, SourceRef)
    model = load(ref)
    digest, size = identity(Path(ref.path))
    if ref.factory is not None:
        digest = sha256_hex(encode_json({"file": digest, "built": sha256_hex(pickle.dumps(model.estimator, protocol=5))}))
    whole = all(isinstance(name, int) and name == index for index, name in enumerate(model.classes))
    numbered = all(isinstance(name, int) for name in model.classes)
    described = SourceModel(
        ref.kind,
        model.signature,
        digest,
        size,
        labels=tuple(map(str, model.classes)) if len(set(map(str, model.classes))) > 1 else (),
        classes=() if whole or not numbered else model.classes,
        metadata={"estimator": type(model.estimator).__name__},
        libraries={"scikit-learn": version("scikit-learn")},
        notes=model.notes,
        fingerprint=digest,
    )
    return msgspec.to_builtins(described)


def reference(source: dict[str, Any], inputs: str, out: str) -> None:
    """Job: run the estimator on the samples of one .npz, write its answers to another; the first axis counts samples."""
    model = load(msgspec.convert(source, SourceRef))
    write_arrays(out, [model.answer(read_arrays(inputs, [INPUT])[INPUT])])
