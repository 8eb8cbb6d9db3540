"""Small weights in an ONNX graph: constants as int8 or int4 behind a DequantizeLinear; operators compute in float32.

int8 has one scale per output channel. int4 (opset 21) has one per 32 inputs of an output channel; what has fewer inputs than
that stays int8, and a convolution's kernel is stored as a matrix that a Reshape brings into its form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.exporter.quantize.fold import attribute, initializers, read_names
from edgeml.exporter.quantize.rounding import LIMIT, LIMIT4, block_scales, spread
from edgeml.exporter.quantize.weights import BLOCK, LEAST_WEIGHTS
from edgeml.runtime.backends import Array
from edgeml.wire.errors import UnsupportedError

OPSET21: Final = 21  # the first with 4-bit integers, blocks, and 16 bits in QuantizeLinear
IR10: Final = 10  # what goes with it
RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})  # no engine runs them on integers


def places(node: Any) -> dict[int, tuple[int, int]]:
    """Which inputs of a node are weights: position -> (axis of output channels, axis of inputs)."""
    if node.op_type == "Gemm":
        return {1: (0, 1) if attribute(node, "transB", 0) else (1, 0)}
    return {
        "Conv": {1: (0, 1)}, "ConvTranspose": {1: (1, 0)}, "MatMul": {0: (-2, -1), 1: (-1, -2)},
        "LSTM": {1: (1, 2), 2: (1, 2)}, "GRU": {1: (1, 2), 2: (1, 2)}, "RNN": {1: (1, 2), 2: (1, 2)},
    }.get(node.op_type, {})  # fmt: skip


def is_weight(tensor: Any) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2 and int(np.prod(tensor.dims)) >= LEAST_WEIGHTS


def weighty_nodes(proto: Any) -> tuple[tuple[str, str], ...]:
    """(kind, first output) of each node with weights to make small."""
    constants = initializers(proto.graph)
    return tuple(
        (node.op_type, node.output[0])
        for node in proto.graph.node
        if any(
            position < len(node.input) and node.input[position] in constants and is_weight(constants[node.input[position]])
            for position in (*places(node), *([0] if _is_table(node) else []))
        )
    )


def at_opset(proto: Any, least: int) -> Any:
    """The model at least at an opset.

    Raises:
        UnsupportedError: onnx cannot bring it there.
    """
    version = next(entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"})
    if version < least:
        try:
            proto = onnx.version_converter.convert_version(proto, least)
        except Exception as error:
            raise UnsupportedError(f"onnx cannot bring the model from opset {version} to {least}: {error}") from error
        del proto.graph.value_info[:]  # of names that will be given to other values
    proto.ir_version = max(proto.ir_version, IR10)
    return proto


def _is_table(node: Any) -> bool:
    """Whether a node picks rows of its first input: an embedding, if that is a constant."""
    return bool(node.op_type == "Gather" and attribute(node, "axis", 0) == 0)


class SmallWeights:
    """Writes small weights into a graph; the same constant is stored once."""

    def __init__(self, proto: Any, scales: Mapping[str, Array], keep_float: frozenset[str] = frozenset()) -> None:
        """`scales`: of weights that are rounded already, by name, (outputs,) or (outputs, blocks).

        `keep_float` names outputs of nodes whose weights stay float.
        """
        self.graph, self.scales, self.keep_float = proto.graph, scales, keep_float
        self.constants = initializers(proto.graph)
        self.counts = {8: 0, 4: 0}
        self._stored: dict[tuple[str, int, int], str] = {}
        self._before: list[Any] = []

    def write(self, bits: int, only: frozenset[str] | None = None) -> None:
        """Store every weight of the graph that still is float32; of `only` these kinds of operators, if given."""
        nodes = list(self.graph.node)
        del self.graph.node[:]
        for node in nodes:
            if self.keep_float & set(node.output) or (only is not None and node.op_type not in only):
                self.graph.node.append(node)
            elif _is_table(node) and self._is_weight(node.input[0]):
                self._look_up(node)
            else:
                for position, axes in places(node).items():
                    if position < len(node.input) and self._is_weight(node.input[position]):
                        node.input[position] = self._store(node.input[position], node.op_type, axes, bits)
                self.graph.node.append(node)
        self.finish()

    def finish(self) -> None:
        """Put what unpacks the weights before everything else, and drop the float32 constants nothing reads any more."""
        nodes = [*self._before, *self.graph.node]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in read_names(node)} | {output.name for output in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def codes(self, name: str, axis: int) -> tuple[Array, Array]:
        """(int8 codes, one float32 scale per channel along `axis`)."""
        values = numpy_helper.to_array(self.constants[name])
        others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        largest = np.abs(values).max(axis=others)
        scales = self.scales.get(name)
        if scales is None or scales.ndim != 1:
            scales = np.where(largest > 0, largest / LIMIT, 1.0)
        scales = scales.astype(np.float32)
        shape = [-1 if i == axis % values.ndim else 1 for i in range(values.ndim)]
        return np.clip(np.round(values / scales.reshape(shape)), -LIMIT, LIMIT).astype(np.int8), scales

    def add(self, name: str, values: Array, *, four_bits: bool = False) -> str:
        tensor = (
            helper.make_tensor(name, TensorProto.INT4, values.shape, values.ravel())
            if four_bits
            else numpy_helper.from_array(np.ascontiguousarray(values), name)
        )
        self.graph.initializer.append(tensor)
        return name

    def _is_weight(self, name: str) -> bool:
        return name in self.constants and is_weight(self.constants[name])

    def _look_up(self, node: Any) -> None:
        """A row of a table is picked as int8, with its own scale: unpacking the whole table would be done for each call."""
        name, out = node.input[0], node.output[0]
        if (name, 0, 0) not in self._stored:
            stored, scales = self.codes(name, 0)
            rank = len(self.constants[name].dims)
            self._stored[name, 0, 0] = self.add(f"{name}/rows", stored)
            self.add(f"{name}/row_scales", scales.reshape(-1, *[1] * (rank - 1)))
            self.counts[8] += 1
        self.graph.node.extend(
            [
                helper.make_node("Gather", [f"{name}/rows", node.input[1]], [f"{out}/codes"], axis=0),
                helper.make_node("Gather", [f"{name}/row_scales", node.input[1]], [f"{out}/scales"], axis=0),
                helper.make_node("Cast", [f"{out}/codes"], [f"{out}/steps"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{out}/steps", f"{out}/scales"], [out]),
            ]
        )

    def _store(self, name: str, kind: str, axes: tuple[int, int], bits: int) -> str:
        key = (name, *axes)
        if key not in self._stored:
            values = numpy_helper.to_array(self.constants[name])
            inputs = values[0].size if kind == "Conv" else values.shape[axes[1]]
            four = bits == 4 and inputs >= BLOCK
            prefix = f"{name}/{len(self._stored)}"  # one constant may be weights along two axes
            real = (
                self._four(name, prefix, values, kind, axes[1] % values.ndim)
                if four
                else self._eight(name, prefix, axes[0] % values.ndim)
            )
            self.counts[4 if four else 8] += 1
            self._stored[key] = real
        return self._stored[key]

    def _eight(self, name: str, prefix: str, axis: int) -> str:
        stored, scales = self.codes(name, axis)
        # Without a zero point ONNX Runtime's way to exact int8 on x86 makes one of the wrong shape.
        zeros = self.add(f"{prefix}/zeros", np.zeros(scales.shape, np.int8))
        inputs = [self.add(f"{prefix}/int8", stored), self.add(f"{prefix}/scales", scales), zeros]
        self._before.append(helper.make_node("DequantizeLinear", inputs, [f"{prefix}/real"], axis=axis))
        return f"{prefix}/real"

    def _four(self, name: str, prefix: str, values: Array, kind: str, axis: int) -> str:
        shape = values.shape
        if kind == "Conv":
            values, axis = values.reshape(len(values), -1), 1
        rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).astype(np.float64)
        scales = self.scales.get(name)
        if scales is None or scales.ndim != 2:
            scales = block_scales(rows, BLOCK)
        codes = np.clip(np.round(rows / spread(scales, BLOCK, rows.shape[1])), -LIMIT4, LIMIT4).astype(np.int8)

        def native(table: Array) -> Array:
            moved = np.moveaxis(values, axis, -1).shape[:-1]
            return np.moveaxis(table.reshape(*moved, -1), -1, axis)

        inputs = [
            self.add(f"{prefix}/int4", native(codes), four_bits=True),
            self.add(f"{prefix}/scales", native(scales.astype(np.float32))),
        ]
        self._before.append(helper.make_node("DequantizeLinear", inputs, [f"{prefix}/real"], axis=axis, block_size=BLOCK))
        if kind != "Conv":
            return f"{prefix}/real"
        form = self.add(f"{prefix}/form", np.array(shape, np.int64))
        self._before.append(helper.make_node("Reshape", [f"{prefix}/real", form], [f"{prefix}/kernel"]))
        return f"{prefix}/kernel"
