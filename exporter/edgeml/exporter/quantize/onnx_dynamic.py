"""Dynamic int8 in ONNX: int8 weights, and activations that are rounded when the model runs, by the range they have then.

Matrix products and LSTM layers compute in integers; other weights (convolutions, whose integer kernel without fixed ranges
takes four times as long as the float one) are stored as int8 and computed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgeml.exporter.quantize.fold import attribute
from edgeml.exporter.quantize.onnx_weights import SmallWeights, is_weight
from edgeml.exporter.quantize.rounding import LIMIT
from edgeml.runtime.backends import Array

CONTRIB = "com.microsoft"


def write_dynamic(proto: Any, small: SmallWeights) -> int:
    """Make the graph dynamic; gives how many products and recurrent layers compute in integers."""
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    writer = _Writer(proto, small)
    for node in nodes:
        if small.keep_float & set(node.output):
            proto.graph.node.append(node)
        elif _is_product(node, small):
            writer.product(node)
        elif _is_lstm(node, small):
            writer.lstm(node)
        else:
            proto.graph.node.append(node)
    return writer.number


def _is_product(node: Any, small: SmallWeights) -> bool:
    if node.op_type not in {"Gemm", "MatMul"} or node.input[1] not in small.constants or node.input[0] in small.constants:
        return False
    if node.op_type == "Gemm" and (
        attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0 or attribute(node, "transA", 0)
    ):
        return False
    weights = small.constants[node.input[1]]
    return is_weight(weights) and len(weights.dims) == 2


def _is_lstm(node: Any, small: SmallWeights) -> bool:
    if node.op_type != "LSTM" or attribute(node, "layout", 0):
        return False
    return all(name in small.constants and is_weight(small.constants[name]) for name in node.input[1:3])


class _Writer:
    def __init__(self, proto: Any, small: SmallWeights) -> None:
        self.proto, self.graph, self.small, self.number = proto, proto.graph, small, 0
        self._rounded: dict[str, list[str]] = {}

    def product(self, node: Any) -> None:
        """A product with x rounded to uint8 over its own range: (codes @ stored) * input scale * weight scales + bias."""
        swapped = node.op_type == "Gemm" and attribute(node, "transB", 0)
        name, out = node.input[1], node.output[0]
        stored, scales = self.small.codes(name, 0 if swapped else 1)
        weights = self.small.add(f"{out}/weights", stored.T if swapped else stored)
        steps = self.small.add(f"{out}/scales", scales)
        codes, scale, zero = self._input(node.input[0])
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else ""
        self._node("MatMulInteger", [codes, weights, zero], f"{out}/sums")
        self._node("Cast", [f"{out}/sums"], f"{out}/float", to=TensorProto.FLOAT)
        self._node("Mul", [scale, steps], f"{out}/step")
        self._node("Mul", [f"{out}/float", f"{out}/step"], f"{out}/product" if bias else out)
        if bias:
            self._node("Add", [f"{out}/product", bias], out)
        self.number += 1

    def lstm(self, node: Any) -> None:
        """ONNX Runtime's DynamicQuantizeLSTM: weights (directions, inputs, 4 * hidden), a scale per row of the original."""
        small, name = self.small, node.output[0] or node.output[1]
        tables = []
        for position in (1, 2):
            stored, scales = _by_direction(small, node.input[position])
            weights = small.add(f"{name}/{position}/weights", np.ascontiguousarray(stored.transpose(0, 2, 1)))
            steps = small.add(f"{name}/{position}/scales", scales)
            zeros = small.add(f"{name}/{position}/zeros", np.zeros(scales.shape, np.int8))
            tables.append((weights, steps, zeros))
        given = [*node.input, *[""] * (8 - len(node.input))]
        (w, w_steps, w_zeros), (r, r_steps, r_zeros) = tables
        inputs = [given[0], w, r, *given[3:8], w_steps, w_zeros, r_steps, r_zeros]
        made = helper.make_node("DynamicQuantizeLSTM", inputs, list(node.output), domain=CONTRIB)
        made.attribute.extend(a for a in node.attribute if a.name != "layout")
        self.graph.node.append(made)
        if all(opset.domain != CONTRIB for opset in self.proto.opset_import):
            self.proto.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        self.number += 1

    def _input(self, name: str) -> list[str]:
        """Codes, scale and zero point of a tensor, made once for all its readers."""
        if name not in self._rounded:
            self._rounded[name] = [f"{name}/codes", f"{name}/scale", f"{name}/zero"]
            self.graph.node.append(helper.make_node("DynamicQuantizeLinear", [name], self._rounded[name]))
        return self._rounded[name]

    def _node(self, kind: str, inputs: list[str], output: str, **options: Any) -> None:
        self.graph.node.append(helper.make_node(kind, inputs, [output], **options))


def _by_direction(small: SmallWeights, name: str) -> tuple[Array, Array]:
    """int8 codes (directions, rows, inputs) and scales (directions, rows)."""
    values = numpy_helper.to_array(small.constants[name])
    largest = np.abs(values).max(axis=2)
    scales = np.where(largest > 0, largest / LIMIT, 1.0).astype(np.float32)
    return np.clip(np.round(values / scales[:, :, None]), -LIMIT, LIMIT).astype(np.int8), scales
