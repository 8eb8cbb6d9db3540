"""One dense layer, y = W x + b, in every format: small enough that what rounding does to it can be worked out."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.runtime.backends import Array
from edgeml.wire.manifest import Format
from tests.unit.mil_builder import package


def dense_onnx(weights: Array, bias: Array) -> bytes:
    """x (batch, inputs) -> y (batch, outputs); `weights` are (outputs, inputs)."""
    return onnx_model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        {"w": weights, "b": bias},
        {"x": ["batch", weights.shape[1]]},
        {"y": ["batch", len(weights)]},
    )


def onnx_model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    opset: int = 18,
) -> bytes:
    """Float inputs and outputs by name and shape."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return bytes(proto.SerializeToString(deterministic=True))


def dense_tflite(weights: Array, bias: Array) -> bytes:
    """x (1, inputs) -> y (1, outputs); `weights` are (outputs, inputs)."""
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    flatbuffers: Any = importlib.import_module("flatbuffers")
    layer = schema.OperatorT()
    layer.opcodeIndex, layer.inputs, layer.outputs = 0, [0, 1, 2], [3]
    layer.builtinOptionsType, layer.builtinOptions = (
        schema.BuiltinOptions.FullyConnectedOptions,
        schema.FullyConnectedOptionsT(),
    )
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    graph = schema.SubGraphT()
    shapes = {"x": (1, weights.shape[1]), "w": weights.shape, "b": bias.shape, "y": (1, len(weights))}
    graph.tensors = [_tensor(schema, name, shape, "xwby".index(name) % 3) for name, shape in shapes.items()]
    graph.inputs, graph.outputs, graph.operators = [0], [3], [layer]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [_buffer(schema, data) for data in (b"", weights.tobytes(), bias.tobytes())]
    builder = flatbuffers.Builder(1 << 14)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def dense_coreml(weights: Array, bias: Array) -> bytes:
    """x0 (1, inputs) -> (1, outputs); `weights` are (outputs, inputs)."""
    return package(lambda mb, x: mb.linear(x=x, weight=weights, bias=bias), [np.zeros((1, weights.shape[1]), np.float32)])


def input_of(format_: Format) -> str:
    """What the dense layer's input is called."""
    return "x0" if format_ == "coreml" else "x"


def _tensor(schema: Any, name: str, shape: tuple[int, ...], buffer: int) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer, tensor.type = name.encode(), list(shape), buffer, schema.TensorType.FLOAT32
    return tensor


def _buffer(schema: Any, data: bytes) -> Any:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8) if data else None
    return buffer
