"""Writes a quantized ONNX graph: QuantizeLinear and DequantizeLinear around operators that engines can run on integers.

Activations are uint8 (or uint16) with one scale, weights int8 with one per output channel and zero point 0, biases int32. A
tensor is rounded once, after the activation function that follows its layer. What only moves values (Reshape, Transpose, …)
keeps its input's scale. Graph inputs and outputs stay float, and so does all that stands between a layer and the model's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgeml.exporter.calibrate.observers import LEVELS, Range, with_zero
from edgeml.exporter.quantize.fold import attribute, captured, consumers, initializers, read_names
from edgeml.runtime.backends import Array

WEIGHT_LIMIT: Final = 127  # -128 is left out: symmetric
LAYERS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
COMPUTING: Final = frozenset(
    {"Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "LeakyRelu", "ReduceMean", "Resize", "HardSigmoid"}
)
ACTIVATIONS: Final = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish"})
MOVING: Final = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Identity", "Slice", "DepthToSpace", "SpaceToDepth"}
)
_FLOAT_CONSTANTS: Final = (TensorProto.FLOAT,)


@dataclass(frozen=True, slots=True)
class Codes:
    """How reals become unsigned integers: real = scale * (code - zero_point)."""

    scale: np.float32
    zero_point: int


def codes(range_: Range, levels: int = LEVELS) -> Codes:
    """The codes that cover a range, zero exactly among them.

    scale = (high - low) / (levels - 1), zero point = round(-low / scale).
    """
    low, high = with_zero(*range_)
    scale = np.float32((high - low) / (levels - 1))
    return Codes(scale, int(np.clip(np.round(-low / scale), 0, levels - 1)))


def weight_scales(weights: Array, axis: int) -> Array:
    """One float32 scale per channel along `axis`: the largest magnitude / 127; 1 for a channel of zeros."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    largest = np.abs(weights).max(axis=others) if others else np.abs(weights)
    return np.where(largest > 0, largest / WEIGHT_LIMIT, 1.0).astype(np.float32)


