"""ONNX layer by layer: the model with every inner value as an output, run by ONNX Runtime without graph optimizations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import onnx
from onnx import TensorProto, helper

from edgeml.exporter.layers.trace import Operator, Trace, as_real, enough, stacked
from edgeml.exporter.quantize.fold import read_names
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx
from edgeml.wire.errors import ModelError
from edgeml.wire.manifest import Format

PLAIN: Final = EngineOptions(kernels="reference")
INTEGERS: Final = frozenset({"int8", "uint8", "int16", "uint16", "int4", "uint4", "int32"})
FLOATS: Final = {"FLOAT": "float32", "DOUBLE": "float64"}
ROUNDING: Final = "Rounding"
"""A QuantizeLinear and the DequantizeLinear that follows it, as one operator."""


class OnnxModel:
    """`proto` stays as it is."""

    format: Format = "onnx"

    def __init__(self, data: bytes) -> None:
        self.inputs = open_onnx(data, PLAIN).inputs
        try:
            self.proto: Any = onnx.load_model_from_string(data)
        except Exception as error:
            raise ModelError(f"not an ONNX model: {error}") from error
        self._types = self._inferred_types()
        self.constants = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self.constant_values = set(self.constants)
        self.operators = tuple(self._operators())
        self.outputs = tuple(output.name for output in self.proto.graph.output)

    def trace(self, calls: Iterable[Sequence[Array]]) -> Trace:
        wanted = {name for operator in self.operators for name in operator.outputs}
        copy = onnx.ModelProto()
        copy.CopyFrom(self.proto)
        present = {output.name for output in copy.graph.output}
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - present))
        backend = open_onnx(copy.SerializeToString(), PLAIN)
        seen = []
        for tensors in calls:
            found = dict(zip((raw.name for raw in backend.inputs), tensors, strict=True))
            found |= dict(zip((raw.name for raw in backend.outputs), backend.run(tensors), strict=True))
            seen.append({name: as_real(value) for name, value in found.items()})
            if enough(seen):
                break
        names = tuple(raw.name for raw in self.inputs)
        return Trace("onnx", self.operators, names, self.outputs, stacked(seen))

    def _operators(self) -> Iterable[Operator]:
        """Those that depend on an input; a QuantizeLinear and its DequantizeLinear on an activation count as one."""
        codes: dict[str, str] = {}  # of a QuantizeLinear: its output -> the real values before
        precision: dict[str, str] = {}  # of values that come out of a DequantizeLinear
        for node in self.proto.graph.node:
            moving = [name for name in node.input if name and name not in self.constant_values]
            if node.op_type == "DequantizeLinear" and not moving:
                precision[node.output[0]] = self._dtype(node.input[0])
            if not moving:
                self.constant_values.update(node.output)
                continue
            if node.op_type == "QuantizeLinear":
                codes[node.output[0]] = node.input[0]
                continue
            if node.op_type == "DequantizeLinear" and node.input[0] in codes:
                precision[node.output[0]] = self._dtype(node.input[2]) if len(node.input) > 2 else "uint8"
                yield Operator(node.output[0], ROUNDING, (codes[node.input[0]],), (node.output[0],), precision[node.output[0]])
                continue
            outputs = tuple(name for name in node.output if name)
            weights = [precision[name] for name in node.input if name in precision and name in self.constant_values]
            read = [precision[name] for name in moving if name in precision]
            own = [self._dtype(name) for name in node.input if name in self.constants]
            kinds = [*weights, *read, *(kind for kind in own if kind in INTEGERS - {"int32"} or kind == "float16")]
            yield Operator(
                outputs[0],
                node.op_type,
                tuple(codes.get(name, name) for name in moving),
                outputs,
                kinds[0] if kinds else self._types.get(outputs[0], "float32"),
            )

    def _dtype(self, name: str) -> str:
        if name not in self.constants:
            return "float32"
        name = str(TensorProto.DataType.Name(self.constants[name].data_type))
        return FLOATS.get(name, name.lower())

    def _inferred_types(self) -> dict[str, str]:
        """Of what values there are types for; custom operators leave gaps."""
        graph = onnx.shape_inference.infer_shapes(self.proto).graph
        values = [*graph.input, *graph.value_info, *graph.output]
        names = {value.name: str(TensorProto.DataType.Name(value.type.tensor_type.elem_type)) for value in values}
        return {name: FLOATS.get(kind, kind.lower()) for name, kind in names.items()}

    def stored(self, name: str, values: Array) -> Array:
        """Real numbers as the tensor stores them."""
        kind = self._types.get(name, "float32")
        return values.astype(kind) if kind in {"float16", "float64"} else values

    def cut(self, inputs: Mapping[str, Array], output: str) -> bytes:
        """A model that computes the tensor `output` from the tensors `inputs` (one call's values), and nothing else.

        Constants, and what is computed from constants alone, come along.
        """
        producers = {name: node for node in self.proto.graph.node for name in node.output}
        kept: list[Any] = []
        queue, done = [output], set(inputs)
        while queue:
            name = queue.pop()
            if name in done or name not in producers:
                continue
            done.add(name)
            node = producers[name]
            if not any(node is one for one in kept):
                kept.append(node)
            queue += [source for source in read_names(node) if source]
        ordered = [node for node in self.proto.graph.node if any(node is one for one in kept)]
        used = {name for node in ordered for name in read_names(node)}
        graph = helper.make_graph(
            ordered,
            "piece",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in inputs.items()
            ],
            [onnx.ValueInfoProto(name=output)],
            [tensor for name, tensor in self.constants.items() if name in used],
        )
        piece = helper.make_model(graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version)
        return bytes(piece.SerializeToString(deterministic=True))
