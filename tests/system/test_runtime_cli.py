"""`edgeml inspect`, `verify`, `run` and `doctor` as a user calls them: exit codes, messages, files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime.bundle import unpack_bundle
from edgeml.wire.manifest import Deferral, Promise
from tests.unit.bundles import FULL, logits, make_bundle, onnx_model, samples


def edgeml(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeml.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("cli"), artifacts=FULL)


def test_verify_proves_every_artifact_here(bundle: Path) -> None:
    done = edgeml("verify", bundle)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("bytes        pass     manifest and 5 blobs")
    assert {line.split()[0] for line in lines[1:4]} == {"onnx:int8", "onnx:fp32", "tflite:fp32"}
    assert all("32 golden samples on" in line for line in lines[1:4])
    assert lines[4] == "pass: toy 1.0.0, 3 of 3 artifacts proved on this machine"


def test_verify_speaks_json(bundle: Path) -> None:
    record = json.loads(edgeml("verify", bundle, "--json").stdout)
    assert (record["status"], record["name"], record["version"]) == ("pass", "toy", "1.0.0")
    assert [line["status"] for line in record["artifacts"]] == ["pass"] * 3


def test_verify_of_a_folder_is_the_same(bundle: Path, tmp_path: Path) -> None:
    unpack_bundle(bundle, tmp_path / "toy")
    assert edgeml("verify", tmp_path / "toy").returncode == 0


def test_verify_names_the_artifact_that_fails_its_golden_vectors(tmp_path: Path) -> None:
    done = edgeml("verify", make_bundle(tmp_path, golden_error=0.5))
    assert done.returncode == 3
    assert "onnx:fp32    fail" in done.stdout
    assert "output 'logits' of golden sample 0 is off" in done.stderr


def test_verify_names_what_is_wrong_after_one_changed_byte(bundle: Path, tmp_path: Path) -> None:
    data = bundle.read_bytes()
    chance = random.Random(3)
    for position in chance.sample(range(len(data)), 3):
        changed = bytearray(data)
        changed[position] ^= 0x10
        (tmp_path / "bad.edgeml").write_bytes(changed)
        done = edgeml("verify", tmp_path / "bad.edgeml")
        assert done.returncode == 3
        assert done.stderr.startswith("error: ")
        assert any(word in done.stderr for word in ("manifest", "blob", "central directory", "packed bundle"))


def test_run_writes_what_the_formula_gives(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=samples(5), y=np.arange(5))
    done = edgeml("run", bundle, "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz", "--artifact", "onnx:fp32")
    assert done.returncode == 0
    assert "5 samples, median" in done.stdout
    with np.load(tmp_path / "out.npz") as out:
        assert np.allclose(out["logits"], logits(samples(5)), atol=1e-5)


def test_run_speaks_json(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=samples(2)[:, None])
    record = json.loads(edgeml("run", bundle, "--input", tmp_path / "in.npz", "--json").stdout)
    best = logits(samples(2)).argmax(axis=1)
    assert [answer["class_index"] for answer in record["samples"]] == best.tolist()
    assert record["artifact"] == "onnx:int8"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((2, 5), np.float32)}, "input 'x': expected float32 (batch, 4), got float32 (5,)"),
        ({"x": np.zeros((2, 4), np.float64)}, "convert it with .astype(numpy.float32)"),
        ({"z": np.zeros((2, 4), np.float32)}, "expected x, got z"),
        ({"x": np.zeros((0, 4), np.float32)}, "at least 1"),
        ({"x": np.array(["a", "b"])}, "expected numbers"),
    ],
    ids=["shape", "dtype", "name", "empty", "text"],
)
def test_run_tells_a_wrong_input_file_what_is_wrong(
    bundle: Path, tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "in.npz", allow_pickle=False, **arrays)
    done = edgeml("run", bundle, "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage"], ids=["empty", "garbage", "broken-zip"])
def test_run_refuses_a_file_that_is_no_npz(bundle: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.npz").write_bytes(content)
    done = edgeml("run", bundle, "--input", tmp_path / "in.npz")
    assert done.returncode == 2
    assert "write it with numpy.savez" in done.stderr


def test_a_pickle_among_the_samples_is_refused(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.array([{"a": 1}, None], dtype=object))
    done = edgeml("run", bundle, "--input", tmp_path / "in.npz")
    assert done.returncode == 2
    assert "pickled objects and text are not read" in done.stderr


def test_inspect_shows_a_bundle_and_a_bare_model(bundle: Path, tmp_path: Path) -> None:
    shown = edgeml("inspect", bundle)
    assert shown.returncode == 0
    assert "x  float32 (batch, 4)" in shown.stdout
    assert "onnx:int8" in shown.stdout
    (tmp_path / "m.onnx").write_bytes(onnx_model())
    bare = edgeml("inspect", tmp_path / "m.onnx")
    assert bare.stdout.splitlines()[0] == f"m.onnx   onnx   {len(onnx_model())} bytes   weights: float32 100 %"
    assert json.loads(edgeml("inspect", tmp_path / "m.onnx", "--json").stdout)["ops"] == {"Gemm": 1}
    assert json.loads(edgeml("inspect", bundle, "--json").stdout)["name"] == "toy"


def test_inspect_says_when_the_cloud_is_asked_and_what_it_is_good_for(tmp_path: Path) -> None:
    promise = Promise(accuracy=0.991, offload=0.013, alone=0.987, ece=0.01, n=450, accuracy_within=(0.973, 1.0))
    shown = edgeml("inspect", make_bundle(tmp_path, deferral=Deferral(1.2, 0.661, promise)))
    said = "cloud   onnx:fp32: asked below 0.661, for 1.3% of answers: 99.1% (97.3 to 100.0) right with it, 98.7% without"
    assert said in shown.stdout.splitlines()


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize(("name", "code"), [("missing.edgeml", 2), ("empty.edgeml", 3), ("folder", 3)])
def test_a_file_that_is_no_bundle_is_told_in_one_line(tmp_path: Path, command: str, name: str, code: int) -> None:
    (tmp_path / "empty.edgeml").touch()
    (tmp_path / "folder").mkdir()
    done = edgeml(command, tmp_path / name)
    assert done.returncode == code
    assert len(done.stderr.strip().splitlines()) == 1


def test_doctor_finds_the_engines_that_the_tests_use() -> None:
    record = json.loads(edgeml("doctor", "--json").stdout)
    found = {finding["what"]: finding for finding in record["findings"]}
    assert record["ready"]
    assert found["engine onnx"]["status"] == found["engine tflite"]["status"] == "ok"
    assert found["engine coreml"]["detail"].startswith("Core ML runs on Apple systems only")
    assert "ready to run bundles" in edgeml("doctor").stdout
