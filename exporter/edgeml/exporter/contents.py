"""What a model file holds: its operators, and the precision that its tensors really have, whatever its name says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from edgeml.wire.manifest import Format

WEIGHTS = frozenset(
    {"float32", "float16", "float64", "int8", "uint8", "int16", "int4", "uint4", "palette4", "palette6", "palette8"}
)
LEAST_SHARE = 0.01  # of the elements; less is scales and offsets
_ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear"})  # whose second and third inputs are scales and zero points


def contents(format_: Format, model: bytes) -> tuple[str, dict[str, int]]:
    """(precision found, operators) of a model: precisions of its weights, the largest share of elements first."""
    elements, operators = {"onnx": _onnx, "tflite": _tflite, "coreml": _coreml}[format_](model)
    total = sum(elements.values())
    kept = [kind for kind, count in elements.most_common() if count >= LEAST_SHARE * total]
    return "+".join(kept) or "no weights", dict(sorted(operators.items()))


def _weights(pairs: Iterable[tuple[str, int]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for kind, count in pairs:
        if kind in WEIGHTS:
            found[kind] += count
    return found


def _onnx(model: bytes) -> tuple[Counter[str], Counter[str]]:
    import onnx
    from onnx import numpy_helper

    proto = onnx.load_model_from_string(model)
    steps = {name for node in proto.graph.node if node.op_type in _ROUNDING for name in node.input[1:]}
    arrays = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name not in steps)
    return _weights((array.dtype.name, array.size) for array in arrays), Counter(node.op_type for node in proto.graph.node)


def _tflite(model: bytes) -> tuple[Counter[str], Counter[str]]:
    from ai_edge_litert import schema_py_generated as schema

    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    kinds = {value: name.lower() for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    weights: list[tuple[str, int]] = []
    operators: Counter[str] = Counter()
    for graph in parsed.subgraphs:
        constant = [tensor for tensor in graph.tensors if _holds_data(parsed.buffers[tensor.buffer])]
        weights += [(kinds[t.type], math.prod(map(int, () if t.shape is None else t.shape))) for t in constant]
        for operator in graph.operators or ():
            code = parsed.operatorCodes[operator.opcodeIndex]
            operators[codes[max(code.builtinCode, code.deprecatedBuiltinCode)]] += 1
    return _weights(weights), operators


def _holds_data(buffer: Any) -> bool:
    """Whether a buffer is a constant: within the tables, or (in larger models) behind them, at its offset."""
    return bool(buffer.size) or (buffer.data is not None and len(buffer.data) > 0)


def _coreml(model: bytes) -> tuple[Counter[str], Counter[str]]:
    from edgeml.exporter.mil.backend import count_elements, count_operations

    return _weights(count_elements(model).items()), Counter(count_operations(model))
