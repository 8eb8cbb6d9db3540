"""A TFLite file as a microcontroller sees it: its operators and tensors, and its edges taken off.

Read and written with the schema that comes with tflite-micro, so that nothing but `[micro]` is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgeml.exporter.source.tflite_graphs import IDENTIFIER, pack_model
from edgeml.wire.errors import MissingExtraError, ModelError, UnsupportedError
from edgeml.wire.manifest import DType, Quantization

DTYPES: Final[dict[str, DType]] = {
    "FLOAT32": "float32", "INT8": "int8", "UINT8": "uint8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the graph."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    quantization: Quantization | None


@dataclass(frozen=True, slots=True)
class Operator:
    """`kind` is the schema's word, or a custom operator's name; `floats` says that it reads or gives float32."""

    kind: str
    custom: bool
    floats: bool


@dataclass(frozen=True, slots=True)
class Graph:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operators: tuple[Operator, ...]


@dataclass(frozen=True, slots=True)
class Stripped:
    """A model without float edges: the QUANTIZE after these inputs, the DEQUANTIZE before these outputs (by index) are gone."""

    model: bytes
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_graph(model: bytes) -> Graph:
    """The operators of all graphs, the inputs and outputs of the main one.

    Raises:
        ModelError: not a TFLite file.
        UnsupportedError: a tensor of a kind that boards do not have, or of an open size.
    """
    schema, parsed = _parse(model)
    main = parsed.subgraphs[0]
    kinds = _names(schema.TensorType)
    return Graph(
        tuple(_tensor(main.tensors[index], kinds) for index in main.inputs),
        tuple(_tensor(main.tensors[index], kinds) for index in main.outputs),
        tuple(operator for graph in parsed.subgraphs for operator in _operators(schema, parsed, graph)),
    )


def strip_edges(model: bytes) -> Stripped:
    """Take off the rounding at the edges: what was a float32 input or output with int8 behind it becomes int8 itself.

    One with 16 bits behind it stays float32.
    """
    schema, parsed = _parse(model)
    main, kinds = parsed.subgraphs[0], _names(schema.BuiltinOperator)
    inputs, outputs, gone = list(map(int, main.inputs)), list(map(int, main.outputs)), []

    def kind(operator: Any) -> str | None:
        return kinds.get(_code(parsed, operator))

    def is_int8(tensor: int) -> bool:
        return bool(main.tensors[tensor].type == schema.TensorType.INT8)

    taken_in, taken_out = [], []
    for position, tensor in enumerate(inputs):
        readers = [operator for operator in main.operators if tensor in map(int, operator.inputs)]
        rounds = len(readers) == 1 and kind(readers[0]) == "QUANTIZE" and tensor not in outputs
        if rounds and is_int8(int(readers[0].outputs[0])):
            inputs[position] = int(readers[0].outputs[0])
            gone.append(readers[0])
            taken_in.append(position)
    for position, tensor in enumerate(outputs):
        makers = [operator for operator in main.operators if tensor in map(int, operator.outputs)]
        readers = [operator for operator in main.operators if tensor in map(int, operator.inputs)]
        unrounds = len(makers) == 1 and not readers and kind(makers[0]) == "DEQUANTIZE" and outputs.count(tensor) == 1
        if unrounds and is_int8(int(makers[0].inputs[0])):
            outputs[position] = int(makers[0].inputs[0])
            gone.append(makers[0])
            taken_out.append(position)
    if not gone:
        return Stripped(model, (), ())
    main.inputs, main.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    main.operators = [operator for operator in main.operators if not any(operator is one for one in gone)]
    parsed.signatureDefs = None  # they name the tensors that were inputs and outputs; boards do not read them
    return Stripped(pack_model(parsed), tuple(taken_in), tuple(taken_out))


def aligned(model: bytes) -> bytes:
    """The same model with every constant at a multiple of 16 bytes, and equal scales stored once: flash is scarce."""
    _, parsed = _parse(model)
    return pack_model(parsed)


def _parse(model: bytes) -> tuple[Any, Any]:
    try:
        from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema
    except ModuleNotFoundError as error:
        raise MissingExtraError("tflite_micro", "micro") from error
    if model[4:8] != IDENTIFIER:
        raise ModelError("not a TFLite model", expected=repr(IDENTIFIER), got=f"{model[4:8]!r} at byte 4")
    return schema, schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))


def _operators(schema: Any, parsed: Any, graph: Any) -> Iterator[Operator]:
    kinds, types = _names(schema.BuiltinOperator), _names(schema.TensorType)
    for operator in graph.operators or ():
        code = _code(parsed, operator)
        kind = kinds.get(code, f"#{code}")
        custom = kind == "CUSTOM"
        if custom:
            kind = (parsed.operatorCodes[operator.opcodeIndex].customCode or b"?").decode("utf-8", "replace")
        touched = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
        yield Operator(kind, custom, any(types.get(tensor.type) == "FLOAT32" for tensor in touched))


def _code(parsed: Any, operator: Any) -> int:
    """Files from before 2020 carry the number in a byte, later ones in both fields: the larger one counts."""
    code = parsed.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _tensor(tensor: Any, kinds: dict[int, str]) -> Tensor:
    name = tensor.name.decode("utf-8", "replace")
    kind = kinds.get(tensor.type, f"#{tensor.type}")
    if kind not in DTYPES:
        raise UnsupportedError(f"tensor {name!r} is {kind}, which boards do not have")
    shape = tuple(int(size) for size in (() if tensor.shape is None else tensor.shape))
    found = tensor.quantization
    scales: Sequence[float] = [] if found is None or found.scale is None else found.scale
    zeros: Sequence[int] = [] if found is None or found.zeroPoint is None else found.zeroPoint
    quantized = len(scales) == 1 and len(zeros) == 1 and kind != "FLOAT32"
    return Tensor(name, DTYPES[kind], shape, Quantization(float(scales[0]), int(zeros[0])) if quantized else None)
