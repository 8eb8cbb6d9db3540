"""One dense layer, y = W x + b, in every format: small enough that what rounding does to it can be worked out."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.runtime.backends import Array
from edgeml.wire.manifest import Format
from tests.unit.bundles import tflite_buffer, tflite_tensor
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
    shapes = {"x": (1, weights.shape[1]), "w": weights.shape, "b": bias.shape, "y": (1, len(weights))}
    return _tflite(shapes, {"w": weights, "b": bias}, [("FULLY_CONNECTED", ["x", "w", "b"], "y")])


def joined_tflite(first: Array, second: Array) -> bytes:
    """x (1, inputs) -> y (1, rows of both): two dense layers without biases, p and q, side by side."""
    shapes = {
        "x": (1, first.shape[1]), "v": first.shape, "w": second.shape, "p": (1, len(first)), "q": (1, len(second)),
        "y": (1, len(first) + len(second)),
    }  # fmt: skip
    operators = [
        ("FULLY_CONNECTED", ["x", "v", ""], "p"), ("FULLY_CONNECTED", ["x", "w", ""], "q"), ("CONCATENATION", ["p", "q"], "y"),
    ]  # fmt: skip
    return _tflite(shapes, {"v": first, "w": second}, operators)


def _tflite(
    shapes: dict[str, tuple[int, ...]], constants: dict[str, Array], operators: list[tuple[str, list[str], str]]
) -> bytes:
    """A graph from the first of `shapes` to the last; an input called "" is left out."""
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    flatbuffers: Any = importlib.import_module("flatbuffers")
    names, held, kinds = list(shapes), list(constants), list(dict.fromkeys(kind for kind, _, _ in operators))
    graph = schema.SubGraphT()
    graph.tensors = [
        tflite_tensor(schema, name, list(shape), held.index(name) + 1 if name in held else 0) for name, shape in shapes.items()
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [len(names) - 1], []
    for kind, inputs, output in operators:
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.outputs = kinds.index(kind), [names.index(output)]
        operator.inputs = [names.index(name) if name else -1 for name in inputs]
        form = {"FULLY_CONNECTED": "FullyConnectedOptions", "CONCATENATION": "ConcatenationOptions"}[kind]
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, form)
        operator.builtinOptions = getattr(schema, f"{form}T")()
        if kind == "CONCATENATION":
            operator.builtinOptions.axis = 1
        graph.operators.append(operator)
    model = schema.ModelT()
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes = [_code(schema, kind) for kind in kinds]
    model.buffers = [tflite_buffer(schema, data) for data in (b"", *(values.tobytes() for values in constants.values()))]
    builder = flatbuffers.Builder(1 << 14)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _code(schema: Any, kind: str) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
    code.version = 1
    return code


def dense_coreml(weights: Array, bias: Array) -> bytes:
    """x0 (1, inputs) -> (1, outputs); `weights` are (outputs, inputs)."""
    return package(lambda mb, x: mb.linear(x=x, weight=weights, bias=bias), [np.zeros((1, weights.shape[1]), np.float32)])


def input_of(format_: Format) -> str:
    """What the dense layer's input is called."""
    return "x0" if format_ == "coreml" else "x"
