"""Read protocol buffers without a schema: enough to look into ONNX and Core ML files on a machine that has neither package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgeml.wire.errors import ModelError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES: Final = 10

Value = int | memoryview


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """(field number, value) of one message; a value is an integer, or the bytes of a string, message or packed list.

    Raises:
        ModelError: not a protocol buffer, or cut off.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            number, position = _varint(data, position)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in {_FIXED32, _FIXED64}:
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ModelError(f"not a protocol buffer: wire type {kind} at byte {position}")
        if size > end - position:
            raise ModelError("the file is cut off", expected=f"{size} bytes", got=str(end - position))
        chunk = data[position : position + size]
        position += size
        yield key >> 3, chunk if kind == _BYTES else int.from_bytes(chunk, "little")


def messages(data: memoryview, number: int) -> Iterator[memoryview]:
    """Every message (or string) in field `number`."""
    for found, value in fields(data):
        if found == number and isinstance(value, memoryview):
            yield value


def message(data: memoryview, number: int) -> memoryview | None:
    """The last message in field `number`, which is the one that counts."""
    last = None
    for value in messages(data, number):
        last = value
    return last


def text(data: memoryview, number: int) -> str:
    value = message(data, number)
    return "" if value is None else bytes(value).decode("utf-8", "replace")


def integer(data: memoryview, number: int) -> int | None:
    last = None
    for found, value in fields(data):
        if found == number and isinstance(value, int):
            last = value
    return last


def integers(data: memoryview, number: int) -> list[int]:
    """A repeated integer field, packed or not."""
    found_all: list[int] = []
    for found, value in fields(data):
        if found != number:
            continue
        if isinstance(value, int):
            found_all.append(_signed(value))
            continue
        position = 0
        while position < len(value):
            item, position = _varint(value, position)
            found_all.append(_signed(item))
    return found_all


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for count in range(_VARINT_BYTES):
        if position >= len(data):
            raise ModelError("the file is cut off", expected="another byte of a number", got="its end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position
    raise ModelError(f"not a protocol buffer: a number of more than {_VARINT_BYTES} bytes at byte {position}")
