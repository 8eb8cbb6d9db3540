"""What an ONNX file claims, held against what it holds, before a byte is allocated or another file is opened on its word."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgeml.wire.errors import ModelError, UnsupportedError

TENSOR_LIMIT_BYTES: Final = 4 * 1024**3  # of one tensor; a device has no room for more
RANK_LIMIT: Final = 32
LIGHT_BYTES: Final = 4096  # constants up to this size may be shapes, which inference has to see
SUB_BYTE: Final = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}  # bits
ENGINE_DOMAINS: Final = frozenset({"com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})  # ONNX Runtime's own


def check_versions(onnx: Any, proto: Any) -> None:
    """Raises:
    UnsupportedError: written by a newer ONNX than is installed.
    """
    hint = "install a newer onnx, or save the model with an older opset (onnx.version_converter)"
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(
            "the file's IR version", expected=f"at most {onnx.IR_VERSION}", got=str(proto.ir_version), hint=hint
        )
    if not proto.opset_import:
        raise ModelError("the file says no opset", hint="save it again with opset_imports")
    known = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in {"", "ai.onnx"} and entry.version > known:
            raise UnsupportedError("the file's opset", expected=f"at most {known}", got=str(entry.version), hint=hint)


def check_operators(onnx: Any, proto: Any) -> None:
    """Raises:
    UnsupportedError: an operator that neither ONNX, the engine nor the file itself defines.
    """
    own = {(function.domain, function.name) for function in proto.functions}
    nodes = [*_nodes(proto.graph), *(node for function in proto.functions for node in function.node)]
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain in ENGINE_DOMAINS or (node.domain, node.op_type) in own or onnx.defs.has(node.op_type, domain=domain):
            continue
        name = f"{domain}:{node.op_type}" if domain else node.op_type
        raise UnsupportedError(
            f"operator {name!r} of node {node.name!r} is not defined by ONNX",
            hint="export the model with standard operators, or with the operator as a function in the file",
        )


def check_sizes(onnx: Any, proto: Any) -> None:
    """Raises:
    ModelError: a tensor that promises more or less than it holds, or that would fill the memory once it is computed.
    """
    for tensor in _tensors(onnx, proto):
        want = _elements(tensor)
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        if tensor.HasField("raw_data"):
            expected, got, unit = promised_bytes(onnx, tensor), len(tensor.raw_data), "bytes"
        elif _bits(onnx, tensor.data_type) < 8:
            expected, got, unit = promised_bytes(onnx, tensor), len(tensor.int32_data), "packed values"
        else:
            expected, got, unit = want * _parts(onnx, tensor.data_type), len(getattr(tensor, field)), "values"
        if expected != got:
            raise ModelError(f"tensor {tensor.name!r}", expected=f"{expected} {unit}", got=str(got))
    for sparse in proto.graph.sparse_initializer:
        _refuse_large(onnx, sparse.values.name, list(sparse.dims), sparse.values.data_type)
    for value in _inferred(onnx, proto):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            _refuse_large(onnx, value.name, [dim.dim_value for dim in kind.shape.dim], kind.elem_type)


def promised_bytes(onnx: Any, tensor: Any) -> int:
    return (_elements(tensor) * _bits(onnx, tensor.data_type) + 7) // 8


def take_in_external(onnx: Any, proto: Any, folder: Path) -> None:
    """Read tensors kept in other files, if those lie beside the model and are as long as the tensors.

    Raises:
        ModelError: they are not.
    """
    root = folder.resolve()
    for tensor in _tensors(onnx, proto):
        if not onnx.external_data_helper.uses_external_data(tensor):
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        name = PurePosixPath(place.get("location", ""))
        target = root / name
        if name.is_absolute() or ".." in name.parts or target.is_symlink() or not target.resolve().is_relative_to(root):
            raise ModelError(f"tensor {tensor.name!r} lies outside the model's folder", got=repr(str(name)), hint="refused")
        if not target.is_file():
            raise ModelError(
                f"tensor {tensor.name!r} is in a file that is missing: {str(name)!r}", hint="copy it beside the model"
            )
        offset, want = _number(place, "offset", 0), promised_bytes(onnx, tensor)
        length = _number(place, "length", want)
        if length != want:
            raise ModelError(f"tensor {tensor.name!r} in {str(name)!r}", expected=f"{want} bytes", got=str(length))
        if offset + length > target.stat().st_size:
            raise ModelError(f"tensor {tensor.name!r} reaches beyond {str(name)!r}", hint="the file is truncated")
        with target.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _number(place: dict[str, str], key: str, default: int) -> int:
    text = place.get(key, str(default))
    if not text.isdecimal():
        raise ModelError(f"external data: {key}", expected="a number of bytes", got=repr(text))
    return int(text)


def _tensors(onnx: Any, proto: Any) -> Iterator[Any]:
    found: Iterator[Any] = onnx.external_data_helper._get_all_tensors(proto)  # noqa: SLF001 - the library offers no public walk
    return found


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _nodes(inner)


def _elements(tensor: Any) -> int:
    if len(tensor.dims) > RANK_LIMIT:
        raise ModelError(f"tensor {tensor.name!r}", expected=f"at most {RANK_LIMIT} axes", got=str(len(tensor.dims)))
    if any(axis < 0 for axis in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} has a negative size")
    return math.prod(tensor.dims)


def _refuse_large(onnx: Any, name: str, shape: list[int], data_type: int) -> None:
    if len(shape) > RANK_LIMIT:
        raise ModelError(f"tensor {name!r}", expected=f"at most {RANK_LIMIT} axes", got=str(len(shape)))
    size = math.prod(max(axis, 0) for axis in shape) * _itemsize(onnx, data_type)
    if size > TENSOR_LIMIT_BYTES:
        raise ModelError(f"tensor {name!r} would take {size:,} bytes", expected=f"at most {TENSOR_LIMIT_BYTES:,}", got="more")


def _inferred(onnx: Any, proto: Any) -> list[Any]:
    """Every value of the main graph whose shape follows from the file, constants that are shapes taken at their word."""
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) > LIGHT_BYTES:
            tensor.ClearField("raw_data")
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return [*graph.input, *graph.output, *graph.value_info]


def _itemsize(onnx: Any, data_type: int) -> int:
    if data_type == onnx.TensorProto.STRING:
        return 1
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _bits(onnx: Any, data_type: int) -> int:
    """Of one element as it is stored."""
    return SUB_BYTE.get(onnx.TensorProto.DataType.Name(data_type)) or 8 * _itemsize(onnx, data_type)


def _parts(onnx: Any, data_type: int) -> int:
    """Numbers that one element takes."""
    return 2 if data_type in {onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128} else 1
