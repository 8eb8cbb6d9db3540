"""Faults inside a TFLite file: what a broken engine or delegate makes of one layer, as a file that a healthy engine runs.

A zero point stands once for all who write and read a tensor. A delegate that forgets it in one place is put into the bias of
the layer: reading q - 0 for q - z adds z times the layer's weights, writing q + 0 for q + z takes z steps of the answer off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.golden import weights as kind
from benchmarks.golden.weights import spread
from edgeml.exporter.source.tflite_graphs import pack_model, parse_model, schema
from edgeml.runtime.backends import Array

WEIGHTED: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"})
WEIGHT_AT: Final = 1
RECURRENT: Final = "UNIDIRECTIONAL_SEQUENCE_LSTM"
GATES: Final = ((1, 2), (5, 6))  # inputs of an LSTM: weights of the input's and the forget gate, for the input and the state
KINDS: Final = frozenset({"float32", "float16", "int8", "int32", "int64"})


def faulty_files(model: bytes) -> Iterator[tuple[str, bytes]]:
    """(kind of fault, file) for a few layers of each kind."""
    file = _File(model)
    for layer in spread(file.layers()):
        yield from _layer(file, layer)
    for layer in spread(file.named(RECURRENT)):
        yield from _recurrent(file, layer)
    for layer in spread([one for one in file.all() if getattr(one.operator.builtinOptions, "fusedActivationFunction", 0)]):
        options = layer.operator.builtinOptions
        kept, options.fusedActivationFunction = options.fusedActivationFunction, 0
        yield kind.NO_ACTIVATION, file.packed()
        options.fusedActivationFunction = kept
    for layer in spread([one for one in file.named("CONCATENATION") if file.joins(one)]):
        inputs = layer.operator.inputs
        kept, layer.operator.inputs = inputs, np.concatenate([inputs[1::-1], inputs[2:]])
        yield kind.JOIN, file.packed()
        layer.operator.inputs = kept
    yield from _whole(file)


def stuck_inputs(model: bytes) -> Iterator[tuple[int, float]]:
    """(input of the model, what it is off by) where an input is quantized in the file with a zero point that is not 0."""
    file = _File(model)
    given = [int(index) for index in file.graph.inputs]
    for layer in file.named("QUANTIZE"):
        source, made = int(layer.operator.inputs[0]), layer.graph.tensors[layer.operator.outputs[0]].quantization
        if layer.graph is file.graph and source in given and made is not None and int(made.zeroPoint[0]):
            yield given.index(source), -float(made.zeroPoint[0]) * float(made.scale[0])


@dataclass(frozen=True, slots=True)
class _Layer:
    graph: Any
    operator: Any


class _File:
    """A parsed file, its operators by name and its constants as arrays."""

    def __init__(self, model: bytes) -> None:
        generated = schema()
        self._names = {value: name for name, value in vars(generated.BuiltinOperator).items() if not name.startswith("_")}
        self._kinds = {value: name.lower() for name, value in vars(generated.TensorType).items() if not name.startswith("_")}
        self.parsed = parse_model(model)
        self.graph = self.parsed.subgraphs[0]

    def all(self) -> list[_Layer]:
        return [_Layer(graph, one) for graph in self.parsed.subgraphs for one in graph.operators or ()]

    def named(self, name: str) -> list[_Layer]:
        return [one for one in self.all() if self.name(one.operator) == name]

    def layers(self) -> list[_Layer]:
        """The operators with weights; of those that share them, one."""
        found = {}
        for one in self.all():
            at = self.constant(one, WEIGHT_AT) if self.name(one.operator) in WEIGHTED else -1
            if at >= 0 and self.stored(one.graph, at) is not None:
                found[one.graph.tensors[at].buffer] = one
        return list(found.values())

    def name(self, operator: Any) -> str:
        code = self.parsed.operatorCodes[operator.opcodeIndex]
        return str(self._names[max(code.builtinCode, code.deprecatedBuiltinCode)])

    def constant(self, layer: _Layer, position: int) -> int:
        """The tensor behind an input, through a DEQUANTIZE (of fp16 weights); -1 where there is none."""
        if position >= len(layer.operator.inputs):
            return -1
        index = int(layer.operator.inputs[position])
        makers = (one for one in layer.graph.operators if index in one.outputs)
        maker = next(makers, None)
        return int(maker.inputs[0]) if maker is not None and self.name(maker) == "DEQUANTIZE" else index

    def stored(self, graph: Any, index: int) -> Array | None:
        tensor = graph.tensors[index]
        data = self.parsed.buffers[tensor.buffer].data
        if index < 0 or data is None or self._kinds[tensor.type] not in KINDS:
            return None
        shape = () if tensor.shape is None else tuple(int(axis) for axis in tensor.shape)
        values: Array = np.asarray(data, np.uint8).view(self._kinds[tensor.type])
        return values.reshape(shape)

    def joins(self, layer: _Layer) -> bool:
        inputs = layer.operator.inputs
        return len(inputs) > 1 and all(self.stored(layer.graph, int(index)) is None for index in inputs[:2])

    def packed(self) -> bytes:
        return pack_model(self.parsed)

    def with_values(self, graph: Any, changes: dict[int, Array]) -> bytes:
        """The file with other values of some tensors."""
        kept = {}
        for index, values in changes.items():
            buffer = self.parsed.buffers[graph.tensors[index].buffer]
            kept[index] = (buffer, buffer.data)
            buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        packed = self.packed()
        for buffer, data in kept.values():
            buffer.data = data
        return packed

    def with_scales(self, graph: Any, index: int, scales: Array) -> bytes:
        quantization = graph.tensors[index].quantization
        kept, quantization.scale = quantization.scale, scales.astype(np.float32)
        packed = self.packed()
        quantization.scale = kept
        return packed

    def grid(self, graph: Any, index: int) -> tuple[Array, int] | None:
        """Scales and zero point of a quantized tensor."""
        found = graph.tensors[index].quantization
        if found is None or found.scale is None or not len(found.scale):
            return None
        point = 0 if found.zeroPoint is None else int(found.zeroPoint[0])
        return np.asarray(found.scale, np.float64), point


def _layer(file: _File, layer: _Layer) -> Iterator[tuple[str, bytes]]:
    graph, at = layer.graph, file.constant(layer, WEIGHT_AT)
    values = file.stored(graph, at)
    assert values is not None
    axis = _channel_axis(file, layer, values)
    for name, changed in kind.damaged(values, axis):
        yield name, file.with_values(graph, {at: changed})
    if (grid := file.grid(graph, at)) is not None:
        yield kind.SCALED, file.with_scales(graph, at, grid[0] * kind.SCALE)
        if np.ptp(grid[0]):
            yield kind.ONE_SCALE, file.with_scales(graph, at, np.full_like(grid[0], grid[0][0]))
    bias_at = file.constant(layer, WEIGHT_AT + 1)
    bias = file.stored(graph, bias_at) if bias_at >= 0 else None
    if bias is None:
        return
    if bias.any():
        yield kind.NO_BIAS, file.with_values(graph, {bias_at: bias * 0})
    for name, by in _stuck(file, layer, np.moveaxis(values, axis, 0)):
        if by.any():
            yield name, file.with_values(graph, {bias_at: _moved(bias, by)})


def _channel_axis(file: _File, layer: _Layer, values: Array) -> int:
    name = file.name(layer.operator)
    if name == "BATCH_MATMUL":
        return values.ndim - 2 if layer.operator.builtinOptions.adjY else values.ndim - 1
    return values.ndim - 1 if name == "DEPTHWISE_CONV_2D" else 0


def _stuck(file: _File, layer: _Layer, channels: Array) -> Iterator[tuple[str, Array]]:
    """What a forgotten zero point adds to the bias, in its own steps, where activations are quantized."""
    grids = _grids(file, layer)
    if grids is None:
        return
    (_, reads_from), (written, writes_from), unit = grids
    yield kind.STUCK_READ, reads_from * channels.astype(np.float64).reshape(len(channels), -1).sum(axis=1)
    yield kind.STUCK_WRITTEN, -writes_from * written / unit


def _grids(file: _File, layer: _Layer) -> tuple[tuple[Array, int], tuple[Array, int], Array] | None:
    """Of what an int8 layer reads, of what it writes, and the step of its bias."""
    reads, weight, writes = (
        file.grid(layer.graph, int(index))
        for index in (layer.operator.inputs[0], layer.operator.inputs[1], layer.operator.outputs[0])
    )
    if reads is None or weight is None or writes is None:
        return None
    return reads, writes, reads[0] * weight[0]


def _moved(bias: Array, by: Array) -> Array:
    limits = np.iinfo(bias.dtype)
    return np.clip(np.round(bias + by), limits.min, limits.max).astype(bias.dtype)


def _recurrent(file: _File, layer: _Layer) -> Iterator[tuple[str, bytes]]:
    for positions in GATES:
        one, other = (file.constant(layer, position) for position in positions)
        a, b = file.stored(layer.graph, one), file.stored(layer.graph, other)
        if a is None or b is None:
            continue
        for name, changed in kind.damaged(b, 0):
            yield name, file.with_values(layer.graph, {other: changed})
        yield kind.GATES, file.with_values(layer.graph, {one: b, other: a})


def _whole(file: _File) -> Iterator[tuple[str, bytes]]:
    """Faults of the engine as a whole."""
    biases: dict[int, tuple[Any, dict[int, Array]]] = {}
    floats: dict[int, tuple[Any, dict[int, Array]]] = {}
    for layer in file.layers():
        grids, bias_at = _grids(file, layer), file.constant(layer, WEIGHT_AT + 1)
        bias = file.stored(layer.graph, bias_at) if bias_at >= 0 else None
        if grids is not None and bias is not None:
            less = _moved(bias, -grids[1][0] / 2 / grids[2])
            biases.setdefault(id(layer.graph), (layer.graph, {}))[1][bias_at] = less
        weight_at = file.constant(layer, WEIGHT_AT)
        values = file.stored(layer.graph, weight_at)
        if values is not None and values.dtype.kind == "f":
            floats.setdefault(id(layer.graph), (layer.graph, {}))[1][weight_at] = kind.cut(values)
    for graph, changes in biases.values():
        yield kind.CUT, file.with_values(graph, changes)
    if not biases:
        for graph, changes in floats.values():
            yield kind.BRAIN_FLOAT, file.with_values(graph, changes)
