"""Faults inside a model file: one layer of an ONNX or TFLite artifact is not what was exported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from edgeml.exporter.source.tflite_graphs import pack_model, parse_model, schema
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import Format

LAYERS: Final = 4  # of each model, spread over its depth
WEIGHTED_ONNX: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedMatMul"})
WEIGHTED_TFLITE: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
ACTIVATIONS: Final = frozenset({"Relu", "Clip", "HardSwish", "HardSigmoid", "LeakyRelu", "Sigmoid", "Tanh"})


def faulty_files(format_: Format, model: bytes) -> Iterator[tuple[str, bytes]]:
    """(kind of fault, file) for a few layers of each kind."""
    yield from _onnx_files(model) if format_ == "onnx" else _tflite_files(model)


def spread(items: list[Any], count: int = LAYERS) -> list[Any]:
    if len(items) <= count:
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, count).astype(int)]


def _damaged(values: Array, axis: int) -> Iterator[tuple[str, Array]]:
    """Weights of one layer, `axis` its output channels."""
    moved = np.moveaxis(values, axis, 0)
    count = len(moved)
    loudest = int(np.abs(moved.astype(np.float64)).reshape(count, -1).sum(axis=1).argmax())
    silent = moved.copy()
    silent[loudest] = 0
    yield "one channel of a layer silent", np.moveaxis(silent, 0, axis)
    if count > 1:
        exchanged = moved.copy()
        other = (loudest + count // 2) % count
        exchanged[[loudest, other]] = exchanged[[other, loudest]]
        yield "two channels of a layer exchanged", np.moveaxis(exchanged, 0, axis)
    noise = np.random.default_rng(5).normal(0, 0.3 * float(values.astype(np.float64).std()), values.shape)
    limits = (-127, 127) if values.dtype.kind in "iu" else (-np.inf, np.inf)
    other_version = np.clip(np.round(values + noise) if values.dtype.kind in "iu" else values + noise, *limits)
    yield "a layer of another version", other_version.astype(values.dtype)


def _onnx_files(model: bytes) -> Iterator[tuple[str, bytes]]:
    graph = onnx.load_model_from_string(model).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}

    def stored(name: str) -> str | None:
        """The initializer behind an input, through a DequantizeLinear or Cast."""
        while name not in constants:
            node = makers.get(name)
            if node is None or node.op_type not in {"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity"}:
                return None
            name = node.input[0]
        return name

    def scale_of(name: str) -> str | None:
        node = makers.get(name)
        return node.input[1] if node is not None and node.op_type == "DequantizeLinear" else None

    layers = [node for node in graph.node if node.op_type in WEIGHTED_ONNX and stored(node.input[1])]
    for node in spread(layers):
        weight = stored(node.input[1])
        assert weight is not None
        values = numpy_helper.to_array(constants[weight])
        axis = values.ndim - 1 if node.op_type in {"MatMul", "FusedMatMul"} else 0
        for kind, damaged in _damaged(values, axis):
            yield kind, _with_constant(model, weight, damaged)
        if (scale := scale_of(node.input[1])) in constants:
            yield "a layer's scale off by 5 %", _with_constant(model, scale, numpy_helper.to_array(constants[scale]) * 1.05)
        if len(node.input) > 2 and (bias := stored(node.input[2])) is not None:
            yield "a layer without its bias", _with_constant(model, bias, numpy_helper.to_array(constants[bias]) * 0)
    for index in spread([i for i, node in enumerate(graph.node) if node.op_type in ACTIVATIONS]):
        changed = onnx.load_model_from_string(model)
        node = changed.graph.node[index]
        node.op_type = "Identity"
        del node.input[1:]
        del node.attribute[:]
        yield "a layer without its activation", changed.SerializeToString()


def _with_constant(model: bytes, name: str | None, values: Array) -> bytes:
    changed = onnx.load_model_from_string(model)
    for tensor in changed.graph.initializer:
        if tensor.name == name:
            dtype = numpy_helper.to_array(tensor).dtype
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values.astype(dtype)), tensor.name))
    return bytes(changed.SerializeToString())


class _Tflite:
    """A parsed file, its operators by name and its constants as arrays."""

    def __init__(self, model: bytes) -> None:
        generated = schema()
        self._names = {value: name for name, value in vars(generated.BuiltinOperator).items() if not name.startswith("_")}
        self._kinds = {value: name.lower() for name, value in vars(generated.TensorType).items() if not name.startswith("_")}
        self.parsed = parse_model(model)
        self.graph = self.parsed.subgraphs[0]
        self._makers = {int(out): one for one in self.graph.operators for out in one.outputs}
        self.layers = [
            one for one in self.graph.operators
            if self.operator(one) in WEIGHTED_TFLITE and self.stored(self.constant(one.inputs[1])) is not None
        ]  # fmt: skip

    def operator(self, one: Any) -> str:
        code = self.parsed.operatorCodes[one.opcodeIndex]
        return str(self._names[max(code.builtinCode, code.deprecatedBuiltinCode)])

    def constant(self, index: int) -> int:
        """The tensor behind an input, through a DEQUANTIZE (of fp16 weights)."""
        maker = self._makers.get(int(index))
        return int(maker.inputs[0]) if maker is not None and self.operator(maker) == "DEQUANTIZE" else int(index)

    def stored(self, index: int) -> Array | None:
        tensor = self.graph.tensors[index]
        data = self.parsed.buffers[tensor.buffer].data
        if index < 0 or data is None or self._kinds[tensor.type] not in {"float32", "float16", "int8", "int32"}:
            return None
        shape = () if tensor.shape is None else tuple(int(axis) for axis in tensor.shape)
        values: Array = np.asarray(data, np.uint8).view(self._kinds[tensor.type])
        return values.reshape(shape)

    def with_values(self, index: int, values: Array) -> bytes:
        buffer = self.parsed.buffers[self.graph.tensors[index].buffer]
        kept, buffer.data = buffer.data, np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        packed = pack_model(self.parsed)
        buffer.data = kept
        return packed


def _tflite_files(model: bytes) -> Iterator[tuple[str, bytes]]:
    file = _Tflite(model)
    for one in spread(file.layers):
        at = file.constant(one.inputs[1])
        values = file.stored(at)
        assert values is not None
        axis = values.ndim - 1 if file.operator(one) == "DEPTHWISE_CONV_2D" else 0
        for kind, damaged in _damaged(values, axis):
            yield kind, file.with_values(at, damaged)
        yield from _scaled(file, at)
        bias_at = file.constant(one.inputs[2]) if len(one.inputs) > 2 and one.inputs[2] >= 0 else -1
        bias = file.stored(bias_at) if bias_at >= 0 else None
        if bias is not None and bias.any():
            yield "a layer without its bias", file.with_values(bias_at, bias * 0)
    for one in spread([one for one in file.layers if getattr(one.builtinOptions, "fusedActivationFunction", 0)]):
        kept, one.builtinOptions.fusedActivationFunction = one.builtinOptions.fusedActivationFunction, 0
        yield "a layer without its activation", pack_model(file.parsed)
        one.builtinOptions.fusedActivationFunction = kept


def _scaled(file: _Tflite, index: int) -> Iterator[tuple[str, bytes]]:
    quantization = file.graph.tensors[index].quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return
    kept, quantization.scale = quantization.scale, np.asarray(quantization.scale, np.float32) * np.float32(1.05)
    yield "a layer's scale off by 5 %", pack_model(file.parsed)
    quantization.scale = kept
