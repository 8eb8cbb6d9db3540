"""Fits an estimator of scikit-learn and writes it as a pickle."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.zoo.recipe import FILES, Recipe
from benchmarks.zoo.samples import Splits
from edgeml.runtime.backends import Array


def make(recipe: Recipe, splits: Splits, place: Path) -> tuple[list[Array], int]:
    """The answers to the evaluation samples, and how many parameters there are."""
    assert splits.train is not None, "an estimator is fitted on samples"
    module, _, name = recipe.net.partition(":")
    estimator: Any = getattr(importlib.import_module(f"benchmarks.zoo.{module}"), name)(recipe.seed)
    estimator.fit(splits.train.inputs["x"], splits.train.labels)
    (place / FILES["sklearn"]).write_bytes(pickle.dumps(estimator))
    answers = np.asarray(estimator.predict_proba(splits.evaluate.inputs["x"].astype(np.float64)), np.float32)
    return [answers], sum(map(_size, estimator.named_steps.values()))


def _size(step: Any) -> int:
    """Numbers that were learned: those whose names end in an underscore."""
    learned = (value for name, value in vars(step).items() if name.endswith("_") and not name.startswith("_"))
    return sum(int(np.size(part)) for value in learned for part in (value if isinstance(value, list) else [value]))
