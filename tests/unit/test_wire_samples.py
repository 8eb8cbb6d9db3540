"""A sample from a device is read to the sizes it announces and no further, and is never anything but numbers."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.wire.errors import LinkError
from edgeml.wire.samples import (
    MAGIC,
    SAMPLE_LIMIT_BYTES,
    UNPACKED_LIMIT_BYTES,
    SampleHeader,
    SampleTensor,
    decode_sample,
    encode_sample,
    read_header,
)

ID = "0190a2b4-0000-7000-8000-000000000001"
X = np.arange(6, dtype="<f4").reshape(2, 3)
HEADER = SampleHeader(ID, 10.0, "kws", "1.0.0", "a" * 64, (SampleTensor("x", "float32", (2, 3)),), score=0.4, label="yes")


def packed(header: bytes, body: bytes) -> bytes:
    return MAGIC + len(header).to_bytes(4, "little") + header + body


def test_what_is_packed_is_read_again() -> None:
    data = encode_sample(HEADER, [X.tobytes()])
    assert decode_sample(data) == (HEADER, (X.tobytes(),))
    assert read_header(data[:400]) == HEADER


@pytest.mark.parametrize(
    "body",
    [b"", b"\x80\x04\x95", zlib.compress(bytes(23)), zlib.compress(bytes(25)), zlib.compress(bytes(24)) + b"x"],
    ids=["nothing", "a pickle", "too short", "too long", "followed by something"],
)
def test_tensors_that_are_not_as_announced_are_refused(body: bytes) -> None:
    with pytest.raises(LinkError, match="tensors"):
        decode_sample(packed(msgspec.json.encode(HEADER), body))


def test_a_stream_that_unpacks_without_end_is_cut_at_the_announced_size() -> None:
    """The attack: 20 MB of zeros in 20 kB."""
    with pytest.raises(LinkError, match="not as long"):
        decode_sample(packed(msgspec.json.encode(HEADER), zlib.compress(bytes(20_000_000))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "../../etc/passwd"}, "header"),
        ({"tensors": [{"name": "x", "dtype": "object", "shape": [1]}]}, "header"),
        ({"tensors": []}, "header"),
        ({"tensors": [{"name": "x", "dtype": "float32", "shape": [2**40]}]}, "too large"),
        ({"tensors": [{"name": "x", "dtype": "int8", "shape": [1]}] * 2}, "one name"),
        ({"surprise": 1}, "header"),
    ],
)
def test_a_header_that_no_device_writes_is_refused(change: dict[str, object], words: str) -> None:
    header = msgspec.json.encode(msgspec.to_builtins(HEADER) | change)
    with pytest.raises(LinkError, match=words):
        decode_sample(packed(header, zlib.compress(X.tobytes())))


def test_a_sample_over_the_limits_is_refused_on_both_sides() -> None:
    noise = np.random.default_rng(1).bytes(SAMPLE_LIMIT_BYTES + 1)
    header = msgspec.structs.replace(HEADER, tensors=(SampleTensor("x", "uint8", (len(noise),)),))
    with pytest.raises(LinkError, match="too large"):
        encode_sample(header, [noise])
    zeros = msgspec.structs.replace(HEADER, tensors=(SampleTensor("x", "uint8", (UNPACKED_LIMIT_BYTES + 1,)),))
    with pytest.raises(LinkError, match="too large"):
        encode_sample(zeros, [bytes(UNPACKED_LIMIT_BYTES + 1)])
    with pytest.raises(LinkError, match="too large"):
        decode_sample(bytes(SAMPLE_LIMIT_BYTES + 1))


@given(st.binary(max_size=300), st.integers(0, 500))
def test_any_other_bytes_are_refused_in_words(noise: bytes, cut: int) -> None:
    for data in (noise, MAGIC + noise, encode_sample(HEADER, [X.tobytes()])[:cut] + noise):
        try:
            decode_sample(data)
        except LinkError:
            continue
        assert data == encode_sample(HEADER, [X.tobytes()])
