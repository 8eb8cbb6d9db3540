"""A small convolution net, the same numbers as ONNX and as TFLite, in a bundle: what the runtime's benchmark runs.

x (batch, 16, 16, 1) -> 3x3 convolution, 8 channels, ReLU, twice -> dense, 10 classes: 187,000 multiplications.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import write_bundle
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.manifest import (
    SCHEMA,
    Artifact,
    Binding,
    Format,
    Manifest,
    Parity,
    PostProcessing,
    Reference,
    Requirement,
    Signature,
    SourceFile,
    TensorSpec,
)
from edgeml.wire.sketches import Histogram
from tests.unit.bundles import tflite_buffer, tflite_tensor

SIDE: Final = 16
CHANNELS: Final = 8
CLASSES: Final = 10
EDGES: Final = tuple(i / 20 for i in range(1, 20))
DECILES: Final = tuple(NormalDist().inv_cdf(i / 10) for i in range(1, 10))  # of what `sample` draws from


def sample() -> Array:
    return np.random.default_rng(1).normal(size=(1, SIDE, SIDE, 1)).astype(np.float32)


def write_conv_bundle(folder: Path) -> Path:
    onnx, tflite = conv_onnx(), conv_tflite()
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", SIDE, SIDE, 1), layout="NHWC"),),
        (TensorSpec("logits", "float32", ("batch", CLASSES)),),
    )
    labels = tuple(f"class-{i}" for i in range(CLASSES))
    manifest = Manifest(
        schema=SCHEMA,
        name="conv",
        version="1.0.0",
        signature=signature,
        source=SourceFile("onnx", sha256_hex(onnx), len(onnx)),
        exporter={},
        options={},
        seed=1,
        artifacts=(_artifact("onnx", "onnxruntime", onnx), _artifact("tflite", "litert", tflite)),
        labels=labels,
        post=PostProcessing("logits", "softmax"),
        reference=Reference(
            1,
            Histogram(EDGES, (0,) * (len(EDGES) + 1)),
            (0,) * CLASSES,
            inputs={"x": Histogram(DECILES, (0,) * 10)},
            ranges={"x": (-4.0, 4.0)},
        ),
    )
    path = folder / "conv-1.0.0.edgeml"
    write_bundle(manifest, {sha256_hex(onnx): onnx, sha256_hex(tflite): tflite}, path)
    return path


def conv_onnx() -> bytes:
    """NHWC outside, NCHW inside; with one channel the two are the same bytes, so a reshape is enough."""
    from onnx import TensorProto, helper, numpy_helper

    w1, w2, dense = _weights()
    shapes = {"to_nchw": [1, 1, SIDE, SIDE], "to_flat": [1, CHANNELS * SIDE * SIDE]}
    # the dense weights are kept for NHWC, as TFLite has them: (10, 16, 16, 8) -> (10, 8, 16, 16)
    channels_first = dense.reshape(CLASSES, SIDE, SIDE, CHANNELS).transpose(0, 3, 1, 2).reshape(CLASSES, -1)
    constants: dict[str, Array] = {
        "w1": w1.transpose(0, 3, 1, 2),
        "w2": w2.transpose(0, 3, 1, 2),
        "dense": channels_first,
        **{name: np.array(shape, np.int64) for name, shape in shapes.items()},
    }
    nodes = [
        helper.make_node("Reshape", ["x", "to_nchw"], ["x0"]),
        helper.make_node("Conv", ["x0", "w1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Reshape", ["r2", "to_flat"], ["f"]),
        helper.make_node("Gemm", ["f", "dense"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIDE, SIDE, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString(deterministic=True))


def conv_tflite() -> bytes:
    flatbuffers: Any = importlib.import_module("flatbuffers")
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    w1, w2, dense = _weights()
    constants = (w1, np.zeros(CHANNELS, np.float32), w2, np.zeros(CHANNELS, np.float32), dense, np.zeros(CLASSES, np.float32))
    image = [1, SIDE, SIDE, CHANNELS]
    shapes = [[1, SIDE, SIDE, 1], image, image, [1, CLASSES], *(list(array.shape) for array in constants)]
    graph = schema.SubGraphT()
    # tensors 0-3: x, first and second activation, logits; 4-9: constants in buffers 1-6
    graph.tensors = [tflite_tensor(schema, f"t{i}", shape, max(0, i - 3)) for i, shape in enumerate(shapes)]
    graph.inputs, graph.outputs = [0], [3]
    graph.operators = [_conv(schema, 0, 4, 1), _conv(schema, 1, 6, 2), _dense(schema)]
    model = schema.ModelT()
    model.version = 3
    operators = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED)
    model.operatorCodes = [_code(schema, operator) for operator in operators]
    model.buffers = [tflite_buffer(schema, b""), *(tflite_buffer(schema, array.tobytes()) for array in constants)]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def pictures_tflite(side: int, first: Array, second: Array) -> bytes:
    """x (1, side, side, 1) -> two 3x3 convolutions with ReLU -> (1, side, side, channels); kernels are (out, 3, 3, in)."""
    flatbuffers: Any = importlib.import_module("flatbuffers")
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    constants = [array for kernel in (first, second) for array in (kernel, np.zeros(len(kernel), np.float32))]
    images = [[1, side, side, channels] for channels in (1, len(first), len(second))]
    graph = schema.SubGraphT()
    # tensors 0-2: x and the two activations; 3-6: constants in buffers 1-4
    names = ("x", "r", "y", "w1", "b1", "w2", "b2")
    shapes = [*images, *(list(array.shape) for array in constants)]
    graph.tensors = [
        tflite_tensor(schema, name, shape, max(0, i - 2)) for i, (name, shape) in enumerate(zip(names, shapes, strict=True))
    ]
    graph.inputs, graph.outputs = [0], [2]
    graph.operators = [_conv(schema, 0, 3, 1), _conv(schema, 1, 5, 2)]
    model = schema.ModelT()
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes = [_code(schema, schema.BuiltinOperator.CONV_2D)]
    model.buffers = [tflite_buffer(schema, b""), *(tflite_buffer(schema, array.tobytes()) for array in constants)]
    builder = flatbuffers.Builder(1 << 14)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _weights() -> tuple[Array, Array, Array]:
    """Two kernels (out, 3, 3, in) and the dense matrix (classes, 16 * 16 * 8), as TFLite lays them out."""
    chance = np.random.default_rng(0)
    w1 = chance.normal(0, 0.3, (CHANNELS, 3, 3, 1))
    w2 = chance.normal(0, 0.1, (CHANNELS, 3, 3, CHANNELS))
    dense = chance.normal(0, 0.02, (CLASSES, SIDE * SIDE * CHANNELS))
    return w1.astype(np.float32), w2.astype(np.float32), dense.astype(np.float32)


def _artifact(format_: Format, engine: str, model: bytes) -> Artifact:
    names = ("x", "logits") if format_ == "onnx" else ("t0", "t3")
    return Artifact(
        format=format_,
        precision="fp32",
        precision_found="float32 100 %",
        sha256=sha256_hex(model),
        bytes=len(model),
        requires=Requirement(engine),
        inputs=(Binding("x", names[0], 0, "float32", (1, SIDE, SIDE, 1)),),
        outputs=(Binding("logits", names[1], 0, "float32", (1, CLASSES)),),
        parity=Parity("pass", "verified", 0, 0.0, 0.0),
    )


def _conv(schema: Any, source: int, weights: int, target: int) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [source, weights, weights + 1], [target]
    operator.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    options = schema.Conv2DOptionsT()
    options.padding, options.strideW, options.strideH = schema.Padding.SAME, 1, 1
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU
    operator.builtinOptions = options
    return operator


def _dense(schema: Any) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 1, [2, 8, 9], [3]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    return operator


def _code(schema: Any, operator: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = operator
    code.version = 1
    return code
