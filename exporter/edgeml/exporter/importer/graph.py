"""Reads an ONNX graph and runs it, node by node, as one torch module.

Two kinds of value travel through a graph. Tensors are data. Static values (numpy) are what shapes the computation:
initializers, `Shape` of a tensor, and anything computed from those alone; they are folded once, at import. So a traced or
exported module sees plain tensor code with fixed sizes, which is what the TFLite and Core ML converters want.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from edgeml.exporter.importer import registry
from edgeml.exporter.importer.registry import DEFAULT_DOMAINS, Node, Operator, Static, Value, refuse_data
from edgeml.wire.errors import UnsupportedError

FAMILIES = (
    "elementwise", "logic", "shape", "indexing", "reduce", "convolution", "pooling", "normalize", "resize", "recurrent",
    "attention", "streaming", "quantized", "signal", "control",
)  # fmt: skip
for _family in FAMILIES:
    importlib.import_module(f"edgeml.exporter.importer.{_family}")


class ImportedModel(nn.Module):
    """An ONNX model as a torch module; `forward` takes tensors in the order of `input_names`.

    Gives one tensor, or a tuple in the order of `output_names`.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.graph = Graph(model.graph, opsets, {})
        self.input_names = self.graph.inputs
        self.output_names = self.graph.outputs
        self._buffer_of: dict[str, str] = {}
        for number, (name, array) in enumerate(self.graph.constants.items()):
            if array.dtype.kind == "f":
                self._buffer_of[name] = f"constant_{number}"
                self.register_buffer(f"constant_{number}", torch.from_numpy(array.copy()))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: dict[str, Value] = dict(self.graph.constants)
        weights = {name: cast("Tensor", getattr(self, buffer)) for name, buffer in self._buffer_of.items()}
        values.update(zip(self.input_names, inputs, strict=True))
        results = tuple(as_tensor(value) for value in self.graph.run(values, weights))
        return results[0] if len(results) == 1 else results


def to_torch(model: onnx.ModelProto) -> ImportedModel:
    """Import an ONNX model.

    Raises:
        UnsupportedError: an operator, a type or a feature that the importer does not know; all unknown operators are named.
    """
    unknown = sorted(_unknown(model.graph))
    if unknown:
        raise UnsupportedError(f"ONNX operators not supported: {', '.join(unknown)}")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return ImportedModel(model).eval()


def _unknown(graph: onnx.GraphProto) -> set[str]:
    found = set()
    for node in graph.node:
        if registry.find(node.domain, node.op_type) is None:
            found.add(node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}::{node.op_type}")
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found |= _unknown(attribute.g)
    return found


class Graph:
    """A graph or sub-graph: its nodes in order, and the values known before any input is."""

    def __init__(self, proto: onnx.GraphProto, opsets: Mapping[str, int], outer: Mapping[str, Static]) -> None:
        self.constants: dict[str, Static] = dict(outer)
        for tensor in proto.initializer:
            self.constants[tensor.name] = _array(tensor)
        own = {tensor.name for tensor in proto.initializer}
        self.inputs = tuple(value.name for value in proto.input if value.name not in own)
        self.outputs = tuple(value.name for value in proto.output)
        for name in self.inputs:
            self.constants.pop(name, None)
        self.steps: list[tuple[Operator, Node]] = []
        for node in proto.node:
            self._add(node, opsets)

    def _add(self, proto: onnx.NodeProto, opsets: Mapping[str, int]) -> None:
        known = registry.find(proto.domain, proto.op_type)
        if known is None:
            raise UnsupportedError(f"ONNX operator {proto.op_type!r} is not supported")
        attributes = {a.name: self._attribute(a, opsets) for a in proto.attribute}
        opset = next((opsets[d] for d in DEFAULT_DOMAINS if d in opsets), 1)
        node = Node(proto.op_type, proto.name, tuple(proto.input), tuple(proto.output), attributes, opset)
        if not known.subgraphs and all(name == "" or name in self.constants for name in node.inputs):
            with torch.no_grad():
                for name, value in _call(known, node, self.constants, {}).items():
                    self.constants[name] = static(value)
            return
        self.steps.append((known, node))

    def _attribute(self, proto: onnx.AttributeProto, opsets: Mapping[str, int]) -> Any:
        if proto.type == onnx.AttributeProto.GRAPH:
            return Graph(proto.g, opsets, self.constants)
        if proto.type == onnx.AttributeProto.TENSOR:
            return _array(proto.t)
        value = onnx.helper.get_attribute_value(proto)
        return value.decode() if isinstance(value, bytes) else value

    def run(self, values: dict[str, Value], weights: Mapping[str, Tensor]) -> list[Value]:
        """Runs every step; `values` already holds the inputs and grows by what is computed."""
        for known, node in self.steps:
            values.update(_call(known, node, values, weights))
        return [values[name] for name in self.outputs]


DECISIONS = {"If": "which way it goes", "Loop": "how often it turns"}


def _call(known: Operator, node: Node, values: Mapping[str, Value], weights: Mapping[str, Tensor]) -> dict[str, Value]:
    given = [values[name] if name else None for name in node.inputs]
    if node.operator in {"Shape", "Size"}:  # sizes are static whatever the tensor holds
        all_static = True
    else:
        all_static = all(value is None or isinstance(value, np.ndarray) for value in given) and not known.subgraphs
    if known.subgraphs:
        node = Node(node.operator, node.name, node.inputs, node.outputs, node.attributes, node.opset, values)
    with _outside_of_traces() if all_static else nullcontext():
        arguments = _arguments(known, node, given, {} if all_static else weights)
        result = known.run(node, *arguments)
        outputs: Sequence[Tensor | None] = (result,) if isinstance(result, Tensor) else result
        found = {name: output for name, output in zip(node.outputs, outputs, strict=False) if name and output is not None}
        return {name: static(output) for name, output in found.items()} if all_static else {**found}


def _arguments(
    known: Operator, node: Node, given: Sequence[Value | None], weights: Mapping[str, Tensor]
) -> Iterator[Value | None]:
    for position, (name, value) in enumerate(zip(node.inputs, given, strict=True)):
        if value is None:
            yield None
        elif position in known.static:
            if isinstance(value, Tensor):
                refuse_data(node, DECISIONS.get(node.operator, f"input {position} ({name})"))
            yield static(value)
        else:
            yield weights[name] if name in weights and isinstance(value, np.ndarray) else as_tensor(value)


@contextmanager
def _outside_of_traces() -> Iterator[None]:
    """Static values are numbers, also while an exporter watches: its modes would make tensors without values of them."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():  # noqa: SLF001 - torch has no public way
        yield


def as_tensor(value: Value) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))


def static(value: Value) -> Static:
    """A value as numpy."""
    if isinstance(value, np.ndarray):
        return value
    if value.dtype == torch.bfloat16:
        value = value.float()
    return value.detach().cpu().numpy()


def _array(tensor: onnx.TensorProto) -> Static:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise UnsupportedError(f"initializer {tensor.name!r} is in another file; load the model with its external data")
    array: Static = numpy_helper.to_array(tensor)
    if array.dtype.isbuiltin != 1:  # 8-bit floats, 4-bit integers and bfloat16 are no numpy types
        raise UnsupportedError(
            f"tensor {tensor.name!r}: element type {onnx.TensorProto.DataType.Name(tensor.data_type)} is not supported"
        )
    return array
