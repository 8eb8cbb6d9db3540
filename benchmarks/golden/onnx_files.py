"""Faults inside an ONNX file: what a broken engine or delegate makes of one layer, as a file that a healthy engine runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.golden import weights as kind
from benchmarks.golden.saturation import saturating
from benchmarks.golden.weights import spread
from edgeml.runtime.backends import Array

WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedMatMul"})
RECURRENT: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}  # gates
ACTIVATIONS: Final = frozenset({"Relu", "Clip", "HardSwish", "HardSigmoid", "LeakyRelu", "Sigmoid", "Tanh"})
THROUGH: Final = frozenset({"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity"})
MOVING: Final = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Cast"})
Edit = Callable[[Any], None]


def faulty_files(model: bytes) -> Iterator[tuple[str, bytes]]:
    """(kind of fault, file) for a few layers of each kind."""
    file = _File(model)
    for node in spread(file.layers()):
        yield from _layer(file, node)
    for node in spread([node for node in file.graph.node if node.op_type in RECURRENT and file.stored(node.input[1])]):
        yield from _recurrent(file, node)
    for index in spread([i for i, node in enumerate(file.graph.node) if node.op_type in ACTIVATIONS]):
        yield kind.NO_ACTIVATION, file.edited(_without(index))
    for index in spread([i for i, node in enumerate(file.graph.node) if _lopsided(node)]):
        yield kind.PADDING, file.edited(_other_end(index))
    for index in spread([i for i, node in enumerate(file.graph.node) if file.joins(node)]):
        yield kind.JOIN, file.edited(_exchanged(index))
    yield from _whole(file)


class _File:
    """A parsed file: its constants, what makes each tensor and what takes it."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.graph = onnx.load_model_from_string(model).graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.given = {value.name for value in self.graph.input} - self.constants.keys()
        self.makers = {output: node for node in self.graph.node for output in node.output}
        self.takers: dict[str, list[Any]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.takers[name].append(node)

    def stored(self, name: str) -> str | None:
        """The initializer behind an input, through what only unpacks it."""
        return self.behind(name, self.constants, THROUGH)

    def behind(self, name: str, ends: Container[str], through: Container[str]) -> str | None:
        """The first of `ends` before a tensor, where only operators of the kinds `through` stand between."""
        while name not in ends:
            node = self.makers.get(name)
            if node is None or node.op_type not in through:
                return None
            name = node.input[0]
        return name

    def layers(self) -> list[Any]:
        """The nodes with weights; of those that share them, one."""
        found = {at: node for node in self.graph.node if node.op_type in WEIGHTED and (at := self.stored(node.input[1]))}
        return list(found.values())

    def values(self, name: str) -> Array:
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def scale_of(self, name: str) -> str | None:
        """The initializer with the scale of what a DequantizeLinear gives."""
        node = self.makers.get(name)
        return (
            node.input[1]
            if node is not None and node.op_type == "DequantizeLinear" and node.input[1] in self.constants
            else None
        )

    def shifted(self, node: Any) -> bool:
        """Whether a QuantizeLinear or DequantizeLinear has a zero point, and it is not 0."""
        return len(node.input) > 2 and node.input[2] in self.constants and bool(self.values(node.input[2]).any())

    def joins(self, node: Any) -> bool:
        return node.op_type == "Concat" and len(node.input) > 1 and not any(self.stored(name) for name in node.input[:2])

    def edited(self, edit: Edit) -> bytes:
        changed = onnx.load_model_from_string(self.model)
        edit(changed.graph)
        return bytes(changed.SerializeToString())

    def with_values(self, name: str | None, values: Array) -> bytes:
        def edit(graph: Any) -> None:
            for tensor in graph.initializer:
                if tensor.name == name:
                    dtype = numpy_helper.to_array(tensor).dtype
                    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values.astype(dtype)), tensor.name))

        return self.edited(edit)

    def with_zero_point_0(self, node: Any) -> bytes:
        """`node` is a QuantizeLinear; whatever takes its integers keeps its own zero point."""
        zero = numpy_helper.from_array(np.zeros_like(self.values(node.input[2])), f"{node.output[0]}_stuck")

        def edit(graph: Any) -> None:
            graph.initializer.append(zero)
            next(one for one in graph.node if one.output[0] == node.output[0]).input[2] = zero.name

        return self.edited(edit)


