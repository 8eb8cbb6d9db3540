"""A sample: the inputs of one call that a device may show its fleet, and what the model made of them.

    magic | header's length, 4 bytes little-endian | header, JSON | one zlib stream: each tensor's bytes, in the header's order

Tensors are raw: little-endian, row-major. Whoever reads a sample from outside learns every size from the header before anything
is unpacked, and nothing in it is ever executed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from edgeml.wire.contract import ITEM_BYTES
from edgeml.wire.errors import LinkError
from edgeml.wire.manifest import Count, DType, Name, Sha256, Version
from edgeml.wire.structs import learn

MAGIC: Final = b"EDGEMLS1"
SAMPLE_LIMIT_BYTES: Final = 4 * 1024 * 1024  # as sent
UNPACKED_LIMIT_BYTES: Final = 32 * 1024 * 1024
HEADER_LIMIT_BYTES: Final = 64 * 1024
MOST_TENSORS: Final = 64
TEXT_CHARACTERS: Final = 128
_PREFIX: Final = len(MAGIC) + 4

SampleId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS)]
Axes = Annotated[tuple[Count, ...], msgspec.Meta(max_length=8)]


class SampleTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Text
    dtype: DType
    shape: Axes

    @property
    def bytes(self) -> int:
        size = ITEM_BYTES[self.dtype]
        for axis in self.shape:
            size *= axis
        return size


class SampleHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known of a sample beside its tensors. `id` is its own; `request_id` is the call's."""

    id: SampleId
    at: float  # Unix seconds, the device's clock
    model: Name
    version: Version
    manifest_sha256: Sha256
    tensors: Annotated[tuple[SampleTensor, ...], msgspec.Meta(min_length=1, max_length=MOST_TENSORS)]
    request_id: Text = ""
    score: float | None = None
    label: Text | None = None
    fallback: Text | None = None


def encode_sample(header: SampleHeader, contents: Sequence[bytes]) -> bytes:
    """Pack a sample; `contents` are the tensors' bytes.

    Raises:
        LinkError: it is larger than a sample may be.
    """
    _require_small(header)
    text = msgspec.json.encode(header)
    data = MAGIC + len(text).to_bytes(4, "little") + text + zlib.compress(b"".join(contents), 6)
    if len(text) > HEADER_LIMIT_BYTES or len(data) > SAMPLE_LIMIT_BYTES:
        raise LinkError("sample too large", expected=f"at most {SAMPLE_LIMIT_BYTES} bytes", got=str(len(data)))
    return data


def read_header(data: bytes) -> SampleHeader:
    """The header of a sample, or of its beginning.

    Raises:
        LinkError: it is not a sample.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise LinkError("not a sample", expected=repr(MAGIC), got=repr(data[: len(MAGIC)]))
    size = int.from_bytes(data[len(MAGIC) : _PREFIX], "little")
    if not 0 < size <= HEADER_LIMIT_BYTES or len(data) < _PREFIX + size:
        raise LinkError(f"a sample with a header of {size} bytes")
    try:
        header = msgspec.json.decode(data[_PREFIX : _PREFIX + size], type=SampleHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LinkError(f"the sample's header cannot be read: {error}") from error
    _require_small(header)
    return header


def decode_sample(data: bytes) -> tuple[SampleHeader, tuple[bytes, ...]]:
    """(header, each tensor's bytes) of a sample from outside; nothing beyond the announced sizes is unpacked.

    Raises:
        LinkError: it is not a sample, or not what its header says.
    """
    if len(data) > SAMPLE_LIMIT_BYTES:
        raise LinkError("sample too large", expected=f"at most {SAMPLE_LIMIT_BYTES} bytes", got=str(len(data)))
    header = read_header(data)
    sizes = [tensor.bytes for tensor in header.tensors]
    start = _PREFIX + int.from_bytes(data[len(MAGIC) : _PREFIX], "little")
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(data[start:], sum(sizes) + 1)
    except zlib.error as error:
        raise LinkError(f"the sample's tensors cannot be unpacked: {error}") from error
    if len(content) != sum(sizes) or not inflater.eof or inflater.unused_data:
        raise LinkError("the sample's tensors are not as long as its header says")
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return header, tuple(content[end - size : end] for size, end in zip(sizes, ends, strict=True))


def _require_small(header: SampleHeader) -> None:
    size = sum(tensor.bytes for tensor in header.tensors)
    if size > UNPACKED_LIMIT_BYTES:
        raise LinkError("sample too large", expected=f"at most {UNPACKED_LIMIT_BYTES} bytes of tensors", got=str(size))
    if len({tensor.name for tensor in header.tensors}) != len(header.tensors):
        raise LinkError("a sample with two tensors of one name")


learn(__name__)
