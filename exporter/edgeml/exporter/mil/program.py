"""An ML program as plain data: functions, blocks, operations, constants; read from a package and checked.

Nothing here computes. Constants come from the program itself or from a weight file (MIL blob storage, version 2), whose
offsets and sizes are checked against the file before they are used.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgeml.exporter.mil.package import WEIGHTS
from edgeml.exporter.mil.schema import data_types
from edgeml.runtime.backends import Array
from edgeml.wire.errors import ModelError, UnsupportedError

_NUMPY: Final[Mapping[str, type]] = {
    "bool": np.bool_, "float16": np.float16, "float32": np.float32, "float64": np.float64,
    "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64,
    "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
}  # fmt: skip
_PACKED_BITS: Final[Mapping[str, int]] = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "int4": 4}
_BLOB: Final = struct.Struct("<IIQQ")  # sentinel, data type, bytes, offset of the data
_BLOB_SENTINEL: Final = 0xDEADBEEF
_RANK_LIMIT: Final = 8
_DEPTH_LIMIT: Final = 32  # blocks in blocks


@dataclass(frozen=True, slots=True)
class TensorType:
    """`None` marks an axis of any size."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class ListType:
    element: TensorType


@dataclass(frozen=True, slots=True)
class StateType:
    tensor: TensorType


ValueType = TensorType | ListType | StateType


@dataclass(frozen=True, slots=True)
class Named:
    """A value a block or operation gives, by name."""

    name: str
    type: ValueType


@dataclass(frozen=True, slots=True)
class Constant:
    """`value` is a string, or an array whose sub-byte elements are unpacked; `dtype` is the program's word."""

    dtype: str
    value: Array | str


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of that name."""

    name: str


Argument = Ref | Constant


@dataclass(frozen=True, slots=True)
class Operation:
    """One step. An input that takes several values has them in order."""

    type: str
    name: str
    inputs: dict[str, tuple[Argument, ...]]
    outputs: tuple[Named, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Block:
    inputs: tuple[Named, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """The `main` function: its inputs in the order of the model's description, and the order its outputs are told in."""

    inputs: tuple[Named, ...]
    outputs: tuple[str, ...]
    body: Block


def read_program(model: Any, files: Mapping[str, bytes]) -> Program:
    """The main function of a parsed model, with constants from the package's files.

    Raises:
        ModelError: the program contradicts itself or its weight file.
        UnsupportedError: something of the format that is not read here, named.
    """
    function = model.mlProgram.functions.get("main")
    if function is None:
        raise ModelError("Core ML program", expected="a function 'main'", got=repr(sorted(model.mlProgram.functions)))
    specialization = function.block_specializations.get(function.opset)
    if specialization is None:
        raise ModelError(f"Core ML program has no block for its opset {function.opset!r}")
    declared = {named.name: named for named in (_named(item) for item in function.inputs)}
    order = [feature.name for feature in model.description.input if feature.name in declared]
    order += [name for name in declared if name not in order]  # states stand apart in the description
    body = _block(specialization, _Reader(files), depth=0)
    told = [feature.name for feature in model.description.output if feature.name in body.outputs]
    told += [name for name in body.outputs if name not in told]
    return Program(tuple(declared[name] for name in order), tuple(told), body)


def read_type(spec: Any) -> ValueType:
    kind = spec.WhichOneof("type")
    if kind == "tensorType":
        return _tensor_type(spec.tensorType)
    if kind == "listType":
        element = read_type(spec.listType.type)
        if isinstance(element, TensorType):
            return ListType(element)
    if kind == "stateType":
        wrapped = read_type(spec.stateType.wrappedType)
        if isinstance(wrapped, TensorType):
            return StateType(wrapped)
    raise UnsupportedError(f"a value of Core ML type {kind!r} is not supported", hint="convert without a classifier config")


def _tensor_type(spec: Any) -> TensorType:
    dtype = data_types().get(spec.dataType)
    if dtype is None or spec.rank != len(spec.dimensions) or len(spec.dimensions) > _RANK_LIMIT:
        raise ModelError(f"Core ML tensor type {dtype!r} of rank {spec.rank} with {len(spec.dimensions)} dimensions")
    shape = tuple(int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in spec.dimensions)
    return TensorType(dtype, shape)


def _named(spec: Any) -> Named:
    return Named(spec.name, read_type(spec.type))


