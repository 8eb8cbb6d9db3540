from __future__ import annotations

import random
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.runtime.inspection import TensorFacts, inspect_model, read_model_file
from edgeml.wire.errors import ModelError
from tests.unit.bundles import onnx_int8_model, onnx_model, tflite_model


def test_an_onnx_model_is_described_from_its_own_bytes() -> None:
    facts = inspect_model(onnx_model())
    assert facts.inputs == (TensorFacts("input.1", "float32", ("n", 4)),)
    assert facts.outputs == (TensorFacts("score_0", "float32", ("n", 3)),)
    assert facts.weights == {"float32": 4 * 3 + 3}
    assert facts.ops == {"Gemm": 1}


def test_precision_is_read_from_the_tensors() -> None:
    """13 of 17 stored elements: 12 weights, 3 offsets, 1 scale in float32, 1 zero point in int8."""
    facts = inspect_model(onnx_int8_model())
    assert facts.weights == {"float32": 16, "int8": 1}
    assert facts.precision == "float32 94.1 %, int8 5.88 %"


def test_a_tflite_model_is_described_without_its_engine() -> None:
    facts = inspect_model(tflite_model())
    assert facts.inputs == (TensorFacts("serving_default_x:0", "float32", (1, 4)),)
    assert facts.outputs == (TensorFacts("StatefulPartitionedCall:0", "float32", (1, 3)),)
    assert (facts.weights, facts.ops) == ({"float32": 15}, {"FULLY_CONNECTED": 1})


def test_operators_inside_branches_and_constants_count() -> None:
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros((2, 5), np.float16)))
    out = [helper.make_tensor_value_info("c", TensorProto.FLOAT16, [2, 5])]
    branch = helper.make_graph([constant], "branch", [], out)
    node = helper.make_node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2, 5])],
    )
    facts = inspect_model(helper.make_model(graph).SerializeToString())
    assert facts.ops == {"Constant": 2, "If": 1}
    assert facts.weights == {"float16": 20}
    assert facts.inputs == (TensorFacts("go", "bool", ()),)


def test_weights_in_other_files_are_told() -> None:
    model = onnx.load_from_string(onnx_model())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    assert inspect_model(model.SerializeToString()).notes == ("weights are kept in other files: a session refuses it",)


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"garbage" * 99, b"PK\x03\x04garbage", b"\x1c\0\0\0TFL3", b"\xff\xff\xff\x7fTFL3"]
)
def test_what_is_no_model_is_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        inspect_model(data)


@pytest.mark.parametrize("model", [onnx_model(), tflite_model()], ids=["onnx", "tflite"])
def test_damage_is_a_model_error_or_another_description_never_a_crash(model: bytes) -> None:
    chance = random.Random(7)
    for _ in range(500):
        data = bytearray(model[: chance.randrange(len(model))] if chance.random() < 0.3 else model)
        for _ in range(chance.randint(1, 4)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            inspect_model(bytes(data))
        except ModelError:
            continue


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither a bundle nor an \.mlpackage"):
        read_model_file(tmp_path)
    with pytest.raises(ModelError, match="cannot read"):
        read_model_file(tmp_path / "missing.onnx")


def test_a_core_ml_package_is_described_without_core_ml(tmp_path: Path) -> None:
    """A specification written field by field: one input (1, 2), one operation `relu`, one float16 constant of 6 elements."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([*varint(number << 3 | 2), *varint(len(data))]) + data

    def number(key: int, value: int) -> bytes:
        return bytes([*varint(key << 3), *varint(value)])

    def varint(value: int) -> list[int]:
        out = []
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return [*out, value]

    def feature(name: bytes) -> bytes:
        array = field(1, bytes([1, 2])) + number(2, 65568)
        return field(1, name) + field(3, field(5, array))

    def dimension(size: int) -> bytes:
        return field(3, field(1, number(1, size)))

    tensor_type = field(1, number(1, 10) + dimension(2) + dimension(3))
    constant = field(1, b"const") + field(3, field(1, b"w") + field(2, tensor_type))
    block = field(3, constant) + field(3, field(1, b"relu"))
    function = field(3, field(1, b"CoreML5") + field(2, block))
    program = field(2, field(1, b"main") + field(2, function))
    specification = field(2, field(1, feature(b"image")) + field(10, feature(b"scores"))) + field(502, program)
    package = tmp_path / "m.mlpackage" / "Data" / "com.apple.CoreML"
    package.mkdir(parents=True)
    (package / "model.mlmodel").write_bytes(specification)
    facts = inspect_model(read_model_file(tmp_path / "m.mlpackage"))
    assert facts.format == "coreml"
    assert facts.inputs == (TensorFacts("image", "float32", (1, 2)),)
    assert facts.outputs == (TensorFacts("scores", "float32", (1, 2)),)
    assert (facts.ops, facts.weights) == ({"const": 1, "relu": 1}, {"float16": 6})
    with zipfile.ZipFile(tmp_path / "packed", "w") as packed:
        packed.writestr("Data/com.apple.CoreML/model.mlmodel", specification)
    assert inspect_model((tmp_path / "packed").read_bytes()).ops == facts.ops


@pytest.mark.published
def test_the_published_fp32_keyword_spotter_is_mostly_int8(models_dir: Path) -> None:
    """Its name says fp32; 18,944 of its 22,508 stored elements are int8 (counted by the publisher's own tool)."""
    facts = inspect_model((models_dir / "kws_dscnn_ref_fp32.tflite").read_bytes())
    assert facts.weights["int8"] == 18_944
    assert facts.precision.startswith("int8 8")


@pytest.mark.published
def test_the_published_int8_keyword_spotter_shows_its_scale(models_dir: Path) -> None:
    facts = inspect_model((models_dir / "kws_dscnn_ref_int8.tflite").read_bytes())
    quantization = facts.inputs[0].quantization
    assert quantization is not None
    assert quantization.scale == pytest.approx(0.584703, abs=1e-6)
    assert quantization.zero_point == 83