def channel_axis(node: Any) -> int:
    """The axis of a layer's weights that runs over its output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1  # ConvTranspose; MatMul with a matrix


def float_nodes(graph: Any, keep_float: frozenset[str] = frozenset()) -> frozenset[str]:
    """Outputs (by the name of the first) of nodes that stay float.

    Unknown ones, those asked for by node or output name, and the addition of a bias to a product, so that the sum is rounded
    once: engines add it to the product's int32.
    """
    constants, readers = initializers(graph), consumers(graph)
    known = LAYERS | COMPUTING | ACTIVATIONS | MOVING
    kept = set()
    for node in graph.node:
        asked = node.name in keep_float or bool(keep_float & set(node.output))
        if asked or node.op_type not in known or (node.op_type in LAYERS and not _quantizable(node, constants)):
            kept.add(node.output[0])
        if node.op_type == "MatMul" and (found := product_bias(node, constants, readers)) is not None:
            kept.add(found[0].output[0])
    return frozenset(kept)


def product_bias(node: Any, constants: Mapping[str, Any], readers: Mapping[str, list[Any]]) -> tuple[Any, str] | None:
    """(the addition of a bias behind a MatMul with constant weights, the bias), or `None`."""
    after = readers.get(node.output[0], [])
    if node.input[1] not in constants or len(after) != 1 or after[0] is None or after[0].op_type != "Add":
        return None
    bias = after[0].input[1] if after[0].input[0] == node.output[0] else after[0].input[0]
    channels = constants[node.input[1]].dims[-1]
    if bias not in constants or list(constants[bias].dims)[-1:] != [channels] or int(np.prod(constants[bias].dims)) != channels:
        return None
    return after[0], bias


def insert(
    proto: Any,
    ranges: Mapping[str, Range],
    keep_float: frozenset[str] = frozenset(),
    scales: Mapping[str, Array] | None = None,
    *,
    bits: Literal[8, 16] = 8,
) -> Any:
    """A copy of a folded model with its tensors quantized to `ranges` (tensor name -> range).

    `scales`: weights' name -> one scale per output channel, for weights that are rounded already. `bits` are those of
    activations; 16 needs opset 21.
    """
    copy = type(proto)()
    copy.CopyFrom(proto)
    return _Writer(copy, ranges, keep_float, scales or {}, bits).write()


class _Writer:
    def __init__(
        self, proto: Any, ranges: Mapping[str, Range], keep_float: frozenset[str], scales: Mapping[str, Array], bits: int
    ) -> None:
        self.scales, self.levels, self.unsigned = scales, 2**bits, np.uint16 if bits > 8 else np.uint8
        self.proto, self.graph, self.ranges = proto, proto.graph, ranges
        self.constants, self.readers = initializers(proto.graph), consumers(proto.graph)
        self.makers = {name: node for node in proto.graph.node for name in node.output}
        self.kept = float_nodes(proto.graph, keep_float)
        self.outputs = {output.name for output in proto.graph.output}
        found = (product_bias(node, self.constants, self.readers) for node in proto.graph.node if node.op_type == "MatMul")
        self.biased = {one[0].output[0] for one in found if one is not None} - keep_float
        self.codes: dict[str, Codes] = {}
        self.shared: dict[bytes, str] = {}

    def write(self) -> Any:
        nodes = list(self.graph.node)
        del self.graph.node[:]
        replaced: dict[str, str] = {}
        for value in self.graph.input:
            self._place(value.name, None, replaced)
        for node in nodes:
            float_inputs = list(node.input)
            node.input[:] = [replaced.get(name, name) for name in node.input]
            if self._drops(node, float_inputs[0] if float_inputs else ""):
                replaced[node.output[0]] = node.input[0]
                self._place(node.output[0], node, replaced, source=node.input[0])
                continue
            if self._is_quantized(node):
                self._quantize_constants(node, float_inputs)
            self.graph.node.append(node)
            for name in node.output:
                self._place(name, node, replaced)
        self._drop_unused()
        return self.proto

    def _is_quantized(self, node: Any) -> bool:
        return node.op_type in LAYERS | COMPUTING | MOVING and node.output[0] not in self.kept

    def _drops(self, node: Any, value: str) -> bool:
        """Whether a ReLU says nothing that the codes after it do not: they begin at zero."""
        if node.op_type != "Relu" or node.output[0] in self.outputs or node.output[0] in self.kept:
            return False
        maker = self.makers.get(value)
        if any(node.output[0] in captured(reader) for reader in self.readers.get(node.output[0], [])):
            return False
        if (
            maker is None
            or len(self.readers[value]) != 1
            or maker.op_type not in LAYERS | {"Add"}
            or not (self._is_quantized(maker) or maker.output[0] in self.biased)
        ):
            return False
        return self._wanted(node.output[0], node) and codes(self.ranges[node.output[0]], self.levels).zero_point == 0

    def _wanted(self, name: str, maker: Any) -> bool:
        """Whether a tensor is rounded: an integer operator reads it, and it is not on its way into its own activation."""
        readers = self.readers.get(name, [])
        if name not in self.ranges or name in self.outputs or any(reader is None for reader in readers):
            return False
        if maker is not None and maker.op_type in LAYERS | {"Add"} and len(readers) == 1 and readers[0].op_type in ACTIVATIONS:
            return False
        return any(self._reaches_integers(reader) for reader in readers)

    def _reaches_integers(self, node: Any) -> bool:
        """Whether a reader computes on integers; what only moves values counts if something behind it does."""
        if node is None or not self._is_quantized(node):
            return False
        if node.op_type not in MOVING:
            return True
        return any(self._reaches_integers(reader) for reader in self.readers.get(node.output[0], []))

    def _place(self, name: str, maker: Any, replaced: dict[str, str], source: str | None = None) -> None:
        """Put a QuantizeLinear and a DequantizeLinear behind a tensor, for all its readers."""
        if not self._wanted(name, maker):
            return
        moved = maker is not None and maker.op_type in MOVING and maker.input[0] in self.codes
        found = self.codes[maker.input[0]] if moved else codes(self.ranges[name], self.levels)
        scale, zero = self._constant(np.float32(found.scale)), self._constant(self.unsigned(found.zero_point))
        quantized, real = f"{name}/quantized", f"{name}/dequantized"
        self.graph.node.append(helper.make_node("QuantizeLinear", [source or name, scale, zero], [quantized]))
        self.graph.node.append(helper.make_node("DequantizeLinear", [quantized, scale, zero], [real]))
        replaced[name] = real
        self.codes[real] = found

    def _quantize_constants(self, node: Any, float_inputs: list[str]) -> None:
        if node.op_type in LAYERS:
            self._quantize_layer(node)
            return
        if node.op_type not in COMPUTING or node.op_type == "Resize":
            return
        for position, name in enumerate(float_inputs):
            if name in self.constants and self.constants[name].data_type in _FLOAT_CONSTANTS:
                node.input[position] = self._activation_constant(name)

    def _activation_constant(self, name: str) -> str:
        values = numpy_helper.to_array(self.constants[name])
        found = codes(with_zero(float(values.min()), float(values.max())), self.levels)
        stored = np.clip(np.round(values / found.scale) + found.zero_point, 0, self.levels - 1).astype(self.unsigned)
        return self._dequantized(name, stored, np.float32(found.scale), self.unsigned(found.zero_point), None)

    def _quantize_layer(self, node: Any) -> None:
        name = node.input[1]
        if name not in self.constants:
            return  # a product of two activations: both are rounded already
        weights, axis = numpy_helper.to_array(self.constants[name]), channel_axis(node)
        scales = self.scales[name].astype(np.float32) if name in self.scales else weight_scales(weights, axis)
        bias = node.input[2] if len(node.input) > 2 else ""
        input_codes = self.codes.get(node.input[0])
        values = None
        if bias in self.constants and input_codes is not None:
            values = np.broadcast_to(numpy_helper.to_array(self.constants[bias]).ravel(), scales.shape)
            scales = _wide_enough(scales, values, input_codes.scale)
        shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
        stored = np.clip(np.round(weights / scales.reshape(shape)), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
        node.input[1] = self._dequantized(name, stored, scales, np.zeros(scales.shape, np.int8), axis)
        if values is not None and input_codes is not None:
            bias_scales = (scales * input_codes.scale).astype(np.float32)
            rounded = np.round(values.astype(np.float64) / bias_scales).astype(np.int32)
            node.input[2] = self._dequantized(
                f"{node.output[0]}/bias", rounded, bias_scales, np.zeros(scales.shape, np.int32), 0
            )

    def _dequantized(
        self, name: str, stored: Array, scales: Array | np.float32, zero: Array | np.unsignedinteger[Any], axis: int | None
    ) -> str:
        inputs = [self._constant(stored), self._constant(scales), self._constant(zero)]
        options = {} if axis is None else {"axis": axis}
        real = f"{name}/{inputs[0]}/real"
        if not any(real in node.output for node in self.graph.node):
            self.graph.node.append(helper.make_node("DequantizeLinear", inputs, [real], **options))
        return real

    def _constant(self, values: Any) -> str:
        """An initializer with these values; equal ones are stored once, except int8.

        ONNX Runtime with x64quantprecision rewrites each weight's int8 tensors in place and fails on the second use of one.
        """
        array = np.asarray(values)
        key = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        if array.dtype == np.int8:
            key = str(len(self.shared)).encode()
        if key not in self.shared:
            self.shared[key] = f"constant_{len(self.shared)}"
            self.graph.initializer.append(numpy_helper.from_array(array, self.shared[key]))
        return self.shared[key]

    def _drop_unused(self) -> None:
        used = {name for node in self.graph.node for name in read_names(node)}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _quantizable(node: Any, constants: Mapping[str, Any]) -> bool:
    """Whether a layer's weights are a constant of a form that has one scale per output channel."""
    if node.op_type == "Gemm" and (attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0):
        return False
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        return False
    if node.input[1] not in constants:
        return bool(node.op_type == "MatMul")
    if len(node.input) > 2 and node.input[2] and node.input[2] not in constants:
        return False
    return node.op_type != "MatMul" or len(constants[node.input[1]].dims) == 2


def _wide_enough(scales: Array, bias: Array, input_scale: np.float32) -> Array:
    """Weight scales raised where a bias in units of weight scale * input scale would not fit in half an int32."""
    least = np.abs(bias) / (np.float64(input_scale) * 2**30)
    return np.maximum(scales, least).astype(np.float32)


def shorten_names(proto: Any) -> None:
    """Give inner values the shortest names: names are a quarter of a small model's bytes. Inputs and outputs keep theirs."""
    graph = proto.graph
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}.union(*map(captured, graph.node))
    names = {name: name for name in kept}
    number = 0
    for name in (name for node in graph.node for name in (*node.input, *node.output)):
        if name in names:
            continue
        while (short := np.base_repr(number, 36).lower()) in kept:
            number += 1
        names[name], number = short, number + 1
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
