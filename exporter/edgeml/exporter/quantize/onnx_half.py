"""An ONNX graph in float16, inputs and outputs as they were.

Each operator's schema says which of its inputs may be float16. A value exists as float32 under its own name, as float16 under
`name/half`, or both: a Cast makes the form that a reader wants. Operators whose schema has no float16, those with sub-graphs,
and those next to a value that float16 cannot hold stay float32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.exporter.calibrate.checks import FLOAT16_LIMIT
from edgeml.exporter.quantize.fold import attribute, captured, initializers, read_names
from edgeml.runtime.backends import Array

HALF: Final = "tensor(float16)"
SMALLEST: Final = 2.0**-24  # of float16; half of it is rounded to zero


def to_half(proto: Any, overflowing: Collection[str] = ()) -> tuple[Any, int]:
    """(a copy in float16, how many operators stay float32); `overflowing` names values beyond float16 besides constants."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    writer = _Writer(copy, set(overflowing))
    return writer.write(), writer.kept


def overflows(values: Array) -> bool:
    return values.dtype == np.float32 and values.size > 0 and float(np.abs(values).max()) > FLOAT16_LIMIT


def _vanishes(values: Array) -> bool:
    """Whether a single constant would become zero: a divisor's epsilon, say."""
    return values.size == 1 and values.dtype == np.float32 and 0.0 < float(np.abs(values).max()) <= SMALLEST / 2


class _Writer:
    def __init__(self, proto: Any, overflowing: set[str]) -> None:
        self.proto, self.graph, self.kept = proto, proto.graph, 0
        self.constants = initializers(proto.graph)
        arrays = {name: numpy_helper.to_array(tensor) for name, tensor in self.constants.items()}
        self.unfit = overflowing | {name for name, values in arrays.items() if overflows(values) or _vanishes(values)}
        self.floats = _float_values(proto)
        self.opsets = {entry.domain or "": entry.version for entry in proto.opset_import}
        self.forms: dict[str, set[str]] = {}
        self.nodes: list[Any] = []

    def write(self) -> Any:
        for value in (*self.graph.input, *self.graph.initializer):
            self.forms[value.name] = {value.name}
        for node in self.graph.node:
            self._add(node)
        for output in self.graph.output:
            self._wanted(output.name, half=False)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.value_info[:]
        used = {name for node in self.nodes for name in read_names(node)} | {output.name for output in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        return self.proto

    def _add(self, node: Any) -> None:
        """The node with its inputs and outputs in the forms it takes."""
        names = list(node.output)
        to_float = node.op_type == "Cast" and attribute(node, "to", 0) == TensorProto.FLOAT
        given, made = self._half_positions(node)
        if any(name in self.unfit for name in (*node.input, *names)):
            given, made = set(), set()
        elif to_float:
            next(a for a in node.attribute if a.name == "to").i = TensorProto.FLOAT16
            made = {0}
        if self.floats & {*node.input, *names} and not given and not made:
            self.kept += 1
        for outer in captured(node):
            self._wanted(outer, half=False)
        node.input[:] = [self._wanted(name, half=i in given) if name else "" for i, name in enumerate(node.input)]
        node.output[:] = [f"{name}/half" if i in made and name else name for i, name in enumerate(names)]
        for name, form in zip(names, node.output, strict=True):
            self.forms[name] = {form}
        self.nodes.append(node)

    def _wanted(self, name: str, *, half: bool) -> str:
        """The name of a value in the form a reader wants, made if it is not there yet."""
        form = f"{name}/half" if half else name
        forms = self.forms.get(name)
        if name not in self.floats or forms is None or form in forms:
            return form if forms is not None and form in forms else name
        if name in self.constants:
            values = numpy_helper.to_array(self.constants[name]).astype(np.float16)
            self.graph.initializer.append(numpy_helper.from_array(values, form))
        else:
            kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self.nodes.append(helper.make_node("Cast", [next(iter(forms))], [form], to=kind))
        forms.add(form)
        return form

    def _half_positions(self, node: Any) -> tuple[set[int], set[int]]:
        """Positions of float32 inputs that may be float16, and of outputs that then are."""
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            return set(), set()
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:
            return set(), set()
        allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
        given = {
            i for i, name in enumerate(node.input)
            if name in self.floats and HALF in allowed.get(_kind(schema.inputs, i), ())
        }  # fmt: skip
        kinds = {_kind(schema.inputs, i) for i in given}
        return given, {i for i, name in enumerate(node.output) if name in self.floats and _kind(schema.outputs, i) in kinds}


def _kind(formals: Any, position: int) -> str:
    """The type of an input or output: a constraint's name or a type; the last one may stand for any number."""
    kind: str = formals[min(position, len(formals) - 1)].type_str
    return kind


def _float_values(proto: Any) -> set[str]:
    """The names of all float32 values of the main graph."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    found = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {tensor.name for tensor in proto.graph.initializer if tensor.data_type == TensorProto.FLOAT}
