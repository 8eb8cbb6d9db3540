"""Canonical bytes: one JSON text and one zip for one content, so that a digest names it.

`encode_json` sorts keys and adds nothing; equal values give equal bytes. The zip functions compute every byte of a stored zip
that is not content, so that a reader can demand the canonical packing without parsing anything hostile.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

ZIP_LIMIT: Final = 0xFFFF_FFFE  # no zip64: a model that needs it does not belong on a device
_ZIP_TIME: Final = 0  # 00:00:00
_ZIP_DATE: Final = (1980 - 1980) << 9 | 1 << 5 | 1  # 1980-01-01, the format's own epoch
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_UTF8: Final = 0x800


def encode_json(value: object) -> bytes:
    """Canonical JSON of a msgspec-encodable value: sorted keys, no white space, UTF-8, shortest round-trip floats.

    A field equal to its default is left out where its struct says so (`omit_defaults`), so that a later version may add fields.
    """
    return msgspec.json.encode(_plain(value), order="sorted")


def _plain(value: object) -> object:
    """Dictionaries and lists. msgspec itself leaves defaults out by identity, which equal values need not share."""
    if isinstance(value, msgspec.Struct):
        omit = value.__struct_config__.omit_defaults
        fields = ((field, getattr(value, field.name)) for field in msgspec.structs.fields(value))
        return {field.encode_name: _plain(held) for field, held in fields if not (omit and _is_default(field, held))}
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    return value


def _is_default(field: msgspec.structs.FieldInfo, held: object) -> bool:
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return type(held) is type(default) and held == default


def sha256_hex(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One file of a canonical zip: its name, byte count and CRC-32 of its content."""

    name: str
    size: int
    crc: int


def local_header(entry: ZipEntry) -> bytes:
    """The bytes that stand before `entry`'s content."""
    name = entry.name.encode()
    fixed = _LOCAL.pack(b"PK\x03\x04", 20, _UTF8, 0, _ZIP_TIME, _ZIP_DATE, entry.crc, entry.size, entry.size, len(name), 0)
    return fixed + name


def directory(entries: Iterable[ZipEntry]) -> bytes:
    """The central directory and end record for `entries` in file order."""
    records, offset, count = b"", 0, 0
    for entry in entries:
        name = entry.name.encode()
        records += _CENTRAL.pack(
            b"PK\x01\x02", 0x031E, 20, _UTF8, 0, _ZIP_TIME, _ZIP_DATE, entry.crc, entry.size, entry.size,
            len(name), 0, 0, 0, 0, 0o100644 << 16, offset,
        ) + name  # fmt: skip
        offset += _LOCAL.size + len(name) + entry.size
        count += 1
    return records + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(records), offset, 0)


def header_size(name: str) -> int:
    """How many bytes `local_header` takes for a file of this name."""
    return _LOCAL.size + len(name.encode())


def zip_size(sizes: Iterable[tuple[str, int]]) -> int:
    """Bytes of the canonical zip of files given as (name, content bytes)."""
    total = _END.size
    for name, size in sizes:
        total += header_size(name) + size + _CENTRAL.size + len(name.encode())
    return total