def _block(spec: Any, reader: _Reader, *, depth: int) -> Block:
    if depth > _DEPTH_LIMIT:
        raise ModelError("Core ML program", expected=f"blocks nested at most {_DEPTH_LIMIT} deep", got="more")
    operations = tuple(_operation(item, reader, depth) for item in spec.operations)
    return Block(tuple(_named(item) for item in spec.inputs), operations, tuple(spec.outputs))


def _operation(spec: Any, reader: _Reader, depth: int) -> Operation:
    inputs = {key: tuple(reader.argument(item) for item in spec.inputs[key].arguments) for key in spec.inputs}
    name = ""
    for key, value in spec.attributes.items():
        if key != "name":
            inputs[key] = (reader.constant(value),)
        elif value.immediateValue.tensor.strings.values:
            name = value.immediateValue.tensor.strings.values[0]
    outputs = tuple(_named(item) for item in spec.outputs)
    blocks = tuple(_block(item, reader, depth=depth + 1) for item in spec.blocks)
    return Operation(spec.type, name or (outputs[0].name if outputs else ""), inputs, outputs, blocks)


class _Reader:
    """Decodes constants; weight files are sliced, never copied whole."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def argument(self, spec: Any) -> Argument:
        return Ref(spec.name) if spec.WhichOneof("binding") == "name" else self.constant(spec.value)

    def constant(self, spec: Any) -> Constant:
        kind = read_type(spec.type)
        if not isinstance(kind, TensorType) or None in kind.shape:
            raise UnsupportedError("a Core ML constant that is no tensor of fixed shape is not supported")
        shape = tuple(size for size in kind.shape if size is not None)
        if spec.WhichOneof("value") == "blobFileValue":
            return Constant(kind.dtype, self._blob(spec.blobFileValue, kind.dtype, shape))
        tensor = spec.immediateValue.tensor
        which = tensor.WhichOneof("value")
        if which is None:
            return Constant(kind.dtype, _fit(np.zeros(0, _numpy(kind.dtype)), shape))
        values = getattr(tensor, which).values
        if kind.dtype == "string":
            if len(values) != 1:
                raise UnsupportedError("a Core ML constant of several strings is not supported")
            return Constant("string", str(values[0]))
        if which == "bytes":
            return Constant(kind.dtype, _decode(values, kind.dtype, shape))
        return Constant(kind.dtype, _fit(np.asarray(values).astype(_numpy(kind.dtype)), shape))

    def _blob(self, spec: Any, dtype: str, shape: tuple[int, ...]) -> Array:
        name = WEIGHTS + str(spec.fileName).rsplit("/", 1)[-1]
        data = self._files.get(name)
        if data is None:
            raise ModelError(f"Core ML program refers to a weight file {spec.fileName!r} that the package does not hold")
        offset = int(spec.offset)
        if offset + _BLOB.size > len(data):
            raise ModelError(f"weight offset {offset} is outside {name!r}", expected=f"below {len(data)}", got=str(offset))
        sentinel, _, size, start = _BLOB.unpack_from(data, offset)
        if sentinel != _BLOB_SENTINEL or start + size > len(data):
            raise ModelError(f"weight record at {offset} of {name!r} is damaged")
        return _decode(memoryview(data)[start : start + size], dtype, shape)


def _numpy(dtype: str) -> type:
    if dtype in _PACKED_BITS:
        return np.int8 if dtype.startswith("i") else np.uint8
    if dtype not in _NUMPY:
        raise UnsupportedError(f"Core ML data type {dtype!r} is not supported")
    return _NUMPY[dtype]


def _decode(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    """Little-endian elements; sub-byte ones are packed from the low bits of each byte up."""
    count = math.prod(shape)
    bits = _PACKED_BITS.get(dtype)
    if bits is None:
        kind = np.dtype(_numpy(dtype))
        if len(data) != count * kind.itemsize:
            raise ModelError(f"Core ML constant {dtype} {shape}", expected=f"{count * kind.itemsize} bytes", got=str(len(data)))
        return np.frombuffer(data, kind).reshape(shape)
    if len(data) != (count * bits + 7) // 8:
        raise ModelError(f"Core ML constant {dtype} {shape}", expected=f"{(count * bits + 7) // 8} bytes", got=str(len(data)))
    single = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    values = (single.astype(np.int16) << np.arange(bits, dtype=np.int16)).sum(axis=1)
    if dtype.startswith("i"):
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    return np.asarray(values, dtype=_numpy(dtype)).reshape(shape)


def _fit(values: Array, shape: tuple[int, ...]) -> Array:
    if values.size != math.prod(shape):
        raise ModelError(f"Core ML constant of shape {shape}", expected=f"{math.prod(shape)} values", got=str(values.size))
    return values.reshape(shape)
