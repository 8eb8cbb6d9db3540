"""explain, diff and bisect on one bundle of all three formats: the same layers are found in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.exporter.quantize.tflite_network import TfliteNetwork
from edgeml.runtime.bundle import open_bundle
from tests.unit.test_layers import convolutions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("formats")
    (place / "net.onnx").write_bytes(convolutions())
    np.savez(place / "x.npz", x=np.random.default_rng(5).normal(size=(64, 3, 8, 8)).astype(np.float32))
    options = ["--precision", "fp32,int8", "--calib", "x.npz", "--max-drop", "20", "-o", "."]
    edgeml(place, "export", "net.onnx", "--to", "onnx,tflite,coreml", *options)
    return place


def edgeml(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "edgeml.cli", *arguments]
    environment = {**os.environ, "EDGEML_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def diff(folder: Path, a: str, b: str) -> dict[str, dict[str, Any]]:
    found = json.loads(edgeml(folder, "diff", a, b, "--json"))
    return {layer["tensor"]: layer for layer in found["layers"]}


@pytest.mark.parametrize("format_", ["tflite", "coreml"])
def test_float_layers_of_another_format_are_found_and_agree(folder: Path, format_: str) -> None:
    layers = diff(folder, "net.onnx", f"net-0.1.0.edgeml:{format_}:fp32")

    assert {"r0", "r1", "r2", "r3", "y"} <= set(layers)
    assert all(layers[name]["snr_db"] > 80 for name in ("r0", "r1", "r2", "r3", "y"))


@pytest.mark.parametrize("format_", ["onnx", "tflite", "coreml"])
def test_int8_layers_of_each_format_are_near_the_source(folder: Path, format_: str) -> None:
    layers = diff(folder, "net.onnx", f"net-0.1.0.edgeml:{format_}:int8")

    assert all(20 < layers[name]["snr_db"] < 80 for name in ("r1", "r2", "r3", "y"))
    assert layers["r1"]["precision"] in {"int8", "uint8"} or format_ == "coreml"


def test_a_bundle_is_explained_artifact_by_artifact(folder: Path) -> None:
    models = json.loads(edgeml(folder, "explain", "net-0.1.0.edgeml", "--json"))["models"]

    assert [model["model"].split(":")[1:] for model in models] == [
        [format_, precision] for format_ in ("onnx", "tflite", "coreml") for precision in ("fp32", "int8")
    ]
    for model in models[1::2]:
        assert model["against"] == f"net-0.1.0.edgeml:{model['model'].split(':')[1]}:fp32"
        assert "int8" in model["precisions"]
        assert 0 < model["quantization_max_abs"] < 0.2


def test_bisect_cuts_the_broken_operator_out_of_a_tflite_file(folder: Path) -> None:
    with open_bundle(folder / "net-0.1.0.edgeml") as bundle:
        artifact = next(a for a in bundle.manifest.artifacts if (a.format, a.precision) == ("tflite", "fp32"))
        data = bundle.blob(artifact.sha256)
    (folder / "good.tflite").write_bytes(data)
    network = TfliteNetwork(data)
    layer = network.layers[2]
    weights = network.read(layer)
    weights[1] *= -1
    network.write(layer, weights)
    (folder / "broken.tflite").write_bytes(bytes(network.model))

    found = json.loads(edgeml(folder, "bisect", "good.tflite", "broken.tflite", "--input", "x.npz", "-o", "piece", "--json"))
    done = subprocess.run([sys.executable, "run.py"], cwd=folder / "piece", capture_output=True, text=True, check=True)

    assert found["found"] is True
    assert [operator["kind"] for operator in found["operators"]] == ["CONV_2D"]
    assert found["output"] == layer.output
    assert (folder / "piece" / "piece.tflite").stat().st_size < len(data)
    assert float(done.stdout.split("signal to noise")[1].split()[0]) == pytest.approx(found["snr_db"], abs=0.1)
