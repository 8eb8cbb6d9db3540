"""Open Inference Protocol v2 bodies, as client and server both read and write them: JSON, and the binary tensor extension.

With the extension a body is a JSON header followed by the raw tensors (little-endian, row-major) in order; the HTTP header
`Inference-Header-Content-Length` says where the JSON ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec
import numpy as np

from edgeml.runtime.backends import Array
from edgeml.wire.errors import InputError
from edgeml.wire.manifest import DType
from edgeml.wire.structs import learn

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
ELEMENT_LIMIT: Final = 2**28  # of one tensor in one request
RANK_LIMIT: Final = 16

DATATYPES: Final[dict[DType, str]] = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
S = TypeVar("S", bound=msgspec.Struct)
_DTYPES: Final = {datatype: dtype for dtype, datatype in DATATYPES.items()}


class _Tensor(msgspec.Struct, omit_defaults=True):
    name: str
    shape: list[int] = []
    datatype: str = ""
    parameters: dict[str, msgspec.Raw] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Wanted(msgspec.Struct, omit_defaults=True):
    name: str
    parameters: dict[str, msgspec.Raw] = {}


class _Request(msgspec.Struct, omit_defaults=True):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, msgspec.Raw] = {}
    outputs: list[_Wanted] = []


class _Response(msgspec.Struct, omit_defaults=True):
    outputs: list[_Tensor]
    model_name: str = ""
    model_version: str = ""
    id: str | None = None
    parameters: dict[str, msgspec.Raw] = {}


@dataclass(frozen=True, slots=True)
class Body:
    """HTTP body; `json_bytes` is where its JSON part ends, `None` where there is nothing else."""

    data: bytes
    json_bytes: int | None


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks. `wanted` empty means all outputs; `binary` names those it wants raw."""

    inputs: dict[str, Array]
    id: str | None
    wanted: tuple[str, ...]
    binary: frozenset[str]
    binary_all: bool


@dataclass(frozen=True, slots=True)
class Response:
    outputs: dict[str, Array]
    model: str
    version: str
    id: str | None


def write_request(inputs: Mapping[str, Array], *, request_id: str, binary: bool) -> Body:
    heads, blobs = _write_tensors(inputs, frozenset(inputs) if binary else frozenset())
    request: dict[str, Any] = {"id": request_id, "inputs": heads}
    if binary:
        request["parameters"] = {"binary_data_output": True}
    return _join(msgspec.json.encode(request), blobs)


def write_response(response: Response, binary: frozenset[str]) -> Body:
    heads, blobs = _write_tensors(response.outputs, binary)
    answer: dict[str, Any] = {"model_name": response.model, "model_version": response.version, "outputs": heads}
    if response.id is not None:
        answer["id"] = response.id
    return _join(msgspec.json.encode(answer), blobs)


def read_request(body: bytes, json_bytes: int | None) -> Request:
    """Read a request from outside.

    Raises:
        InputError: not the protocol, or a tensor that does not hold what it says.
    """
    header, raw = _split(body, json_bytes)
    request = _decode(header, _Request)
    inputs = _read_tensors(request.inputs, raw)
    binary = frozenset(wanted.name for wanted in request.outputs if _flag(wanted.parameters, "binary_data"))
    wanted_names = tuple(wanted.name for wanted in request.outputs)
    return Request(inputs, request.id, wanted_names, binary, _flag(request.parameters, "binary_data_output"))


def read_response(body: bytes, json_bytes: int | None) -> Response:
    """Read a response from outside.

    Raises:
        InputError: not the protocol, or a tensor that does not hold what it says.
    """
    header, raw = _split(body, json_bytes)
    answer = _decode(header, _Response)
    return Response(_read_tensors(answer.outputs, raw), answer.model_name, answer.model_version, answer.id)


