"""An int8 ONNX file as x86 without VNNI runs it if nobody tells ONNX Runtime not to: two products added in 16 bits saturate.

`vpmaddubsw` multiplies bytes without a sign (activations, shifted by 128 where they have one) by bytes with a sign (weights)
and adds each two neighbours to an int16 that stops at its ends. Here each convolution of one group and each Gemm whose
activations and weights are dequantized right before it becomes floats that do the same: every pair of products by itself,
clipped, then the sum. Neighbours are channels of one tap, as in the engine's own layout. Depthwise convolutions go another
way in the engine, and stay.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeml.runtime.backends import Array

LOW, HIGH = -32768.0, 32767.0
MOST: Final = 4_000_000  # numbers in the weights of one layer's pairs: larger layers stay


def saturating(model: bytes, *, low: float = LOW, high: float = HIGH) -> bytes | None:
    """The file with its int8 layers as said above, `None` if it has none."""
    loaded = onnx.load_model_from_string(model)
    rewriter = _Rewriter(loaded.graph, low, high)
    nodes: list[Any] = []
    for node in loaded.graph.node:
        made = rewriter.layer(node)
        nodes += [node] if made is None else made
    if not rewriter.changed:
        return None
    del loaded.graph.node[:]
    loaded.graph.node.extend(nodes)
    return bytes(loaded.SerializeToString())


class _Rewriter:
    def __init__(self, graph: Any, low: float, high: float) -> None:
        self._graph, self._limits = graph, (low, high)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {output: node for node in graph.node for output in node.output}
        self.changed = 0
        self._nodes: list[Any] = []

    def layer(self, node: Any) -> list[Any] | None:
        """The nodes in place of `node`; `None`: it stays."""
        if node.op_type not in {"Conv", "Gemm"}:
            return None
        data, weight = (self._makers.get(name) for name in node.input[:2])
        if data is None or weight is None or not self._dequantizes(data) or not self._dequantizes(weight):
            return None
        if weight.input[0] not in self._constants:
            return None
        codes, at = self._value(weight.input[0]), {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if codes.dtype != np.int8 or (len(weight.input) > 2 and self._value(weight.input[2]).any()):
            return None
        self._nodes = []
        made = self._convolution(data, codes, at) if node.op_type == "Conv" else self._product(data, codes, at)
        if made is None:
            return None
        sums, scale = made, self._value(weight.input[1]).reshape(-1)
        rank_of_scale = (1, -1, *[1] * (codes.ndim - 2)) if node.op_type == "Conv" else (1, -1)
        of_both = scale.reshape(rank_of_scale) * self._value(data.input[1])
        real = self._add("Mul", [sums, self._constant(of_both.astype(np.float32))])
        if len(node.input) > 2:
            bias = node.input[2]
            if node.op_type == "Conv":
                bias = self._add("Reshape", [bias, self._constant(np.array(rank_of_scale, np.int64))])
            real = self._add("Add", [real, bias])
        self._nodes[-1].output[0] = node.output[0]
        self.changed += 1
        return self._nodes

    def _convolution(self, data: Any, codes: Array, at: dict[str, Any]) -> str | None:
        outs, ins, *kernel = codes.shape
        taps = int(np.prod(kernel))
        pairs = (ins + 1) // 2
        if at.get("group", 1) != 1 or at.get("auto_pad", b"NOTSET") != b"NOTSET" or 2 * pairs * taps * outs * taps > MOST:
            return None
        rank = len(kernel)
        pads = list(at.get("pads", [0] * 2 * rank))
        around = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
        padded = self._add("Pad", [data.output[0], self._constant(np.array(around, np.int64))])
        given, lowest = self._bytes(padded, data)
        if ins % 2:
            given = self._add("Pad", [given, self._constant(np.array([0] * (rank + 2) + [0, 1] + [0] * rank, np.int64))])
        whole = np.zeros((outs, 2 * pairs, taps), np.float32)
        whole[:, :ins] = codes.reshape(outs, ins, taps)
        alone = np.zeros((pairs, taps, outs, 2, taps), np.float32)
        for tap in range(taps):
            alone[:, tap, :, :, tap] = whole[:, :, tap].reshape(outs, pairs, 2).transpose(1, 0, 2)
        weight = self._constant(alone.reshape(pairs * taps * outs, 2, *kernel))
        kept = {name: at[name] for name in ("strides", "dilations") if name in at}
        products = self._clipped(self._add("Conv", [given, weight], group=pairs, **kept))
        last = [*range(2, rank + 2), 0, 1]  # space, sample, products
        split = self._constant(np.array([0] * (rank + 1) + [pairs * taps, outs], np.int64))
        split = self._add("Reshape", [self._add("Transpose", [products], perm=last), split])
        summed = self._add("ReduceSum", [split, self._constant(np.array([rank + 1], np.int64))], keepdims=0)
        back = self._add("Transpose", [summed], perm=[rank, rank + 1, *range(rank)])
        less = lowest * codes.astype(np.float64).reshape(outs, -1).sum(axis=1)
        return self._add("Sub", [back, self._constant(less.reshape(1, -1, *[1] * rank).astype(np.float32))])

    def _product(self, data: Any, codes: Array, at: dict[str, Any]) -> str | None:
        plain = at.get("alpha", 1.0) == at.get("beta", 1.0) == 1.0 and not at.get("transA", 0)
        if not plain:
            return None
        matrix = codes.T if at.get("transB", 0) else codes
        ins, outs = matrix.shape
        if ins % 2 or ins * outs > MOST:
            return None
        given, lowest = self._bytes(data.output[0], data)
        paired = self._add("Reshape", [given, self._constant(np.array([0, ins // 2, 1, 2], np.int64))])
        weight = self._constant(matrix.reshape(ins // 2, 2, outs).astype(np.float32))
        products = self._clipped(self._add("MatMul", [paired, weight]))
        summed = self._add("ReduceSum", [products, self._constant(np.array([1, 2], np.int64))], keepdims=0)
        less = lowest * matrix.astype(np.float64).sum(axis=0)
        return self._add("Sub", [summed, self._constant(less.reshape(1, -1).astype(np.float32))])

    def _bytes(self, name: str, data: Any) -> tuple[str, float]:
        """What was dequantized, as bytes without a sign, and what zero is among them."""
        point = self._value(data.input[2]) if len(data.input) > 2 else np.zeros((), np.uint8)
        lowest = float(point.astype(np.float64)) - float(np.iinfo(point.dtype).min)
        codes = self._add("Round", [self._add("Div", [name, data.input[1]])])
        return self._add("Add", [codes, self._constant(np.array(lowest, np.float32))]), lowest

    def _clipped(self, name: str) -> str:
        low, high = self._limits
        return self._add("Clip", [name, self._constant(np.array(low, np.float32)), self._constant(np.array(high, np.float32))])

    def _dequantizes(self, node: Any) -> bool:
        return node.op_type == "DequantizeLinear" and all(name in self._constants for name in node.input[1:])

    def _value(self, name: str) -> Array:
        return np.asarray(numpy_helper.to_array(self._constants[name]))

    def _constant(self, values: Array) -> str:
        name = f"saturating_{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        name = f"saturating_{self.changed}_{len(self._nodes)}_{operator}"
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name
