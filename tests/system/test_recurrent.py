"""Recurrent Keras models, whose layers are loops in TensorFlow's graph, in the formats whose converters refuse such loops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from edgeml.runtime.bundle import open_bundle
from tests.system.export_sources import QUIET

pytestmark = pytest.mark.slow

SOURCES: Final = """
import keras
import tensorflow as tf
import tf_keras
keras.utils.set_random_seed(1)
layers = [keras.Input((9, 6), name="rows"), keras.layers.LSTM(24), keras.layers.Dense(4, activation="softmax", name="probs")]
keras.Sequential(layers).save("lstm.keras")
both = keras.layers.Bidirectional(keras.layers.GRU(16))
keras.Sequential([keras.Input((9, 6), name="rows"), both, keras.layers.Dense(4)]).save("gru3.keras")
rows = tf_keras.Input((None, 6), name="rows")
ways = tf_keras.layers.Bidirectional(tf_keras.layers.GRU(12, return_sequences=True))(rows)
tf_keras.Model(rows, tf_keras.layers.Dense(3, name="scores")(tf_keras.layers.GRU(10)(ways))).save("gru.h5")


class Halving(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32, name="x")])
    def halve(self, x):
        return {"y": tf.while_loop(lambda x: tf.reduce_max(x) > 1.0, lambda x: (x / 2.0,), (x,))[0]}


halving = Halving()
tf.saved_model.save(halving, "halving", signatures=halving.halve)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recurrent")
    subprocess.run([sys.executable, "-c", SOURCES], cwd=folder, env={**os.environ, **QUIET}, check=True, capture_output=True)
    np.savez(folder / "rows.npz", rows=np.random.default_rng(0).normal(size=(48, 9, 6)).astype(np.float32))
    np.savez(folder / "x.npz", x=np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32))
    return folder


def export(folder: Path, source: str, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The command and its artifacts' reports by "format precision"."""
    command = [sys.executable, "-m", "edgeml.cli", "export", source, *options, "--json", "-o", f"out-{Path(source).stem}"]
    told = {**os.environ, "EDGEML_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True, check=False)
    return done, {f"{one['format']} {one['precision']}": one for one in json.loads(done.stdout)["artifacts"]}


def test_an_lstm_reaches_core_ml_and_int8_tflite(sources: Path) -> None:
    precisions = ("--precision", "fp32,int8", "--max-drop", "100", "--calib", "rows.npz")
    done, artifacts = export(sources, "lstm.keras", "--to", "tflite,coreml", *precisions)

    assert done.returncode == 0, done.stderr
    assert {name: one["status"] for name, one in artifacts.items()} == dict.fromkeys(artifacts, "pass")
    with open_bundle(next((sources / "out-lstm").glob("*.edgeml"))) as bundle:
        operators = {(artifact.format, artifact.precision): artifact.ops for artifact in bundle.manifest.artifacts}
    assert operators["coreml", "fp32"]["lstm"] == 1
    assert operators["tflite", "int8"]["WHILE"] == 1
    assert "by way of ONNX and torch: coremltools cannot convert operator 'While'" in artifacts["coreml fp32"]["notes"][0]
    assert any("inside loops have int8 weights" in note for note in artifacts["tflite int8"]["notes"])
    assert all(artifacts[f"{one} int8"]["bytes"] < artifacts[f"{one} fp32"]["bytes"] for one in ("tflite", "coreml"))


def test_a_legacy_gru_over_any_number_of_steps_reaches_core_ml_at_the_samples_number(sources: Path) -> None:
    done, artifacts = export(sources, "gru.h5", "--to", "coreml", "--calib", "rows.npz")

    assert done.returncode == 0, done.stderr
    assert artifacts["coreml fp32"]["parity"]["max_abs"] < 1e-5
    assert any("fixed at 9, the samples' size" in note for note in artifacts["coreml fp32"]["notes"])


def test_a_gru_that_stays_a_loop_in_onnx_reaches_core_ml_step_by_step(sources: Path) -> None:
    done, artifacts = export(sources, "gru3.keras", "--to", "coreml", "--calib", "rows.npz")

    assert done.returncode == 0, done.stderr
    assert artifacts["coreml fp32"]["parity"]["max_abs"] < 1e-5


def test_a_loop_that_data_ends_is_refused_with_both_reasons(sources: Path) -> None:
    done, artifacts = export(sources, "halving", "--to", "coreml", "--calib", "x.npz")

    error = artifacts["coreml fp32"]["error"]
    assert done.returncode == 5
    assert error.startswith("coremltools cannot convert operator 'While'")
    assert "and by way of ONNX and torch, " in error
