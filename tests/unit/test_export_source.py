"""What a path is: by content first, by name second; hostile files are refused before anything is allocated."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.exporter.source import SourceRef, locate
from edgeml.exporter.source import onnx as onnx_source
from edgeml.exporter.source.model import identity, stack_ones
from edgeml.wire.errors import EdgemlError, ModelError
from edgeml.wire.manifest import Signature, TensorSpec


def _affine(weight: np.ndarray, batch: int | str = "n") -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _saved(tmp_path: Path, proto: onnx.ModelProto) -> SourceRef:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return locate(str(path))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "keras-h5"),
        ("misnamed.bin", b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "keras-h5"),
        ("a.onnx", b"\x08\x0a", "onnx"),
        ("a.bin", b"\x1c\0\0\0TFL3", "tflite"),
    ],
)
def test_content_decides(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert locate(str(tmp_path / name)).kind == kind


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        (["config.json", "metadata.json", "model.weights.h5"], "keras"),
        (["m/models/model.json", "m/data/weights/w"], "torch-pt2"),
        (["m/data.pkl", "m/constants.pkl"], "torchscript"),
    ],
)
def test_zips_are_told_apart_by_what_is_in_them(tmp_path: Path, inside: list[str], kind: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as archive:
        for name in inside:
            archive.writestr(name, "{}")
    assert locate(str(tmp_path / "m.bin"), trust=True).kind == kind


def test_a_factory_is_a_file_and_a_function(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def make(): ...")
    ref = locate(f"{tmp_path}/net.py:make")
    assert (ref.kind, ref.factory) == ("torch", "make")


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("m.h5", b"", ModelError, "is empty"),
        ("m.h5", b"garbage garbage", ModelError, "truncated or not what its name says"),
        ("m.keras", b"PK\x03\x04garbage", ModelError, "truncated or damaged"),
        ("m.pt2", b"garbage", ModelError, "truncated"),
        ("m.pkl", b"\x80\x04garbage", ModelError, "is a pickle"),
        ("m.txt", b"hello", ModelError, "no model known here"),
        ("m.joblib", b"\x80\x04garbage", ModelError, "is a pickle: loading it may run code; pass --trust"),
        ("m.tflite", b"garbage", ModelError, "truncated or not what its name says"),
        ("net.py", b"def make(): ...", ModelError, "name the function"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, kind: type[EdgemlError], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=message) as caught:
        locate(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ModelError, match=r"no file 'nowhere\.h5'"):
        locate("nowhere.h5")


def test_a_folder_is_known_by_its_contents_not_its_place(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "variables").mkdir(parents=True)
        (tmp_path / place / "saved_model.pb").write_bytes(b"graph")
        (tmp_path / place / "variables" / "v").write_bytes(b"weights")
    assert identity(tmp_path / "one") == identity(tmp_path / "two")
    (tmp_path / "two" / "variables" / "v").write_bytes(b"Weights")
    assert identity(tmp_path / "one") != identity(tmp_path / "two")


def test_a_leading_one_everywhere_is_a_batch_of_one() -> None:
    spec = TensorSpec("x", "float32", (1, 4))
    assert stack_ones(Signature((spec,), (spec,))).inputs[0].shape == ("batch", 4)
    state = TensorSpec("state", "float32", (2, 1, 8))
    assert stack_ones(Signature((spec, state), (spec,))).inputs[0].shape == (1, 4)


def test_a_free_first_axis_of_onnx_is_the_batch(tmp_path: Path) -> None:
    model = onnx_source.load(_saved(tmp_path, _affine(np.eye(3, dtype=np.float32))))
    assert model.signature.inputs == (TensorSpec("x", "float32", ("batch", 3)),)
    assert model.any_batch


def test_nan_weights_name_the_tensor(tmp_path: Path) -> None:
    weight = np.eye(3, dtype=np.float32)
    weight[1, 2] = np.nan
    with pytest.raises(ModelError, match="weight 'w' holds NaN or infinity in 1 of 9 values"):
        onnx_source.load(_saved(tmp_path, _affine(weight)))


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
def test_a_truncated_onnx_is_refused(tmp_path: Path, keep: float) -> None:
    data = _affine(np.ones((64, 64), np.float32)).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ModelError):
        onnx_source.load(locate(str(tmp_path / "m.onnx")))


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 36)
    folder = tmp_path / "model"
    folder.mkdir()
    proto = _affine(np.eye(3, dtype=np.float32))
    _point_outside(proto.graph.initializer[0], location)
    with pytest.raises(ModelError, match="tensor 'w' lies outside the model's folder"):
        onnx_source.load(_saved(folder, proto))


def test_external_data_behind_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 36)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").symlink_to(tmp_path / "secret")
    proto = _affine(np.eye(3, dtype=np.float32))
    _point_outside(proto.graph.initializer[0], "weights")
    with pytest.raises(ModelError, match="outside"):
        onnx_source.load(_saved(folder, proto))


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(np.eye(3, dtype="<f4").tobytes())
    proto = _affine(np.zeros((3, 3), np.float32))
    _point_outside(proto.graph.initializer[0], "weights")
    model = onnx_source.load(_saved(tmp_path, proto))
    np.testing.assert_array_equal(numpy_helper.to_array(model.proto.graph.initializer[0]), np.eye(3))


def test_a_tensor_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    proto = _affine(np.eye(3, dtype=np.float32))
    proto.graph.initializer[0].dims[:] = [2**40, 3]
    with pytest.raises(ModelError, match="tensor 'w': expected 13194139533312 bytes, got 36"):
        onnx_source.load(_saved(tmp_path, proto))


def _point_outside(tensor: onnx.TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
