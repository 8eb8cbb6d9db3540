"""`edgeml export` on every kind of source, end to end: what is written, what it says, how it exits."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.runtime.bundle import open_bundle
from tests.system import export_sources

pytestmark = pytest.mark.slow

SOURCES = ["three.keras", "saved", "two.h5", "nets.py:make", "any.pt2", "one.pt2", "net.onnx"]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_sources.build(tmp_path_factory.mktemp("sources"))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeml.cli", "export", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
    )


def report_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.report.json")
    report: dict[str, Any] = json.loads(path.read_text())
    return report


@pytest.fixture(scope="session")
def exported(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that a source was exported to, in all three formats; once for the whole session."""

    @functools.cache
    def folder_of(source: str) -> Path:
        folder = tmp_path_factory.mktemp("exported")
        done = run(sources, source, "--to", "onnx,tflite,coreml", "-o", str(folder))
        assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return folder_of


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_reaches_every_format(exported: Callable[[str], Path], source: str) -> None:
    report = report_of(exported(source))
    assert [(a["format"], a["status"]) for a in report["artifacts"]] == [(f, "pass") for f in ("onnx", "tflite", "coreml")]
    assert all(artifact["parity"]["max_abs"] <= 1e-4 for artifact in report["artifacts"])
    assert [artifact["parity"]["where"] for artifact in report["artifacts"]] == ["verified", "verified", "emulated"]
    (bundle,) = exported(source).glob("*.edgeml")
    with open_bundle(bundle) as opened:
        assert len(opened.manifest.artifacts) == 3
        assert opened.digest == report["digest"]


def test_the_signature_keeps_the_names_and_order_of_the_source(exported: Callable[[str], Path]) -> None:
    with open_bundle(next(exported("two.h5").glob("*.edgeml"))) as bundle:
        signature = bundle.manifest.signature
        bound = [[binding.name for binding in artifact.outputs] for artifact in bundle.manifest.artifacts]
    assert [spec.name for spec in signature.inputs] == ["left", "right"]
    assert [spec.name for spec in signature.outputs] == ["one", "two"]
    assert bound == [["one", "two"]] * 3


@pytest.mark.parametrize("source", ["two.h5", "nets.py:make"])
def test_the_same_command_elsewhere_and_later_gives_the_same_bytes(
    sources: Path, exported: Callable[[str], Path], tmp_path: Path, source: str
) -> None:
    place = tmp_path / "elsewhere" / "deeper"
    place.mkdir(parents=True)
    shutil.copy(sources / source.partition(":")[0], place)
    first = next(exported(source).glob("*.edgeml"))
    done = run(place, source, "--to", "onnx,tflite,coreml", "-o", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "out" / first.name).read_bytes() == first.read_bytes()


def test_json_is_the_only_output(sources: Path, tmp_path: Path) -> None:
    done = run(sources, "net.onnx", "--to", "onnx", "-o", str(tmp_path), "--json")
    assert json.loads(done.stdout)["verdict"] == "pass"
    assert done.stdout == next(tmp_path.glob("*.report.json")).read_text()


def test_without_evaluation_samples_the_report_says_what_judged(sources: Path, tmp_path: Path) -> None:
    samples = tmp_path / "calib.npz"
    np.savez(samples, x=np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32))
    assert run(sources, "net.onnx", "--to", "onnx", "--calib", str(samples), "-o", str(tmp_path / "out")).returncode == 0
    assert "calibration samples" in " ".join(report_of(tmp_path / "out")["notes"])


def test_an_operator_no_format_has_is_named_and_nothing_is_packed(sources: Path, tmp_path: Path) -> None:
    done = run(sources, "nets.py:odd", "--to", "onnx,tflite,coreml", "-o", str(tmp_path))
    errors = {artifact["format"]: artifact["error"] for artifact in report_of(tmp_path)["artifacts"]}
    assert done.returncode == 5
    assert all(error and "bessel_j0" in error for error in errors.values())
    assert not list(tmp_path.glob("*.edgeml"))


def test_a_format_that_fails_leaves_the_others(sources: Path, tmp_path: Path) -> None:
    done = run(sources, "nets.py:no_coreml", "--to", "onnx,coreml", "-o", str(tmp_path))
    statuses = {artifact["format"]: artifact["status"] for artifact in report_of(tmp_path)["artifacts"]}
    assert done.returncode == 5
    assert statuses == {"onnx": "pass", "coreml": "fail"}
    with open_bundle(next(tmp_path.glob("*.edgeml"))) as bundle:
        assert [artifact.format for artifact in bundle.manifest.artifacts] == ["onnx"]


BAD = {
    "no file": (["nowhere.h5"], 2, "no file"),
    "Lambda without trust": (["lambda.h5"], 2, "layer 'doubled' is a Lambda"),
    "NaN weights in h5": (["nan.h5"], 2, "'dense/kernel:0' holds NaN"),
    "NaN weights in torch": (["nets.py:nan"], 2, "weight 'weight' holds NaN or infinity in 1 of 8 values"),
    "factory that raises": (["nets.py:raises"], 2, "no weights here"),
    "factory of the wrong thing": (["nets.py:wrong"], 2, "expected a torch.nn.Module, got dict"),
    "no such factory": (["nets.py:nothing"], 2, "has no function 'nothing'"),
    "no shapes": (["nets.py:shapeless"], 2, "return (module, example_inputs)"),
    "pickle without trust": (["weights.pth"], 2, "is a pickle"),
    "TorchScript without trust": (["script.pt"], 2, "pass --trust"),
    "int8 without calibration": (["net.onnx", "--precision", "int8"], 2, "--calib"),
    "samples of wrong shape": (["net.onnx", "--calib", "wrong_shape.npz"], 2, "does not fit input"),
    "samples of wrong dtype": (["net.onnx", "--eval", "text.npz"], 2, "expected numbers"),
    "labels beyond the classes": (["net.onnx", "--eval", "labels.npz", "--task", "classify"], 2, "classes"),
    "truncated h5": (["cut.h5"], 2, "'cut.h5' cannot be loaded"),
    "truncated onnx": (["cut.onnx"], 2, "truncated or damaged"),
    "truncated keras": (["cut.keras"], 2, "truncated or damaged"),
    "time limit": (["net.onnx", "--to", "onnx", "--time-limit", "0.01"], 6, "did not finish in 0.01 s"),
}


@pytest.fixture(scope="session")
def bad_inputs(sources: Path) -> Path:
    zeros = np.zeros((8, 1, 8, 8), np.float32)
    np.savez(sources / "wrong_shape.npz", x=zeros[..., :7])
    np.savez(sources / "text.npz", x=np.array(["a", "b"]))
    np.savez(sources / "labels.npz", x=zeros, y=np.arange(8) + 100)
    for name in ("two.h5", "net.onnx", "three.keras"):
        data = (sources / name).read_bytes()
        (sources / f"cut{Path(name).suffix}").write_bytes(data[: len(data) // 2])
    return sources


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_one_line_an_exit_code_and_nothing_written(bad_inputs: Path, tmp_path: Path, case: str) -> None:
    arguments, code, message = BAD[case]
    out = tmp_path / "out"
    done = run(bad_inputs, *arguments, "-o", str(out))
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()
