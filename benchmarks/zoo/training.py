"""Makes a recipe's folder: its source file, and what the source answers to the evaluation samples."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.zoo import keras_training, sklearn_training, torch_training
from benchmarks.zoo.recipe import TORCH, Recipe
from edgeml.runtime.backends import Array


def make(recipe: Recipe) -> dict[str, Any]:
    """The facts of a trained recipe: trained now, or kept from before. Its folder is whole or absent."""
    folder = recipe.folder  # named by the code as it is now, should somebody edit it meanwhile
    facts = folder / "facts.json"
    if not facts.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as temporary:
            place = Path(temporary) / "made"
            place.mkdir()
            _make(recipe, place)
            shutil.rmtree(folder, ignore_errors=True)
            place.rename(folder)
    return dict(json.loads(facts.read_text(encoding="utf-8")))


def source_answers(recipe: Recipe) -> list[Array]:
    """The source's outputs to the evaluation samples, by the framework it was made in."""
    with np.load(recipe.folder / "answers.npz", allow_pickle=False) as file:
        return [file[f"arr_{index}"] for index in range(len(file.files))]


def _make(recipe: Recipe, place: Path) -> None:
    started = time.monotonic()
    splits = recipe.splits()
    if recipe.kind in TORCH:
        answers, parameters = torch_training.make(recipe, splits, place)
    elif recipe.kind == "sklearn":
        answers, parameters = sklearn_training.make(recipe, splits, place)
    else:
        answers, parameters = keras_training.make(recipe, splits, place)
    np.savez(place / "answers.npz", *answers)
    value = float(recipe.score(answers[0], splits.evaluate, answers[0]).mean())
    facts = {"name": recipe.name, "score": value, "chance": recipe.chance, "parameters": parameters}
    facts |= {"seconds": round(time.monotonic() - started, 1), "train": len(splits.train) if splits.train else 0}
    facts |= {"calibrate": len(splits.calibrate), "evaluate": len(splits.evaluate)}
    (place / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