def _write_tensors(arrays: Mapping[str, Array], binary: frozenset[str]) -> tuple[list[dict[str, Any]], list[bytes]]:
    heads: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, array in arrays.items():
        head: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array)}
        # FP16 has no JSON form in the protocol
        if name in binary or array.dtype == np.float16:
            blob = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
            head["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            head["data"] = array.ravel().tolist()
        heads.append(head)
    return heads, blobs


def datatype_of(array: Array) -> str:
    for dtype, datatype in DATATYPES.items():
        if array.dtype == np.dtype(dtype):
            return datatype
    raise AssertionError(f"no datatype for {array.dtype}")


def _join(header: bytes, blobs: Sequence[bytes]) -> Body:
    if not blobs:
        return Body(header, None)
    return Body(b"".join([header, *blobs]), len(header))


def _split(body: bytes, json_bytes: int | None) -> tuple[bytes, memoryview]:
    if json_bytes is None:
        return body, memoryview(b"")
    if not 0 <= json_bytes <= len(body):
        raise InputError(HEADER_LENGTH, expected=f"0 to {len(body)}", got=str(json_bytes))
    return body[:json_bytes], memoryview(body)[json_bytes:]


def _decode(header: bytes, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(header, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not an Open Inference Protocol body: {error}") from error


def _read_tensors(tensors: Sequence[_Tensor], raw: memoryview) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for tensor in tensors:
        if tensor.name in arrays:
            raise InputError(f"tensor {tensor.name!r} stands twice")
        where = f"tensor {tensor.name!r}"
        dtype = _DTYPES.get(tensor.datatype)
        if dtype is None:
            raise InputError(f"{where}: datatype", expected=", ".join(_DTYPES), got=repr(tensor.datatype))
        count = _elements(where, tensor.shape)
        size = _size(tensor)
        if size is None:
            arrays[tensor.name] = _from_json(where, tensor, np.dtype(dtype), count)
            continue
        expected = count * np.dtype(dtype).itemsize
        if size != expected or size > len(raw):
            raise InputError(f"{where}: bytes", expected=str(expected), got=str(min(size, len(raw))))
        stored = np.frombuffer(raw[:size], np.dtype(dtype).newbyteorder("<"))
        arrays[tensor.name] = stored.astype(dtype, copy=False).reshape(tensor.shape)
        raw = raw[size:]
    if len(raw):
        raise InputError("bytes after the last tensor", expected="0", got=str(len(raw)))
    return arrays


def _elements(where: str, shape: Sequence[int]) -> int:
    if len(shape) > RANK_LIMIT or any(axis < 0 for axis in shape):
        raise InputError(f"{where}: shape", expected=f"at most {RANK_LIMIT} sizes of 0 or more", got=str(shape))
    count = math.prod(shape)
    if count > ELEMENT_LIMIT:
        raise InputError(f"{where}: elements", expected=f"at most {ELEMENT_LIMIT}", got=str(count))
    return count


def _size(tensor: _Tensor) -> int | None:
    raw = tensor.parameters.get("binary_data_size")
    if raw is None:
        return None
    try:
        size: int = msgspec.json.decode(raw, type=Annotated[int, msgspec.Meta(ge=0)])
    except msgspec.MsgspecError as error:
        raise InputError(f"tensor {tensor.name!r}: binary_data_size: {error}") from error
    return size


def _from_json(where: str, tensor: _Tensor, dtype: np.dtype[Any], count: int) -> Array:
    """Values may come flat or nested; both must hold `count` of them."""
    data = bytes(tensor.data)
    if not data:
        raise InputError(f"{where} has neither data nor binary_data_size")
    kind: Any = {"f": list[float], "b": list[bool]}.get(dtype.kind, list[int])
    try:
        values = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        values = _nested(where, data, dtype)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{where}: data is not JSON: {error}") from error
    try:
        with np.errstate(over="raise"):
            array = np.array(values, dtype=dtype)
    except (OverflowError, FloatingPointError, ValueError, TypeError) as error:
        raise InputError(f"{where}: data does not fit {tensor.datatype}: {error}") from error
    if array.size != count:
        raise InputError(f"{where}: values", expected=f"{count} for shape {tensor.shape}", got=str(array.size))
    return array.reshape(tensor.shape)


def _nested(where: str, data: bytes, dtype: np.dtype[Any]) -> list[Any]:
    flat: list[Any] = []

    def walk(value: object) -> None:
        if isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, bool) == (dtype.kind == "b") and isinstance(value, int | (float if dtype.kind == "f" else int)):
            flat.append(value)
        else:
            raise InputError(f"{where}: a value", expected=f"a number of {dtype}", got=repr(value))

    try:
        walk(msgspec.json.decode(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{where}: data is not a list of numbers: {error}") from error
    return flat


def _flag(parameters: Mapping[str, msgspec.Raw], name: str) -> bool:
    return bytes(parameters.get(name, b"")) == b"true"


learn(__name__)
