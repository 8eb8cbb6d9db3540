"""A zoo model trained a little further, and what both versions are exported to; kept in the cache, so that a run goes on."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.zoo import torch_training
from benchmarks.zoo.recipe import CACHE, FILES, HERE, TORCH, Recipe
from benchmarks.zoo.samples import Samples, Splits
from benchmarks.zoo.training import make
from edgeml.exporter.pipeline import export
from edgeml.exporter.plan import make_plan
from edgeml.runtime.bundle import open_bundle

EPOCHS: Final = 1
SLOWER: Final = 10  # than the rate it was trained with
VERSIONS: Final = ("old", "new")


def artifacts(recipe: Recipe) -> dict[str, dict[str, bytes]]:
    """Model files by version ("old", "new") and artifact ("onnx int8", …). ONNX; of Keras models, TFLite too."""
    folder = CACHE.parent / "further" / recipe.folder.name
    for version in VERSIONS:
        if not (folder / version).exists():
            make(recipe)
            with tempfile.TemporaryDirectory(prefix="making-") as temporary:
                place = Path(temporary)
                source = recipe.source if version == "old" else further(recipe, recipe.splits(), place)
                _export(recipe, source, place, folder / version)
    return {version: {path.name: path.read_bytes() for path in sorted((folder / version).iterdir())} for version in VERSIONS}


def further(recipe: Recipe, splits: Splits, place: Path) -> str:
    """Train for an epoch more at a tenth of the rate; the source, as `edgeml export` is given it."""
    assert splits.train is not None, "a network is trained on samples"
    if recipe.kind in TORCH:
        _further_torch(recipe, splits.train, place)
    else:
        _further_keras(recipe, splits.train, place)
    return str(place / FILES[recipe.kind])


def _further_torch(recipe: Recipe, train: Samples, place: Path) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed + 1)
    module, _, name = recipe.net.partition(":")
    net_class: Any = getattr(importlib.import_module(f"benchmarks.zoo.{module}"), name)
    net = net_class()
    net.load_state_dict(torch.load(recipe.folder / "weights.pt", weights_only=True))
    gentle = replace(recipe, epochs=EPOCHS, rate=recipe.rate / SLOWER, seed=recipe.seed + 1)
    torch_training._fit(torch, net, gentle, train)  # noqa: SLF001 - to rename it would remake the zoo, by its digest
    net.eval()
    shutil.copy(HERE / f"{module}.py", place)
    torch.save(net.state_dict(), place / "weights.pt")
    (place / "model.py").write_text(torch_training.FACTORY.format(module=module, name=name), encoding="utf-8")
    torch_training._save(torch, net, net_class.example(), recipe, place)  # noqa: SLF001


def _further_keras(recipe: Recipe, train: Samples, place: Path) -> None:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    if recipe.kind == "keras-h5":
        import tf_keras as keras
    else:
        import keras
    keras.utils.set_random_seed(recipe.seed + 1)
    net = keras.models.load_model(recipe.folder / FILES[recipe.kind])
    net.compile(keras.optimizers.Adam(recipe.rate / SLOWER), net.loss)
    net.fit(next(iter(train.inputs.values())), train.labels, 64, EPOCHS, verbose=0)
    net.save(place / FILES[recipe.kind])


def _export(recipe: Recipe, source: str, place: Path, folder: Path) -> None:
    """Each artifact's file into `folder`, which appears when it is whole."""
    calibration = place / "calibrate.npz"
    np.savez(calibration, **recipe.splits().calibrate.inputs)  # type: ignore[arg-type]  # numpy types the keywords as its own flag
    formats = "onnx" if recipe.kind in TORCH else "onnx,tflite"
    plan = make_plan(
        source, to=formats, precision="fp32,int8", out=place / "out", calib=calibration, name=recipe.name, trust=recipe.trusted
    )
    bundle = export(plan).bundle
    assert bundle is not None, f"{recipe.name}: no artifact passed"
    made = folder.with_suffix(".making")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    opened = open_bundle(bundle)
    for artifact in opened.manifest.artifacts:
        (made / f"{artifact.format} {artifact.precision}").write_bytes(opened.blob(artifact.sha256))
    made.rename(folder)
