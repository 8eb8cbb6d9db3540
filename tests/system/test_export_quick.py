"""The promises of `edgeml export` that are cheap to see: the same bytes again, slow steps kept, help at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = relu(x W), 4 to 3."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) / 10 - 0.5
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Relu", ["z"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "first" / "m.onnx"
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    np.savez(path.parent / "samples.npz", x=np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32))
    return path


def export(folder: Path, cache: Path, *more: str) -> str:
    command = [
        sys.executable,
        "-m",
        "edgeml.cli",
        "export",
        "m.onnx",
        "--to",
        "onnx",
        "--calib",
        "samples.npz",
        "-o",
        "out",
        *more,
    ]
    environment = {**os.environ, "EDGEML_CACHE": str(cache)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_another_folder_another_time_or_the_cache_change_no_byte(model: Path, tmp_path: Path) -> None:
    other, cache = tmp_path / "second" / "deeper", tmp_path / "cache"
    other.mkdir(parents=True)
    for path in model.parent.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    said = export(model.parent, cache)
    assert "from the cache" not in said
    assert "bundle  out/m-0.1.0.edgeml\n" in said
    first = (model.parent / "out" / "m-0.1.0.edgeml").read_bytes()
    later = time.time() + 1_000_000  # zip archives count in steps of two seconds
    for path in other.iterdir():
        os.utime(path, (later, later))
    assert "from the cache" not in export(other, cache, "--no-cache")
    assert (other / "out" / "m-0.1.0.edgeml").read_bytes() == first
    again = export(other, cache)
    assert "from the cache" in again
    assert "bundle  out/m-0.1.0.edgeml, in place of the one that was there" in again
    assert (other / "out" / "m-0.1.0.edgeml").read_bytes() == first


def test_help_imports_no_framework() -> None:
    """Half a second on two cores; a framework would take several."""
    code = "import sys; sys.argv = ['edgeml', 'export', '--help']; import runpy\n"
    code += "try: runpy.run_module('edgeml.cli', run_name='__main__')\n"
    code += (
        "except SystemExit: print(sorted({'numpy', 'torch', 'scipy', 'jinja2', 'onnx'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--no-cache" in done.stdout
    assert done.stderr == "[]\n"