def _layer(file: _File, node: Any) -> Iterator[tuple[str, bytes]]:
    weight = file.stored(node.input[1])
    assert weight is not None
    values = file.values(weight)
    for name, changed in kind.damaged(values, _channel_axis(node, values)):
        yield name, file.with_values(weight, changed)
    if (scale := file.scale_of(node.input[1])) is not None:
        scales = file.values(scale)
        yield kind.SCALED, file.with_values(scale, scales * kind.SCALE)
        if np.ptp(scales):
            yield kind.ONE_SCALE, file.with_values(scale, np.full_like(scales, scales.reshape(-1)[0]))
    if len(node.input) > 2 and (bias := file.stored(node.input[2])) is not None and file.values(bias).any():
        yield kind.NO_BIAS, file.with_values(bias, file.values(bias) * 0)
    reads = file.makers.get(node.input[0])
    if reads is not None and reads.op_type == "DequantizeLinear" and file.shifted(reads):
        yield kind.STUCK_READ, file.edited(_reads_from_0(node, reads))
    writes = _written(file, node)
    if writes is not None and file.shifted(writes):
        yield kind.STUCK_WRITTEN, file.with_zero_point_0(writes)


def _channel_axis(node: Any, values: Array) -> int:
    if node.op_type == "ConvTranspose":
        return 1
    turned = node.op_type == "Gemm" and any(one.name == "transB" and one.i for one in node.attribute)
    return values.ndim - 1 if node.op_type in {"MatMul", "FusedMatMul", "Gemm"} and not turned else 0


def _recurrent(file: _File, node: Any) -> Iterator[tuple[str, bytes]]:
    """Weights (directions, gates x hidden, input), the same for the state, biases (directions, 2 x gates x hidden)."""
    for position in (1, 2):
        weight = file.stored(node.input[position])
        if weight is None:
            continue
        values, gates = file.values(weight), RECURRENT[node.op_type]
        for name, changed in kind.damaged(values, 1):
            yield name, file.with_values(weight, changed)
        if gates > 1:
            yield kind.GATES, file.with_values(weight, kind.gates_exchanged(values, 1, gates))
    if len(node.input) > 3 and node.input[3] and (bias := file.stored(node.input[3])) is not None:
        yield kind.NO_BIAS, file.with_values(bias, file.values(bias) * 0)


def _written(file: _File, node: Any) -> Any | None:
    """The QuantizeLinear of a layer's answer, behind its activation."""
    takers = file.takers[node.output[0]]
    while len(takers) == 1:
        if takers[0].op_type == "QuantizeLinear":
            return takers[0]
        if takers[0].op_type not in ACTIVATIONS:
            return None
        takers = file.takers[takers[0].output[0]]
    return None


def _reads_from_0(node: Any, reads: Any) -> Edit:
    def edit(graph: Any) -> None:
        at = next(i for i, one in enumerate(graph.node) if one.output[0] == node.output[0])
        own = helper.make_node("DequantizeLinear", reads.input[:2], [f"{node.output[0]}_stuck"], f"{node.name}_stuck")
        graph.node[at].input[0] = own.output[0]
        graph.node.insert(at, own)

    return edit


def _without(index: int) -> Edit:
    def edit(graph: Any) -> None:
        node = graph.node[index]
        node.op_type = "Identity"
        del node.input[1:]
        del node.attribute[:]

    return edit


def _pads(node: Any) -> Any | None:
    return next((one for one in node.attribute if one.name == "pads"), None)


def _lopsided(node: Any) -> bool:
    pads = _pads(node)
    half = len(pads.ints) // 2 if pads is not None else 0
    return bool(pads is not None and list(pads.ints[:half]) != list(pads.ints[half:]))


def _other_end(index: int) -> Edit:
    def edit(graph: Any) -> None:
        pads = _pads(graph.node[index])
        assert pads is not None
        half = len(pads.ints) // 2
        pads.ints[:] = [*pads.ints[half:], *pads.ints[:half]]

    return edit


def _exchanged(index: int) -> Edit:
    def edit(graph: Any) -> None:
        node = graph.node[index]
        node.input[0], node.input[1] = node.input[1], node.input[0]

    return edit


def _whole(file: _File) -> Iterator[tuple[str, bytes]]:
    """Faults of the engine as a whole, and of the input."""
    quantizers = [node for node in file.graph.node if node.op_type == "QuantizeLinear"]
    for node in quantizers:
        if file.shifted(node) and file.behind(node.input[0], file.given, MOVING) is not None:
            yield kind.STUCK_INPUT, file.with_zero_point_0(node)
    if quantizers:
        yield kind.CUT, file.edited(_rounds_down)
        if (model := saturating(file.model)) is not None:
            yield kind.SATURATED, model
    else:
        yield kind.BRAIN_FLOAT, file.edited(_brain_float)


def _rounds_down(graph: Any) -> None:
    """Half a step is taken off before each rounding."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in constants:
            half = numpy_helper.from_array(-constants[node.input[1]] / 2, f"{node.output[0]}_half")
            graph.initializer.append(half)
            nodes.append(helper.make_node("Add", [node.input[0], half.name], [f"{node.output[0]}_less"]))
            node.input[0] = nodes[-1].output[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _brain_float(graph: Any) -> None:
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype in {np.dtype(np.float32), np.dtype(np.float16)} and values.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(kind.cut(values), tensor.name))
