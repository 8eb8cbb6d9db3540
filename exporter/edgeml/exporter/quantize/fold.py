"""An ONNX graph made ready for int8: constants folded, batch normalization and other per-channel arithmetic inside the layers.

What stands between a layer and its activation would be rounded to 8 bits of its own; inside the layer it costs nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from edgeml.runtime.backends import Array
from edgeml.wire.errors import ModelError

LAYERS: Final = ("Conv", "Gemm")
_BN_EPSILON: Final = 1e-5  # ONNX's default
_KNOWN_DOMAINS: Final = ("", "ai.onnx")


def ready(model: bytes) -> Any:
    """The ModelProto with everything folded.

    Raises:
        ModelError: ONNX Runtime cannot load it.
    """
    proto = _optimized(model)
    graph = proto.graph
    while _drop_one_identity_reshape(proto) or _fold_one(graph):
        pass
    _drop_unused(graph)
    del graph.value_info[:]
    return proto


def initializers(graph: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in graph.initializer}


def consumers(graph: Any) -> dict[str, list[Any]]:
    """Value name -> nodes that read it; a graph output counts as read by `None`."""
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in (*node.input, *captured(node)):
            found.setdefault(name, []).append(node)
    for output in graph.output:
        found.setdefault(output.name, []).append(None)
    return found


def captured(node: Any) -> set[str]:
    """Names that a node's sub-graphs read from outside."""
    found: set[str] = set()
    for graph in (graph for a in node.attribute for graph in ((a.g,) if a.HasField("g") else a.graphs)):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {name for inner in graph.node for name in inner.output}
        found |= {name for inner in graph.node for name in read_names(inner)} | {output.name for output in graph.output}
        found -= own
    return found


def read_names(node: Any) -> set[str]:
    """Every name a node reads, be it inside its sub-graphs."""
    return set(node.input) | captured(node)


def set_tensor(tensor: Any, values: Array) -> None:
    """Replace an initializer's values, keeping its name."""
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def _optimized(model: bytes) -> Any:
    """ONNX Runtime's own basic optimizations: standard operators only, the same on every machine."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        settings.optimized_model_filepath = str(Path(folder) / "model.onnx")
        try:
            ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot load the model: {error}") from error
        proto = onnx.load(settings.optimized_model_filepath)
    used = {node.domain for node in proto.graph.node} | set(_KNOWN_DOMAINS)
    kept = [opset for opset in proto.opset_import if opset.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return proto


def _drop_one_identity_reshape(proto: Any) -> bool:
    """Remove a Reshape to the very shape its input has (one axis may be free)."""
    graph = proto.graph
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {
        value.name: [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input)
    }
    constants = initializers(graph)
    outputs = {output.name for output in graph.output}.union(*map(captured, graph.node))
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants or node.output[0] in outputs:
            continue
        target = numpy_helper.to_array(constants[node.input[1]]).tolist()
        if shapes.get(node.input[0]) == target and target.count(-1) <= 1 and 0 not in target:
            _bypass(graph, node)
            return True
    return False


def _fold_one(graph: Any) -> bool:
    """Fold one per-channel operation into the layer before it."""
    constants, readers = initializers(graph), consumers(graph)
    for layer in graph.node:
        if layer.op_type not in LAYERS or layer.domain not in _KNOWN_DOMAINS or layer.input[1] not in constants:
            continue
        after = readers.get(layer.output[0], [])
        if len(after) != 1 or after[0] is None or len(readers[layer.input[1]]) != 1:
            continue
        affine = _affine(after[0], layer.output[0], constants, _channels(layer, constants), conv=layer.op_type == "Conv")
        if affine is not None and _absorb(graph, layer, constants, *affine):
            layer.output[0] = after[0].output[0]
            graph.node.remove(after[0])
            return True
    return False


def _channels(layer: Any, constants: Mapping[str, Any]) -> int:
    dims = constants[layer.input[1]].dims
    return int(dims[0] if layer.op_type == "Conv" or attribute(layer, "transB", 0) else dims[1])


def _affine(node: Any, value: str, constants: Mapping[str, Any], channels: int, *, conv: bool) -> tuple[Array, Array] | None:
    """(scale, shift) per channel that a node applies to `value`, or `None`."""
    if node.op_type == "BatchNormalization":
        if any(name not in constants for name in node.input[1:5]):
            return None
        gain, bias, mean, variance = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input[1:5])
        scale = gain / np.sqrt(variance + attribute(node, "epsilon", _BN_EPSILON))
        return scale, bias - mean * scale
    if node.op_type not in {"Add", "Sub", "Mul", "Div"}:
        return None
    other = node.input[1] if node.input[0] == value else node.input[0]
    if other not in constants or (node.op_type in {"Sub", "Div"} and node.input[0] != value):
        return None
    operand = _per_channel(numpy_helper.to_array(constants[other]).astype(np.float64), channels, conv=conv)
    if operand is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    return {
        "Add": (one, operand), "Sub": (one, -operand), "Mul": (operand, zero), "Div": (1.0 / operand, zero),
    }[node.op_type]  # fmt: skip


def _per_channel(operand: Array, channels: int, *, conv: bool) -> Array | None:
    """A broadcast constant as one value per channel, or `None` if it varies along another axis."""
    if operand.size == 1:
        return np.full(channels, operand.ravel()[0])
    wanted = (channels, 1, 1) if conv else (channels,)
    shape = operand.shape
    while len(shape) > len(wanted) and shape[0] == 1:
        shape = shape[1:]
    fits = shape == wanted or (conv and len(shape) >= 2 and shape[0] == channels and set(shape[1:]) == {1})
    return operand.reshape(channels) if fits else None


def _absorb(graph: Any, layer: Any, constants: Mapping[str, Any], scale: Array, shift: Array) -> bool:
    """Rewrite weights and bias of a layer so that it gives scale * y + shift."""
    if layer.op_type == "Gemm" and (attribute(layer, "alpha", 1.0) != 1.0 or attribute(layer, "beta", 1.0) != 1.0):
        return False
    weights = numpy_helper.to_array(constants[layer.input[1]]).astype(np.float64)
    first = layer.op_type == "Conv" or attribute(layer, "transB", 0)
    bias = np.zeros(len(scale))
    if len(layer.input) > 2 and layer.input[2]:
        if layer.input[2] not in constants:
            return False
        bias = np.broadcast_to(numpy_helper.to_array(constants[layer.input[2]]).astype(np.float64).ravel(), len(scale))
    shape = (-1, *[1] * (weights.ndim - 1)) if first else (1, -1)
    set_tensor(constants[layer.input[1]], (weights * scale.reshape(shape)).astype(np.float32))
    name = f"{layer.output[0]}/bias"
    graph.initializer.append(numpy_helper.from_array((bias * scale + shift).astype(np.float32), name))
    layer.input[:] = [layer.input[0], layer.input[1], name]
    return True


def _bypass(graph: Any, node: Any) -> None:
    for reader in graph.node:
        reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
    graph.node.remove(node)


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in read_names(node)}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def attribute(node: Any, name: str, default: Any) -> Any:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)
