"""What a model's tensors are is read from the tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeml.exporter.contents import contents
from tests.unit.mil_builder import package


def _tflite(tensors: list[tuple[int, list[int], Any]]) -> bytes:
    """A graph of constants (type, shape, buffer) without an operator."""
    import flatbuffers

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, graph.tensors = 3, [schema.BufferT()], []
    for kind, shape, buffer in tensors:
        tensor = schema.TensorT()
        tensor.type, tensor.shape, tensor.buffer, tensor.name = kind, np.array(shape, np.int32), len(model.buffers), b"t"
        model.buffers.append(buffer)
        graph.tensors.append(tensor)
    graph.inputs = graph.outputs = np.zeros(0, np.int32)
    graph.operators, model.subgraphs, model.operatorCodes = [], [graph], []
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _inside(size: int) -> Any:
    buffer = schema.BufferT()
    buffer.data = np.zeros(size, np.uint8)
    return buffer


def _behind(size: int) -> Any:
    buffer = schema.BufferT()
    buffer.offset, buffer.size = 4096, size
    return buffer


@pytest.mark.parametrize("place", [_inside, _behind])
def test_tflite_weights_count_wherever_the_file_keeps_them(place: Any) -> None:
    types = schema.TensorType
    model = _tflite(
        [
            (types.INT8, [10, 9], place(90)),
            (types.FLOAT32, [10], place(40)),
            (types.INT32, [10], place(40)),  # biases and shapes say nothing about precision
            (types.FLOAT32, [1, 1000], schema.BufferT()),  # an activation
        ]
    )
    assert contents("tflite", model) == ("int8+float32", {})


def test_less_than_a_hundredth_of_the_weights_is_not_told() -> None:
    types = schema.TensorType
    assert contents("tflite", _tflite([(types.INT8, [1000], _inside(1000)), (types.FLOAT32, [9], _inside(36))]))[0] == "int8"


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_core_ml_weights_are_what_the_constants_hold(kind: str) -> None:
    weights = np.ones((4, 3), kind)
    model = package(lambda mb, a: mb.cast(x=mb.matmul(x=mb.cast(x=a, dtype="fp16"), y=weights.astype(np.float16)), dtype="fp32")
                    if kind == "float16" else mb.matmul(x=a, y=weights), [np.ones((2, 4), np.float32)])  # fmt: skip
    found, operators = contents("coreml", model)
    assert found == kind
    assert operators["matmul"] == 1


def test_a_core_ml_program_of_casts_alone_has_no_weights() -> None:
    model = package(lambda mb, a: mb.cast(x=mb.cast(x=a, dtype="fp16"), dtype="fp32"), [np.ones((2, 4), np.float32)])
    assert contents("coreml", model)[0] == "no weights"
