"""What a model file holds, read from its own bytes: no engine or converter is needed, and the file's name is not asked.

facts = inspect_model(Path("kws.tflite").read_bytes())
facts.precision        # 'int8 84 %, float32 16 %': the file called "fp32" may well be int8
"""

from __future__ import annotations

import io
import math
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgeml.runtime import flatbuffer
from edgeml.runtime.protobuf import fields, integer, integers, message, messages, text
from edgeml.wire.errors import ModelError
from edgeml.wire.manifest import Format, Quantization

FILE_LIMIT_BYTES: Final = 2**31
SPECIFICATION_LIMIT_BYTES: Final = 2**28  # of a Core ML program: its weights stand in a file of their own
RANK_LIMIT: Final = 32  # a longer shape only serves to make its product slow
_DEPTH_LIMIT: Final = 32  # graphs within graphs
_ONNX_TYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 21: "uint4", 22: "int4",
}  # fmt: skip
_COREML_FEATURES: Final = {65568: "float32", 65552: "float16", 65600: "float64", 131104: "int32", 131080: "int8"}
_MIL_TYPES: Final = {
    1: "bool", 2: "string", 10: "float16", 11: "float32", 12: "float64", 13: "bfloat16", 21: "int8", 22: "int16", 23: "int32",
    24: "int64", 25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One input or output; `None` marks an axis of any size."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`weights` counts stored elements by dtype, `ops` operators by name."""

    format: Format
    bytes: int
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    weights: dict[str, int]
    ops: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """Share of the stored elements by dtype, largest first."""
        total = sum(self.weights.values())
        if total == 0:
            return "no weights"
        shares = sorted(self.weights.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{dtype} {100 * count / total:.3g} %" for dtype, count in shares)


@dataclass(slots=True)
class _Tally:
    weights: Counter[str] = field(default_factory=Counter)
    ops: Counter[str] = field(default_factory=Counter)
    notes: set[str] = field(default_factory=set)


def read_model_file(path: Path) -> bytes:
    """The bytes of a model file; an `.mlpackage` folder comes as one archive.

    Raises:
        ModelError: it cannot be read, or is too large.
    """
    try:
        if path.is_dir():
            return _archive(path)
        if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would hold the reader, a device would never end
            raise ModelError(f"{str(path)!r} is no regular file")
        size = path.stat().st_size
        if size > FILE_LIMIT_BYTES:
            raise ModelError(f"{str(path)!r} is too large", expected=f"at most {FILE_LIMIT_BYTES} bytes", got=str(size))
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error}") from error


def inspect_model(data: bytes) -> ModelFacts:
    """Look into an ONNX, TFLite or packed Core ML model; the kind is found from the bytes.

    Raises:
        ModelError: none of these, or damaged.
    """
    if data[4:8] == b"TFL3":
        return _inspect_tflite(data)
    if data[:4] == b"PK\x03\x04":
        return _inspect_coreml(data)
    return _inspect_onnx(data)


def _inspect_onnx(data: bytes) -> ModelFacts:
    graph = _onnx_graph(data)
    tally = _Tally()
    _count_onnx(graph, tally, 0)
    for function in messages(memoryview(data), 25):  # local functions of the model
        for node in messages(function, 7):
            _count_onnx_node(node, tally, 1)
    stored = {text(tensor, 8) for tensor in messages(graph, 5)}
    inputs = tuple(facts for facts in map(_onnx_value, messages(graph, 11)) if facts.name not in stored)
    outputs = tuple(map(_onnx_value, messages(graph, 12)))
    if not outputs:
        raise ModelError("not an ONNX model: the graph has no outputs")
    return ModelFacts(
        "onnx", len(data), inputs, outputs, dict(tally.weights), dict(sorted(tally.ops.items())), tuple(sorted(tally.notes))
    )


def _onnx_graph(data: bytes) -> memoryview:
    try:
        graph = message(memoryview(data), 7)
        cause = "no graph was found in it"
    except ModelError as error:
        graph, cause = None, str(error)
    if graph is None:
        way_out = "give a .onnx, .tflite, .mlpackage or .edgeml file"
        raise ModelError(f"not an ONNX, TFLite or Core ML model: {cause}", hint=way_out)
    return graph


def _count_onnx(graph: memoryview, tally: _Tally, depth: int) -> None:
    if depth > _DEPTH_LIMIT:
        raise ModelError("not an ONNX model: graphs nest too deep", expected=f"at most {_DEPTH_LIMIT}", got="more")
    for node in messages(graph, 1):
        _count_onnx_node(node, tally, depth)
    for tensor in messages(graph, 5):
        _count_onnx_tensor(tensor, tally)


def _count_onnx_node(node: memoryview, tally: _Tally, depth: int) -> None:
    domain, kind = text(node, 7), text(node, 4)
    tally.ops[kind if domain in {"", "ai.onnx"} else f"{domain}.{kind}"] += 1
    for attribute in messages(node, 5):
        for inner in [*messages(attribute, 6), *messages(attribute, 11)]:
            _count_onnx(inner, tally, depth + 1)
        for tensor in messages(attribute, 5):
            _count_onnx_tensor(tensor, tally)


def _count_onnx_tensor(tensor: memoryview, tally: _Tally) -> None:
    dtype = _ONNX_TYPES.get(integer(tensor, 2) or 0, "unknown")
    tally.weights[dtype] += _elements(integers(tensor, 1))
    if integer(tensor, 14) == 1:
        tally.notes.add("weights are kept in other files: a session refuses it")


def _elements(shape: Sequence[int]) -> int:
    if len(shape) > RANK_LIMIT:
        raise ModelError("a tensor of the model", expected=f"at most {RANK_LIMIT} axes", got=str(len(shape)))
    return math.prod(shape)


def _onnx_value(value: memoryview) -> TensorFacts:
    tensor_type = message(message(value, 2) or memoryview(b""), 1) or memoryview(b"")
    axes = messages(message(tensor_type, 2) or memoryview(b""), 1)
    shape = [_onnx_axis(axis) for axis in axes]
    return TensorFacts(text(value, 1), _ONNX_TYPES.get(integer(tensor_type, 1) or 0, "unknown"), tuple(shape))


def _onnx_axis(axis: memoryview) -> int | str | None:
    for _, value in fields(axis):
        return value if isinstance(value, int) else bytes(value).decode("utf-8", "replace")
    return None


def _inspect_tflite(data: bytes) -> ModelFacts:
    model = flatbuffer.root(data)
    graphs = model.tables(2)
    if not graphs:
        raise ModelError("not a TFLite model: it has no graph")
    codes = [_tflite_operator(code) for code in model.tables(1)]
    # data inside the buffer, or (above 2 GB) at an offset behind the flatbuffer
    filled = {i for i, buffer in enumerate(model.tables(4)) if buffer.length(0) or buffer.integer(2, "<Q")}
    tally = _Tally()
    for graph in graphs:
        for operator in graph.tables(3):
            index = operator.integer(0, "<I")
            tally.ops[codes[index] if index < len(codes) else f"#{index}"] += 1
        for tensor in graph.tables(0):
            if tensor.integer(2, "<I") in filled:
                tally.weights[_tflite_dtype(tensor)] += _elements(tensor.integers(0))
    tensors = graphs[0].tables(0)

    def named(indices: list[int]) -> tuple[TensorFacts, ...]:
        return tuple(_tflite_tensor(tensors[index]) for index in indices if 0 <= index < len(tensors))

    return ModelFacts(
        "tflite", len(data), named(graphs[0].integers(1)), named(graphs[0].integers(2)), dict(tally.weights),
        dict(sorted(tally.ops.items())),
    )  # fmt: skip


def _tflite_operator(code: flatbuffer.Table) -> str:
    """Files from before 2020 carry the number in a byte, later ones in both fields: the larger one counts."""
    number = max(code.integer(0, "<b"), code.integer(3))
    custom = code.text(1)
    if custom:
        return f"custom {custom}"
    return flatbuffer.OPERATORS[number] if 0 <= number < len(flatbuffer.OPERATORS) else f"#{number}"


def _tflite_dtype(tensor: flatbuffer.Table) -> str:
    kind = tensor.integer(1, "<b")
    return flatbuffer.TENSOR_TYPES[kind] if 0 <= kind < len(flatbuffer.TENSOR_TYPES) else f"#{kind}"


def _tflite_tensor(tensor: flatbuffer.Table) -> TensorFacts:
    axes = tensor.integers(7) or tensor.integers(0)
    found = tensor.table(4)
    scales, zeros = (found.floats(2), found.integers(3, "q")) if found else ([], [])
    quantization = Quantization(scales[0], zeros[0]) if len(scales) == 1 and len(zeros) == 1 and scales[0] else None
    shape = tuple(None if axis < 0 else axis for axis in axes)
    return TensorFacts(tensor.text(3), _tflite_dtype(tensor), shape, quantization)


def _inspect_coreml(data: bytes) -> ModelFacts:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            name = next((entry for entry in package.namelist() if entry.endswith(".mlmodel")), None)
            if name is None:
                raise ModelError("not a packed .mlpackage", expected="a .mlmodel file inside", got="none")
            size = package.getinfo(name).file_size
            if size > SPECIFICATION_LIMIT_BYTES:
                expected = f"at most {SPECIFICATION_LIMIT_BYTES} bytes"
                raise ModelError(f"{name!r} unpacks to too much", expected=expected, got=str(size))
            spec = memoryview(package.read(name))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"not a packed .mlpackage: {error}") from error
    description = message(spec, 2) or memoryview(b"")
    tally = _Tally()
    for operation in _mil_operations(message(spec, 502) or memoryview(b"")):
        kind = text(operation, 1)
        tally.ops[kind] += 1
        if kind == "const" or kind.startswith("constexpr"):
            _count_mil_output(operation, kind, tally)
    return ModelFacts(
        "coreml", len(data), tuple(map(_coreml_feature, messages(description, 1))),
        tuple(map(_coreml_feature, messages(description, 10))), dict(tally.weights), dict(sorted(tally.ops.items())),
    )  # fmt: skip


