"""`edgeml export` on every kind of source, end to end: what is written, what it says, how it exits."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.runtime import load
from edgeml.runtime.bundle import open_bundle
from tests.system import export_sources

pytestmark = pytest.mark.slow

SOURCES = [
    "three.keras", "saved", "two.h5", "nets.py:make", "nets.py:two", "any.pt2", "one.pt2", "net.onnx", "three.tflite",
    "rows.py:network",
]  # fmt: skip


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_sources.build(tmp_path_factory.mktemp("sources"))


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeml.cli", "export", *arguments]
    told = {"COLUMNS": "200", "EDGEML_CACHE": str(folder / "cache"), **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **told})


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


@pytest.mark.parametrize("source", ["nets.py:make", "two.h5", "saved", "net.onnx"])
def test_the_same_command_elsewhere_and_later_gives_the_same_bytes(
    sources: Path, exported: Callable[[str], Path], tmp_path: Path, source: str
) -> None:
    place, name = tmp_path / "elsewhere" / "deeper", source.partition(":")[0]
    place.mkdir(parents=True)
    (shutil.copytree if (sources / name).is_dir() else shutil.copy)(sources / name, place / name)
    first = next(exported(source).glob("*.edgeml"))
    for out, option in (("afresh", ["--no-cache"]), ("kept", [])):
        folder = place if out == "afresh" else sources
        done = run(folder, source, "--to", "onnx,tflite,coreml", "-o", str(tmp_path / out), *option)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("from the cache" in done.stdout) == (out == "kept")
        assert time.time() - first.stat().st_mtime > 2, "the clock of zip archives has not moved"
        assert (tmp_path / out / first.name).read_bytes() == first.read_bytes()


def test_inputs_of_two_dtypes_and_two_outputs_keep_their_names_and_dtypes(exported: Callable[[str], Path]) -> None:
    with open_bundle(next(exported("nets.py:two").glob("*.edgeml"))) as bundle:
        signature = bundle.manifest.signature
    assert [(spec.name, spec.dtype, spec.shape) for spec in signature.inputs] == [
        ("tokens", "int64", ("batch", 5)),
        ("extra", "float32", ("batch", 3)),
    ]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("scores", ("batch", 16)), ("pooled", ("batch", 64))]


def test_a_change_that_no_fingerprint_sees_is_converted_anew(sources: Path, tmp_path: Path) -> None:
    for gain in ("2.0", "3.0"):
        (sources / "gain.txt").write_text(gain)
        done = run(sources, "nets.py:tuned", "--to", "onnx", "-o", str(tmp_path / gain))
        assert done.returncode == 0, done.stdout + done.stderr
        with load(next((tmp_path / gain).glob("*.edgeml"))) as model:
            assert model.run({"x": np.ones((1, 4), np.float32)}).outputs["output"].tolist() == [[float(gain)] * 4]


def test_a_free_axis_takes_other_sizes_on_the_device(sources: Path, tmp_path: Path) -> None:
    export_sources.write_samples(sources)
    done = run(sources, "nets.py:frames", "--to", "onnx", "--eval", "rows.npz", "-o", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (artifact,) = report_of(tmp_path)["artifacts"]
    assert artifact["notes"] == ["also run at another size of its named axes: 'x' (16, 6)"]
    with load(next(tmp_path.glob("*.edgeml"))) as model:
        assert model.run({"x": np.ones((1, 11, 6), np.float32)}).outputs["each"].shape == (1, 11, 4)


def test_the_chosen_signature_is_exported(sources: Path, tmp_path: Path) -> None:
    done = run(sources, "signed", "--signature", "doubled", "--to", "onnx", "-o", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    weight = np.array([[0.5 * row - 0.01 * column for column in range(512)] for row in range(4)], np.float32)
    with load(next(tmp_path.glob("*.edgeml"))) as model:
        got = model.run({"x": np.ones((1, 4), np.float32)}).outputs["y"]
    assert got[0] == pytest.approx(2 * weight.sum(0), abs=1e-4)


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


def test_trees_are_packed_as_onnx_and_named_elsewhere(sources: Path, tmp_path: Path) -> None:
    done = run(sources, "rows.py:tree", "--to", "onnx,tflite", "-o", str(tmp_path))
    found = {artifact["format"]: artifact for artifact in report_of(tmp_path)["artifacts"]}
    assert done.returncode == 5
    assert found["onnx"]["status"] == "pass"
    assert "ONNX only, because DecisionTreeClassifier is made of trees" in found["tflite"]["error"]


def test_a_format_that_fails_leaves_the_others(sources: Path, tmp_path: Path) -> None:
    done = run(sources, "nets.py:no_coreml", "--to", "onnx,coreml", "-o", str(tmp_path))
    statuses = {artifact["format"]: artifact["status"] for artifact in report_of(tmp_path)["artifacts"]}
    assert done.returncode == 5
    assert statuses == {"onnx": "pass", "coreml": "fail"}
    with open_bundle(next(tmp_path.glob("*.edgeml"))) as bundle:
        assert [artifact.format for artifact in bundle.manifest.artifacts] == ["onnx"]


BAD = {
    "no file": (["nowhere.h5"], 2, "no file"),
    "several signatures": (["signed"], 2, "'signed' has several signatures: doubled, once; choose one with --signature NAME"),
    "no such signature": (
        ["signed", "--signature", "train"],
        2,
        "no signature 'train': expected one of its own, got doubled, once",
    ),
    "a free axis without samples": (["nets.py:frames"], 2, "input 'x' has free axes 'frames'; give samples with --eval"),
    "a state that is none": (["nets.py:step", "--state", "h=scores"], 2, "--state h=scores: one is not the other"),
    "Lambda without trust": (["lambda.h5"], 2, "layer 'doubled' is a Lambda"),
    "NaN weights in h5": (["nan.h5"], 2, "'dense/kernel:0' holds NaN"),
    "NaN weights in keras": (["nan.keras"], 2, "kernel' holds NaN or infinity in 432 of 432 values"),
    "NaN weights in SavedModel": (["nan_saved"], 2, "holds NaN or infinity in 432 of 432 values"),
    "NaN weights in onnx": (["nan.onnx"], 2, "holds NaN or infinity"),
    "NaN weights in pt2": (["nan.pt2"], 2, "weight' holds NaN or infinity in 1 of 1280 values"),
    "NaN weights in TorchScript": (
        ["nan.pt", "--trust", "--calib", "labels.npz"],
        2,
        "weight' holds NaN or infinity in 1 of 1280 values",
    ),
    "weights alone": (["weights.pth", "--trust"], 5, "holds weights alone (9 tensors, a state_dict), not a module; write"),
    "weights alone, old": (["old.pth", "--trust"], 5, "holds weights alone (9 tensors, a state_dict), not a module; write"),
    "an input without samples": (["nets.py:two", "--calib", "one_input.npz"], 2, "no array for input 'extra'"),
    "floats for integers": (["nets.py:two", "--calib", "floats.npz"], 2, "expected int64, got float32; round it yourself"),
    "NaN weights in torch": (["nets.py:nan"], 2, "weight 'weight' holds NaN or infinity in 1 of 8 values"),
    "factory that raises": (["nets.py:raises"], 2, "no weights here"),
    "factory of the wrong thing": (["nets.py:wrong"], 2, "expected a torch.nn.Module or a scikit-learn estimator, got dict"),
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
    "truncated SavedModel": (["cut_saved"], 2, "'cut_saved' cannot be loaded"),
    "truncated variables": (["cut_variables"], 2, "'cut_variables' cannot be loaded"),
    "truncated pt2": (["cut.pt2"], 2, "truncated or damaged"),
    "truncated TorchScript": (["cut.pt", "--trust"], 2, "truncated or damaged"),
    "damaged keras": (["hurt.keras"], 2, "'hurt.keras' cannot be loaded"),
    "damaged pt2": (["hurt.pt2"], 2, "'hurt.pt2' cannot be loaded"),
    "damaged TorchScript": (["hurt.pt", "--trust"], 2, "'hurt.pt' cannot be loaded"),
    "a folder that takes no files": (["net.onnx", "--to", "onnx", "-o", "/proc/edgeml"], 6, "give another -o DIR"),
    "truncated keras": (["cut.keras"], 2, "truncated or damaged"),
    "time limit": (["net.onnx", "--to", "onnx", "--time-limit", "0.01"], 6, "did not finish in 0.01 s"),
}


@pytest.fixture(scope="session")
def bad_inputs(sources: Path) -> Path:
    zeros = np.zeros((8, 1, 8, 8), np.float32)
    np.savez(sources / "wrong_shape.npz", x=zeros[..., :7])
    np.savez(sources / "text.npz", x=np.array(["a", "b"]))
    np.savez(sources / "labels.npz", x=zeros, y=np.arange(8) + 100)
    np.savez(sources / "one_input.npz", tokens=np.zeros((8, 5), np.int64))
    np.savez(sources / "floats.npz", tokens=np.zeros((8, 5), np.float32), extra=np.zeros((8, 3), np.float32))
    for name in ("two.h5", "net.onnx", "three.keras", "one.pt2", "script.pt"):
        data = (sources / name).read_bytes()
        (sources / f"cut{Path(name).suffix}").write_bytes(data[: len(data) // 2])
    for name in ("three.keras", "one.pt2", "script.pt"):
        export_sources.hurt(sources / name, sources / f"hurt{Path(name).suffix}")
    for name, part in (("cut_saved", "saved_model.pb"), ("cut_variables", "variables/variables.data-00000-of-00001")):
        shutil.copytree(sources / "saved", sources / name)
        data = (sources / name / part).read_bytes()
        (sources / name / part).write_bytes(data[: len(data) // 2])
    return sources


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_one_line_an_exit_code_and_nothing_written(bad_inputs: Path, tmp_path: Path, case: str) -> None:
    arguments, code, message = BAD[case]
    out = tmp_path / "out"
    done = run(bad_inputs, "-o", str(out), *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()


ABSENT = {
    "tensorflow for h5": (["two.h5"], "tensorflow", "keras"),
    "h5py for h5": (["two.h5"], "h5py", "keras"),
    "tf2onnx for SavedModel to ONNX": (["saved", "--to", "onnx"], "tf2onnx", "keras"),
    "torch for a factory": (["nets.py:make"], "torch", "export"),
    "onnxscript for torch to ONNX": (["nets.py:make", "--to", "onnx"], "onnxscript", "export"),
    "litert_torch for torch to TFLite": (["nets.py:make", "--to", "tflite"], "litert_torch", "export"),
    "coremltools for Core ML": (["net.onnx", "--to", "coreml"], "coremltools", "export"),
    "onnxslim for ONNX": (["net.onnx", "--to", "onnx"], "onnxslim", "export"),
    "jinja2 for the report": (["net.onnx", "--to", "onnx"], "jinja2", "export"),
}
WITHOUT = """
import os, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] == os.environ["ABSENT"]:
            return None
        return super().find_spec(fullname, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@pytest.mark.parametrize("case", ABSENT, ids=str)
def test_a_missing_package_names_the_extra_at_once(sources: Path, tmp_path: Path, case: str) -> None:
    arguments, package, extra = ABSENT[case]
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    out = tmp_path / "out"
    done = run(sources, *arguments, "-o", str(out), ABSENT=package, PYTHONPATH=str(tmp_path))
    assert done.returncode == 6, done.stdout + done.stderr
    assert done.stderr == f"error: {package!r} is not installed; install edgeml-toolkit[{extra}]\n"
    assert not out.exists()


@pytest.mark.parametrize(("bytes_", "message"), [(8 << 10, "the work folder cannot be written"), (17_000, "cannot write")])
def test_a_full_disk_leaves_nothing(sources: Path, tmp_path: Path, bytes_: int, message: str) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_}, {bytes_}))"
    limited = f"{limit}; from edgeml.cli import main; main()"
    command = [sys.executable, "-c", limited, "export", "net.onnx", "--to", "onnx", "--no-cache", "-o", str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=sources, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(temporary)}
    )
    assert done.returncode == 6, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert list(temporary.iterdir()) == []
