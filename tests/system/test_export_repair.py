"""`edgeml export` of a model that int8 spoils: repaired by leaving its one bad layer float, or refused with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeml.runtime import load
from edgeml.runtime.bundle import open_bundle
from tests.unit import bad_layer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("repair")
    bad_layer.write(place)
    bad_layer.write_outlying(place)
    return place


def export(folder: Path, out: str, *more: str, formats: str = "onnx") -> subprocess.CompletedProcess[str]:
    samples = ["--calib", "calib.npz", "--eval", "eval.npz", "--max-drop", "3"]
    return edgeml(folder, "bad.onnx", "--to", formats, "--precision", "fp32,int8", *samples, "-o", out, *more)


def edgeml(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeml.cli", "export", *arguments]
    environment = {**os.environ, "EDGEML_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def artifact(folder: Path, out: str, format_: str = "onnx") -> dict[str, Any]:
    report = json.loads((folder / out / "bad-0.1.0.report.json").read_text())
    found: dict[str, Any] = next(a for a in report["artifacts"] if (a["format"], a["precision"]) == (format_, "int8"))
    return found


def test_without_a_search_the_budget_is_missed(folder: Path) -> None:
    done = export(folder, "plain", "--repair-time", "0")

    assert done.returncode == 4, done.stdout + done.stderr
    assert artifact(folder, "plain")["repair"] is None


def test_too_little_time_is_refused_and_said(folder: Path) -> None:
    done = export(folder, "hasty", "--repair-time", "1e-9")

    assert done.returncode == 4, done.stdout + done.stderr
    assert "ran out of 1e-09 s" in artifact(folder, "hasty")["error"]
    with open_bundle(folder / "hasty" / "bad-0.1.0.edgeml") as bundle:
        assert [one.precision for one in bundle.manifest.artifacts] == ["fp32"]


def test_the_bad_layer_is_left_float_and_the_same_bytes_come_again(folder: Path) -> None:
    done = export(folder, "out")
    again = export(folder, "again")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "int8 keep 1" in done.stdout
    found = artifact(folder, "out")
    assert [one["name"] for one in found["kept_float"]] == [bad_layer.SPOILED]
    assert found["task"]["upper95"] <= 3.0
    bundles = [folder / out / "bad-0.1.0.edgeml" for out in ("out", "again")]
    assert bundles[0].read_bytes() == bundles[1].read_bytes(), again.stdout
    with open_bundle(bundles[0]) as bundle:
        assert bundle.manifest.artifacts[1].kept_float[0].name == bad_layer.SPOILED
        assert bundle.manifest.artifacts[1].precision_found == "int8+float32"


@pytest.mark.slow
def test_tflite_is_repaired_as_well(folder: Path) -> None:
    done = export(folder, "lite", formats="tflite")

    assert done.returncode == 0, done.stdout + done.stderr
    found = artifact(folder, "lite", "tflite")
    assert 1 <= len(found["kept_float"]) <= 2
    x, labels = bad_layer.samples(300, 3)
    with load(folder / "lite" / "bad-0.1.0.edgeml", format="tflite", precision="int8") as model:
        right = sum(model.run({"x": row[None]}).class_index == label for row, label in zip(x, labels, strict=True))
    assert right / len(labels) > 0.97


@pytest.mark.slow
def test_small_weights_are_repaired_in_every_format(folder: Path) -> None:
    samples = ["--calib", "outlying-calib.npz", "--eval", "outlying-eval.npz", "--max-drop", "3"]
    done = edgeml(
        folder, "outlying.onnx", "--to", "onnx,tflite,coreml", "--precision", "int8-weights", *samples, "-o", "weights"
    )

    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "weights" / "outlying-0.1.0.report.json").read_text())
    assert [(a["format"], len(a["kept_float"])) for a in report["artifacts"]] == [("onnx", 1), ("tflite", 1), ("coreml", 1)]


def test_a_function_of_the_users_judges_and_bad_ones_end_the_export_before_the_work(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "def right(outputs, labels): return outputs['y'].argmax(axis=1) == labels\n"
        "def broken(outputs, labels): return outputs['boxes']\n"
    )
    done = export(folder, "own", "--metric", "mine.py:right")
    refused = export(folder, "refused", "--metric", "mine.py:broken")

    assert done.returncode == 0, done.stdout + done.stderr
    assert artifact(folder, "own")["task"]["metric"] == "right"
    assert (refused.returncode, "--metric mine.py:broken raised KeyError: 'boxes'" in refused.stderr) == (2, True)
    assert "convert" not in refused.stdout
    assert not (folder / "refused").exists()