def _mil_operations(program: memoryview) -> Iterator[memoryview]:
    for function in messages(program, 2):
        for specialization in messages(message(function, 2) or memoryview(b""), 3):
            yield from messages(message(specialization, 2) or memoryview(b""), 3)


def _count_mil_output(operation: memoryview, kind: str, tally: _Tally) -> None:
    """Count a constant by the dtype it is stored in; a `constexpr` operation unpacks int8 or a palette."""
    for named in messages(operation, 3):
        tensor = message(message(named, 2) or memoryview(b""), 1) or memoryview(b"")
        elements = _elements([integer(message(d, 1) or memoryview(b""), 1) or 1 for d in messages(tensor, 3)])
        dtype = _MIL_TYPES.get(integer(tensor, 1) or 0, "unknown")
        if dtype != "string":
            tally.weights["int8" if kind.startswith("constexpr_affine") else dtype] += elements


def _coreml_feature(feature: memoryview) -> TensorFacts:
    array = message(message(feature, 3) or memoryview(b""), 5) or memoryview(b"")
    return TensorFacts(text(feature, 1), _COREML_FEATURES.get(integer(array, 2) or 0, "unknown"), tuple(integers(array, 1)))


def _archive(folder: Path) -> bytes:
    """The specification of an `.mlpackage` folder as an archive; its weights are not needed to look at it."""
    specifications = sorted(path for path in folder.rglob("*.mlmodel") if path.is_file() and not path.is_symlink())
    if sum(path.stat().st_size for path in specifications) > SPECIFICATION_LIMIT_BYTES:
        raise ModelError(f"{str(folder)!r} is too large", expected=f"at most {SPECIFICATION_LIMIT_BYTES} bytes", got="more")
    if not specifications:
        raise ModelError(f"{str(folder)!r} is neither a bundle nor an .mlpackage")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as package:
        for path in specifications:
            package.writestr(str(path.relative_to(folder)), path.read_bytes())
    return packed.getvalue()
