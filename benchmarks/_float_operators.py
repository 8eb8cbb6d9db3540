"""How many of a quantized file's computing operators are left in float: one reason why a file errs less than another."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from edgeml.wire.manifest import Format

MOVING: Final = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather", "Shape", "Cast", "Concat",
     "Split", "Expand", "Pad", "Constant", "ConstantOfShape", "Range", "DepthToSpace", "SpaceToDepth", "MaxPool"}
)  # fmt: skip
FUSED: Final = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish"})  # behind a layer they are part of it
ROUNDING: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QUANTIZE", "DEQUANTIZE"})


class Count(NamedTuple):
    in_float: int
    operators: int


def count_float(model: bytes, format_: Format) -> Count | None:
    """Of the main graph; `None` for Core ML, where all compute in float16."""
    return {"onnx": _onnx, "tflite": _tflite}[format_](model) if format_ != "coreml" else None


def _onnx(model: bytes) -> Count:
    import onnx

    graph = onnx.load_from_string(model).graph
    unpacked = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    moved = {name: node for node in graph.node if node.op_type in MOVING for name in node.output}

    def is_integer(name: str) -> bool:
        while name in moved and moved[name].input:
            name = moved[name].input[0]
        return name in unpacked

    def in_float(node: Any) -> bool:
        if node.op_type.startswith("Q") or node.op_type.endswith("Integer"):
            return False
        values = [name for name in node.input if name and name not in constants]
        return not (values and all(is_integer(name) for name in values))

    counted = [node for node in graph.node if node.op_type not in MOVING | FUSED | ROUNDING]
    return Count(sum(map(in_float, counted)), len(counted))


def _tflite(model: bytes) -> Count:
    from edgeml.exporter.quantize.tflite_network import MOVING as MOVED
    from edgeml.exporter.source.tflite_graphs import parse_model, schema

    names, parsed = schema(), parse_model(model)
    kinds = {value: name for name, value in vars(names.BuiltinOperator).items() if isinstance(value, int)}
    graph, total, floats = parsed.subgraphs[0], 0, 0
    for operator in graph.operators:
        code = parsed.operatorCodes[operator.opcodeIndex]
        if kinds[max(code.builtinCode, code.deprecatedBuiltinCode)] in MOVED | ROUNDING | {"CONCATENATION"}:
            continue
        total += 1
        given = [index for index in (*operator.inputs[:2], *operator.outputs[:1]) if index >= 0]
        floats += all(graph.tensors[int(index)].type == names.TensorType.FLOAT32 for index in given)
    return Count(floats, total)
