"""A folded ONNX graph as a `Network`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

import numpy as np
import onnx
from onnx import numpy_helper

from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.calibrate.observers import Range
from edgeml.exporter.calibrate.onnx import watch_onnx
from edgeml.exporter.calibrate.statistics import Pass
from edgeml.exporter.quantize.fold import attribute, consumers, initializers, set_tensor
from edgeml.exporter.quantize.joins import Operation, find_joins
from edgeml.exporter.quantize.layers import Floats, Layer, Step, links
from edgeml.exporter.quantize.qdq import (
    ACTIVATIONS,
    COMPUTING,
    LAYERS,
    MOVING,
    float_nodes,
    insert,
    product_bias,
    shorten_names,
)
from edgeml.exporter.quantize.scaled_inputs import scaled_inputs
from edgeml.runtime.backends import Array, Backend, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx

EXACT: Final = EngineOptions(kernels="exact")  # judge the numbers in the file, not a kernel that saturates
ARITHMETIC: Final = frozenset({"Add", "Sub", "Mul", "Div"})
SCALABLE: Final = frozenset({"Relu", "LeakyRelu"})
PASSING: Final = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool", "Reshape", "Flatten", "Squeeze", "Identity"})


class OnnxNetwork:
    """`proto` is folded and belongs to this object."""

    def __init__(self, proto: Any, keep_float: frozenset[str] = frozenset()) -> None:
        self.proto, self.constants = proto, initializers(proto.graph)
        operations = [Operation(node.op_type, tuple(node.input), node.output[0]) for node in proto.graph.node]
        inputs = [value.name for value in proto.graph.input]
        self.keep_float = keep_float | scaled_inputs(operations, inputs, self.constants, ARITHMETIC)
        kept = float_nodes(proto.graph, self.keep_float)
        readers = consumers(proto.graph)
        by_node = {node.output[0]: layer for node in proto.graph.node if (layer := _layer(node, self.constants, readers))}
        products = {node.output[0]: layer for node in proto.graph.node if (layer := _product(node, self.constants, readers))}
        self.layers = tuple(layer for name, layer in (by_node | products).items() if name not in kept)
        self.links = links(
            [
                Step(tuple(node.input), node.output[0], by_node.get(node.output[0]), _passes(node, by_node))
                for node in proto.graph.node
            ],
            [output.name for output in proto.graph.output],
            _channels(proto),
        )
        self.joins = find_joins(operations, "Concat", MOVING | SCALABLE)
        self._swapped = {
            node.input[1]
            for node in proto.graph.node
            if node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
        }

    def copy(self) -> Self:
        return self.keeping(frozenset())

    def keeping(self, kept: frozenset[str]) -> Self:
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return type(self)(proto, self.keep_float | kept)

    def operators(self) -> tuple[tuple[str, str], ...]:
        kept = float_nodes(self.proto.graph, self.keep_float)
        nodes = [node for node in self.proto.graph.node if node.op_type in LAYERS | COMPUTING]
        return tuple((node.op_type, node.output[0]) for node in nodes if node.output[0] not in kept)

    def read(self, layer: Layer) -> Floats:
        weights: Floats = numpy_helper.to_array(self.constants[layer.weights]).astype(np.float64)
        return weights.T if layer.weights in self._swapped else weights

    def write(self, layer: Layer, weights: Floats) -> None:
        stored = weights.T if layer.weights in self._swapped else weights
        set_tensor(self.constants[layer.weights], stored.astype(np.float32))

    def read_bias(self, layer: Layer) -> Floats:
        channels = len(self.read(layer))
        if layer.bias is None:
            return np.zeros(channels)
        return np.broadcast_to(numpy_helper.to_array(self.constants[layer.bias]).astype(np.float64).ravel(), channels)

    def write_bias(self, layer: Layer, bias: Floats) -> None:
        if layer.bias is not None:
            set_tensor(self.constants[layer.bias], bias.astype(np.float32))

    def watch(self, feeds: Feeds) -> Pass:
        return watch_onnx(self.proto, feeds)

    def arrange(self, layer: Layer, tensor: str, values: Array) -> Array:  # noqa: ARG002 - ONNX has the common order
        return values

    def quantized(
        self,
        ranges: Mapping[str, Range],
        scales: Mapping[str, Array],
        *,
        bits: Literal[8, 16] = 8,
        wide: frozenset[str] = frozenset(),
    ) -> bytes:
        assert not wide, "only microcontrollers, which read TFLite, may have nothing in float"
        written = insert(self.proto, ranges, self.keep_float, scales, bits=bits)
        shorten_names(written)
        bytes_: bytes = written.SerializeToString(deterministic=True)
        return bytes_

    def open(self, model: bytes) -> Backend:
        return open_onnx(model, EXACT)


def with_biases(proto: Any) -> Any:
    """Give every layer without a bias one of zeros, for corrections to go to."""
    constants = initializers(proto.graph)
    for node in proto.graph.node:
        if node.op_type not in {"Conv", "Gemm"} or node.input[1] not in constants or (len(node.input) > 2 and node.input[2]):
            continue
        dims = constants[node.input[1]].dims
        channels = dims[0] if node.op_type == "Conv" or attribute(node, "transB", 0) else dims[1]
        name = f"{node.output[0]}/bias"
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(channels, np.float32), name))
        node.input[:] = [*node.input[:2], name]
    return proto


def _layer(node: Any, constants: Mapping[str, Any], readers: Mapping[str, list[Any]]) -> Layer | None:
    """The node as a layer, if its weights and bias are constants that nothing else reads."""
    if node.op_type not in {"Conv", "Gemm"} or any(name not in constants for name in node.input[1:]):
        return None
    if any(len(readers[name]) != 1 for name in node.input[1:]):
        return None
    bias = node.input[2] if len(node.input) > 2 else None
    after = readers.get(node.output[0], [])
    function = after[0] if len(after) == 1 and after[0] is not None and after[0].op_type in ACTIVATIONS else None
    activation = function.output[0] if function is not None else node.output[0]
    dims = constants[node.input[1]].dims
    inputs = int(dims[0] if node.op_type == "Gemm" and not attribute(node, "transB", 0) else dims[1])
    scalable = function is None or function.op_type in SCALABLE
    names = (node.input[1], bias, node.input[0], node.output[0], activation, inputs, scalable)
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0 and not attribute(node, "transA", 0)
        return Layer(*names) if plain else None
    if attribute(node, "auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}:
        return None
    kernel = tuple(dims[2:])
    pads = attribute(node, "pads", [0] * 2 * len(kernel))
    return Layer(
        *names,
        kernel=kernel,
        strides=tuple(attribute(node, "strides", [1] * len(kernel))),
        dilations=tuple(attribute(node, "dilations", [1] * len(kernel))),
        pads=tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)),
        groups=int(attribute(node, "group", 1)),
    )


def _product(node: Any, constants: Mapping[str, Any], readers: Mapping[str, list[Any]]) -> Layer | None:
    """A MatMul as a layer, with the bias that is added behind it. Its channels come last, so that it takes no part in links."""
    if node.op_type != "MatMul" or node.input[1] not in constants or len(readers[node.input[1]]) != 1:
        return None
    weights = constants[node.input[1]]
    if len(weights.dims) != 2 or weights.data_type != onnx.TensorProto.FLOAT:
        return None
    found = product_bias(node, constants, readers)
    bias = found[1] if found is not None and len(readers[found[1]]) == 1 else None
    return Layer(node.input[1], bias, node.input[0], node.output[0], node.output[0], int(weights.dims[0]), scalable=False)


def _passes(node: Any, layers: Mapping[str, Layer]) -> bool:
    own_function = any(node.output[0] == layer.activation != layer.output for layer in layers.values())
    return node.op_type in PASSING and not own_function


def _channels(proto: Any) -> dict[str, int]:
    """Channels (axis 1) of every value whose shape can be inferred; of a flattened one, all it has."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    found = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 1 and dims[1].HasField("dim_value"):
            found[value.name] = int(dims[1].dim_value)
    return found
