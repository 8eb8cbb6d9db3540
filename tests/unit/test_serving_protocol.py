from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeml.runtime import oip
from edgeml.runtime.backends import Array
from edgeml.wire.errors import InputError

DTYPES = [np.dtype(name) for name in oip.DATATYPES]


def request(**tensor: object) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", **tensor}]}).encode()


@given(
    array=st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(max_dims=3, max_side=4),
            elements={"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None,
        )
    ),
    binary=st.booleans(),
)
def test_a_tensor_survives_the_wire(array: Array, binary: bool) -> None:
    body = oip.write_request({"x": array}, request_id="r", binary=binary)
    read = oip.read_request(body.data, body.json_bytes)
    assert read.id == "r"
    assert read.binary_all == binary
    assert read.inputs["x"].dtype == array.dtype
    assert read.inputs["x"].shape == array.shape
    assert (read.inputs["x"] == array).all()


def test_the_binary_form_is_the_protocols_own() -> None:
    """Little-endian, row-major, behind the JSON; its length in `binary_data_size`."""
    body = oip.write_request({"x": np.array([[1, 2], [3, 4]], np.int16)}, request_id="r", binary=True)
    assert body.json_bytes is not None
    assert body.data[body.json_bytes :] == bytes([1, 0, 2, 0, 3, 0, 4, 0])
    head = json.loads(body.data[: body.json_bytes])
    assert head["inputs"] == [{"name": "x", "shape": [2, 2], "datatype": "INT16", "parameters": {"binary_data_size": 8}}]
    assert head["parameters"] == {"binary_data_output": True}


def test_nested_values_are_taken_like_flat_ones() -> None:
    nested = oip.read_request(request(shape=[2, 2], data=[[1, 2.5], [3, 4]]), None)
    assert nested.inputs["x"].tolist() == [[1, 2.5], [3, 4]]


def test_half_floats_have_no_json_form() -> None:
    body = oip.write_response(oip.Response({"y": np.array([1.5], np.float16)}, "m", "1.0.0", None), frozenset())
    assert body.json_bytes is not None
    assert oip.read_response(body.data, body.json_bytes).outputs["y"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not an Open Inference Protocol body"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": 3}', "not an Open Inference Protocol body"),
        (b"[" * 100_000, "not an Open Inference Protocol body"),
        (request(data=[1, 2], datatype="FP8"), "datatype: expected BOOL"),
        (request(data=[1]), "values: expected 2 for shape [2], got 1"),
        (request(data=[1, "2"]), "expected a number of float32, got '2'"),
        (request(data=[1, None]), "got None"),
        (request(data=[[1, 2], [3]], shape=[2]), "values: expected 2"),
        (request(data=[1.5, 2], datatype="INT32"), "expected a number of int32, got 1.5"),
        (request(data=[300, 2], datatype="UINT8"), "data does not fit UINT8"),
        (request(data=[1, 0], datatype="BOOL"), "expected a number of bool, got 1"),
        (request(), "neither data nor binary_data_size"),
        (request(data=[], shape=[-1]), "sizes of 0 or more"),
        (request(data=[], shape=[2**20, 2**20]), "elements: expected at most"),
        (request(parameters={"binary_data_size": 8}), "bytes: expected 8, got 0"),
        (request(parameters={"binary_data_size": -1}), "binary_data_size"),
        (json.dumps({"inputs": [{"name": "x", "shape": [0], "datatype": "FP32", "data": []}] * 2}).encode(), "stands twice"),
    ],
)  # fmt: skip
def test_a_body_that_is_not_the_protocol_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(InputError) as caught:
        oip.read_request(body, None)
    assert said in str(caught.value)


@pytest.mark.parametrize(("json_bytes", "said"), [(10_000, "expected 0 to"), (-1, "expected 0 to")])
def test_a_header_length_outside_the_body_is_refused(json_bytes: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        oip.read_request(request(data=[1, 2]), json_bytes)


def test_bytes_left_over_are_refused() -> None:
    body = oip.write_request({"x": np.zeros(2, np.float32)}, request_id="r", binary=True)
    with pytest.raises(InputError, match="bytes after the last tensor: expected 0, got 3"):
        oip.read_request(body.data + b"abc", body.json_bytes)
