"""Small real bundles, built in the test: a linear classifier whose every number can be worked out by hand.

    x (batch, 4) float32 -> logits (batch, 3) = x @ WEIGHTS + OFFSETS, with `bias` added to class "low"

`logits()` is the formula in numpy, independent of every engine.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import write_bundle
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.manifest import (
    SCHEMA,
    Artifact,
    Binding,
    Deferral,
    DType,
    Format,
    Golden,
    GoldenOutput,
    Manifest,
    Parity,
    PostProcessing,
    Precision,
    Quantization,
    Reference,
    Requirement,
    Signature,
    SourceFile,
    TensorBlob,
    TensorSpec,
)
from edgeml.wire.sketches import Histogram

WEIGHTS = np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0], [0.0, 1.0, 1.0], [-0.5, 0.0, 0.5]], np.float32)
OFFSETS = np.array([0.25, 0.0, -0.25], np.float32)
LABELS = ("low", "middle", "high")
EDGES = tuple(i / 10 for i in range(1, 10))
INT8_SCALE = 1 / 16  # stored = 16 x, so that multiples of 1/16 survive int8 without error
FULL: tuple[tuple[Format, Precision], ...] = (("onnx", "fp32"), ("onnx", "int8"), ("tflite", "fp32"))


def logits(x: Array, bias: float = 0.0) -> Array:
    return np.asarray(x, np.float32) @ WEIGHTS + OFFSETS + np.array([bias, 0, 0], np.float32)


def samples(count: int = 32, seed: int = 7) -> Array:
    """Inputs (count, 4) in [-2, 2], multiples of 1/16."""
    return np.random.default_rng(seed).integers(-32, 33, (count, 4)).astype(np.float32) / 16


def make_bundle(
    folder: Path,
    *,
    name: str = "toy",
    version: str = "1.0.0",
    bias: float = 0.0,
    artifacts: Sequence[tuple[Format, Precision]] = (("onnx", "fp32"),),
    model_bias: float | None = None,
    golden_error: float = 0.0,
    defer_below: float | None = None,
    deferral: Deferral | None = None,
    task: Literal["classify", "regress"] = "classify",
    labels: tuple[str, ...] = LABELS,
    requires: Requirement | None = None,
    fixed_batch: bool = False,
    metadata: dict[str, str] | None = None,
    input_name: str = "x",
) -> Path:
    """Write `<name>-<version>.edgeml` into `folder`.

    `golden_error` is added to the expected golden outputs, so that any value above the tolerance makes the self-test fail here;
    `model_bias` goes into the model files instead of `bias`, so that they compute something else than the bundle promises.
    `artifacts` lists ("onnx", "fp32" | "int8") and ("tflite", "fp32"); `fixed_batch` fixes the ONNX files at one sample a call.
    """
    x = samples()
    expected = logits(x, bias) + np.float32(golden_error)
    built = [
        _artifact(
            _blank(kind, precision, requires, deferral),
            expected,
            bias=bias if model_bias is None else model_bias,
            fixed_batch=fixed_batch,
            input_name=input_name,
        )
        for kind, precision in artifacts
    ]
    post = PostProcessing("logits", "softmax", defer_below=defer_below) if task == "classify" else None
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        version=version,
        signature=Signature(
            (TensorSpec(input_name, "float32", ("batch", 4)),),
            (TensorSpec("logits", "float32", ("batch", 3)),),
        ),
        source=SourceFile("onnx", sha256_hex(b"toy"), 3),
        exporter={"edgeml": "0.1.0"},
        options={"to": ",".join(kind for kind, _ in artifacts)},
        seed=0,
        artifacts=tuple(artifact for artifact, _ in built),
        golden_inputs=(_tensor(input_name, x),),
        task=task,
        labels=labels if task == "classify" else (),
        post=post,
        reference=_reference(x, bias) if task == "classify" else None,
        metadata=metadata or {},
    )
    blobs = {sha256_hex(model): model for _, model in built}
    blobs |= {sha256_hex(x.tobytes()): x.tobytes(), sha256_hex(expected.tobytes()): expected.tobytes()}
    path = folder / f"{name}-{version}.edgeml"
    write_bundle(manifest, blobs, path)
    return path


def onnx_model(bias: float = 0.0, *, fixed_batch: bool = False) -> bytes:
    """The classifier as ONNX, tensors `input.1` and `score_0`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    batch: int | str = 1 if fixed_batch else "n"
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["input.1", "w", "b"], ["score_0"])],
        "toy",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("score_0", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(_offsets(bias), "b")],
    )
    return _serialized(onnx, helper, graph)


