from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeml.runtime.backends import EngineOptions, opener
from edgeml.runtime.backends import onnx as onnx_backend
from edgeml.runtime.backends.coreml import open_coreml, unpack
from edgeml.runtime.backends.onnx import open_onnx
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.runtime.model import load
from edgeml.wire.errors import EngineError, MissingExtraError, ModelError, UnsupportedError
from tests.unit.bundles import WEIGHTS, make_bundle, onnx_int8_model, onnx_model, tflite_model

OPTIONS = EngineOptions()


def test_tensors_are_named_as_the_engine_names_them() -> None:
    for backend, names in (
        (open_onnx(onnx_model(), OPTIONS), ("input.1", "score_0")),
        (open_tflite(tflite_model(), OPTIONS), ("serving_default_x:0", "StatefulPartitionedCall:0")),
    ):
        assert (backend.inputs[0].name, backend.outputs[0].name) == names
        assert backend.inputs[0].dtype == np.float32
    assert open_onnx(onnx_model(), OPTIONS).inputs[0].shape == (None, 4)


def test_weights_in_another_file_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that reads a file beside the process: the bytes are there, and must not be taken."""
    (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
    monkeypatch.chdir(tmp_path)
    model = onnx.load_from_string(onnx_model())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    with pytest.raises((EngineError, ModelError)):
        open_onnx(model.SerializeToString(), OPTIONS)


def test_an_unknown_operator_is_named() -> None:
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    with pytest.raises((EngineError, ModelError), match="Frobnicate"):
        open_onnx(helper.make_model(graph, ir_version=8).SerializeToString(), OPTIONS)


def test_text_tensors_are_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, [1])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [1])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(UnsupportedError, match="tensor 'x' is a"):
        open_onnx(model.SerializeToString(), OPTIONS)


def avoids_saturation(model: bytes, kernels: str = "default") -> bool:
    backend = open_onnx(model, EngineOptions(kernels=kernels))
    assert isinstance(backend, onnx_backend.OnnxBackend)
    try:
        return bool(backend._session.get_session_options().get_session_config_entry("session.x64quantprecision") == "1")
    except RuntimeError:  # the engine's way to say that it was not set
        return False


@pytest.mark.parametrize(
    ("saturates", "kernels", "avoided"),
    [(True, "default", True), (True, "stock", False), (False, "default", False), (False, "exact", True)],
)
def test_int8_kernels_that_saturate_are_avoided_where_this_cpu_has_them(
    monkeypatch: pytest.MonkeyPatch, *, saturates: bool, kernels: str, avoided: bool
) -> None:
    monkeypatch.setattr(onnx_backend, "saturates_int8", lambda: saturates)
    assert avoids_saturation(onnx_int8_model(), kernels) == avoided


def test_float_models_keep_the_fast_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_backend, "saturates_int8", lambda: True)
    assert not avoids_saturation(onnx_model())


def test_engines_say_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    open_onnx(onnx_model(), OPTIONS)
    open_tflite(tflite_model(), OPTIONS)
    with pytest.raises(ModelError):
        open_tflite(tflite_model()[:100], OPTIONS)
    assert capfd.readouterr().err == ""


def test_an_engine_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = make_bundle(tmp_path)
    for module in (
        "onnxruntime",
        "ai_edge_litert",
        "ai_edge_litert.interpreter",
        "tflite_runtime",
        "tflite_runtime.interpreter",
    ):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"install edgeml-toolkit\[onnx\]"):
        open_onnx(b"", OPTIONS)
    with pytest.raises(MissingExtraError, match=r"install edgeml-toolkit\[tflite\]"):
        open_tflite(b"", OPTIONS)
    with pytest.raises(UnsupportedError, match=r"no engine for onnx is installed.*install edgeml-toolkit\[onnx\]"):
        load(path)


def test_core_ml_elsewhere_says_why_and_the_way_out() -> None:
    with pytest.raises(UnsupportedError, match=r"do not run on linux; use the bundle's ONNX or TFLite artifact"):
        open_coreml(b"", OPTIONS)
    assert opener("coreml") is open_coreml


def packed(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "a\\..\\outside"])
def test_a_model_package_cannot_write_outside_itself(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="outside itself"):
        unpack(packed(name), tmp_path / "inner")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_model_package_is_unpacked_whole(tmp_path: Path) -> None:
    unpack(packed("Manifest.json", "Data/com.apple.CoreML/model.mlmodel"), tmp_path / "m.mlpackage")
    assert (tmp_path / "m.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel").read_bytes() == b"x"


def test_an_encoder_in_float16_does_not_kill_the_process(tmp_path: Path) -> None:
    """In a process of its own: without the backend's exception ONNX Runtime 1.32 ends in SIGSEGV while it loads this."""
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        agraph (float16[n, 3, 2] x, float16[2, 2] weights, float16[2] scale) => (float16[3, n, 2] y) {
          normal = LayerNormalization(x, scale)
          turned = Transpose<perm = [1, 0, 2]>(normal)
          y = MatMul(turned, weights)
        }""")
    for name, values in (("weights", [[1, 2], [3, 4]]), ("scale", [1, 1])):  # the parser knows no literals of float16
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.float16), name))
    del model.graph.input[1:]
    onnx.save(model, tmp_path / "model.onnx")
    code = (
        "import sys; import numpy as np; from edgeml.runtime.backends import EngineOptions, opener;"
        "backend = opener('onnx')(open(sys.argv[1], 'rb').read(), EngineOptions());"
        "print(backend.run([np.array([[[0, 1], [1, 0], [0, 2]]], np.float16)])[0].reshape(-1).tolist())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.onnx")], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    # each row (a, b) becomes (-1, 1) or (1, -1), up to its epsilon: times the weights that is (2, 2) or (-2, -2)
    assert np.allclose(json.loads(ended.stdout), [2, 2, -2, -2, 2, 2], atol=0.01)
