"""Trains a network of Keras 3 or tf_keras and writes it as .keras, .h5 or SavedModel; runs published models."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.zoo.recipe import FILES, Recipe
from benchmarks.zoo.samples import Splits
from edgeml.runtime.backends import Array

BATCH: Final = 64


def make(recipe: Recipe, splits: Splits, place: Path) -> tuple[list[Array], int]:
    """The answers to the evaluation samples, and how many parameters there are."""
    given = next(iter(splits.evaluate.inputs.values()))
    if recipe.kind == "tflite":
        return _interpreted(recipe, given)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    import tensorflow as tf

    if recipe.kind == "keras-h5" or recipe.published:
        import tf_keras as keras
    else:
        import keras
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if recipe.published:
        return _published(tf, keras, recipe, given)
    assert splits.train is not None and splits.train.labels is not None  # noqa: PT018 - a network is trained on samples
    keras.utils.set_random_seed(recipe.seed)
    net = getattr(importlib.import_module("benchmarks.zoo.keras_nets"), recipe.net.partition(":")[2])(keras)
    train, steps = next(iter(splits.train.inputs.values())), recipe.epochs * (len(splits.train) // BATCH + 1)
    net.optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(recipe.rate, steps)
    chance = np.random.default_rng(recipe.seed)
    for _ in range(recipe.epochs):
        shift = int(chance.integers(-recipe.roll, recipe.roll + 1))
        net.fit(np.roll(train, shift, axis=recipe.roll_axis), splits.train.labels, BATCH, 1, verbose=0)
    if recipe.kind == "savedmodel":
        plain = keras.models.clone_model(net)  # an optimizer's lists cannot be saved
        plain.set_weights(net.get_weights())
        plain.export(str(place / FILES["savedmodel"]), verbose=False)
    else:
        net.save(place / FILES[recipe.kind])
    return [np.asarray(net.predict(given, 128, verbose=0))], int(net.count_params())


def _interpreted(recipe: Recipe, given: Array) -> tuple[list[Array], int]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(recipe.source, num_threads=1)
    interpreter.allocate_tensors()
    taken, answered = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    rows = []
    for sample in given:
        interpreter.set_tensor(taken, sample[np.newaxis])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(answered)[0].copy())
    return [np.stack(rows)], Path(recipe.source).stat().st_size // 4  # of float32, with what little the file holds besides


def _published(tf: Any, keras: Any, recipe: Recipe, given: Array) -> tuple[list[Array], int]:
    if recipe.kind == "keras-h5":
        net = keras.models.load_model(recipe.source, compile=False)
        return [np.asarray(net.predict(given, 128, verbose=0))], int(net.count_params())
    loaded = tf.saved_model.load(recipe.source)  # owns the variables
    call = loaded.signatures["serving_default"]
    name = next(iter(call.structured_input_signature[1]))
    answer = next(iter(call(**{name: tf.constant(given)}).values()))
    return [np.asarray(answer)], sum(int(np.prod(variable.shape)) for variable in call.variables)