def onnx_int8_model(bias: float = 0.0, *, fixed_batch: bool = False) -> bytes:
    """The classifier with int8 input and output, `q_in` and `q_out`, at INT8_SCALE and zero point 0."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    batch: int | str = 1 if fixed_batch else "n"
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["q_in", "scale", "zero"], ["x"]),
            helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
            helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["q_out"]),
        ],
        "toy-int8",
        [helper.make_tensor_value_info("q_in", TensorProto.INT8, [batch, 4])],
        [helper.make_tensor_value_info("q_out", TensorProto.INT8, [batch, 3])],
        [
            numpy_helper.from_array(WEIGHTS, "w"),
            numpy_helper.from_array(_offsets(bias), "b"),
            numpy_helper.from_array(np.array(INT8_SCALE, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ],
    )
    return _serialized(onnx, helper, graph)


def tflite_model(bias: float = 0.0) -> bytes:
    """The classifier as TFLite, one FULLY_CONNECTED, tensors `serving_default_x:0` and `StatefulPartitionedCall:0`."""
    flatbuffers: Any = importlib.import_module("flatbuffers")
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")

    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = [_operator_code(schema)]
    model.buffers = [tflite_buffer(schema, data) for data in (b"", WEIGHTS.T.tobytes(), _offsets(bias).tobytes())]
    graph = schema.SubGraphT()
    graph.tensors = [
        tflite_tensor(schema, "serving_default_x:0", [1, 4], 0),
        tflite_tensor(schema, "weights", [3, 4], 1),
        tflite_tensor(schema, "offsets", [3], 2),
        tflite_tensor(schema, "StatefulPartitionedCall:0", [1, 3], 0),
    ]
    graph.inputs, graph.outputs = [0], [3]
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, 2], [3]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators = [operator]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _artifact(
    artifact: Artifact, expected: Array, *, bias: float, fixed_batch: bool, input_name: str
) -> tuple[Artifact, bytes]:
    """The artifact filled in, and its model file."""
    batch: int | str = 1 if fixed_batch or artifact.format == "tflite" else "batch"
    quantization = Quantization(INT8_SCALE, 0) if artifact.precision == "int8" else None
    if artifact.format == "tflite":
        model, tensors = tflite_model(bias), ("serving_default_x:0", "StatefulPartitionedCall:0")
    elif artifact.precision == "int8":
        model, tensors = onnx_int8_model(bias, fixed_batch=fixed_batch), ("q_in", "q_out")
    else:
        model, tensors = onnx_model(bias, fixed_batch=fixed_batch), ("input.1", "score_0")
    dtype: DType = "int8" if artifact.precision == "int8" else "float32"
    tolerance = INT8_SCALE if artifact.precision == "int8" else 1e-5
    filled = msgspec.structs.replace(
        artifact,
        sha256=sha256_hex(model),
        bytes=len(model),
        inputs=(Binding(input_name, tensors[0], 0, dtype, (batch, 4), quantization),),
        outputs=(Binding("logits", tensors[1], 0, dtype, (batch, 3), quantization),),
        golden=Golden((GoldenOutput(_tensor("logits", expected), tolerance),), least_agreement=0.9),
        ops={"FULLY_CONNECTED": 1} if artifact.format == "tflite" else {"Gemm": 1},
    )
    return filled, model


def _blank(format_: Format, precision: Precision, requires: Requirement | None, deferral: Deferral | None) -> Artifact:
    return Artifact(
        format=format_,
        precision=precision,
        precision_found=f"{'int8' if precision == 'int8' else 'float32'} 100 %",
        sha256="",
        bytes=0,
        requires=requires or Requirement("litert" if format_ == "tflite" else "onnxruntime"),
        inputs=(),
        outputs=(),
        parity=Parity("pass", "verified", 32, 0.0, 0.0, top1_agreement=1.0, limit=1e-4),
        deferral=deferral,
    )


def _reference(x: Array, bias: float) -> Reference:
    raw = logits(x, bias)
    shares = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    classes = np.bincount(shares.argmax(axis=1), minlength=len(LABELS))
    return Reference(len(x), Histogram.of(shares.max(axis=1).tolist(), EDGES), tuple(int(count) for count in classes))


def _tensor(name: str, array: Array) -> TensorBlob:
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    dtype: Any = str(array.dtype)
    assert len(data) == math.prod(array.shape) * array.itemsize
    return TensorBlob(name, dtype, tuple(array.shape), sha256_hex(data), len(data))


def _offsets(bias: float) -> Array:
    return OFFSETS + np.array([bias, 0, 0], np.float32)


def _serialized(onnx: Any, helper: Any, graph: Any) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _operator_code(schema: Any) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    return code


def tflite_buffer(schema: Any, data: bytes) -> Any:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8) if data else None
    return buffer


def tflite_tensor(schema: Any, name: str, shape: list[int], buffer: int) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer, tensor.type = name.encode(), shape, buffer, schema.TensorType.FLOAT32
    return tensor
