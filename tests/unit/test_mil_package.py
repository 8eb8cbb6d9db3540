"""Packing a Core ML package: one conversion, one byte string; and every way a packed one can be hostile."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.exporter.mil import pack_mlpackage, unpack_mlpackage
from edgeml.exporter.mil.backend import open_mil
from edgeml.exporter.mil.package import MANIFEST, MODEL, WEIGHTS, pack_files, unpack_files
from edgeml.exporter.mil.schema import parse_model
from edgeml.runtime.backends import EngineOptions
from edgeml.wire.canonical import ZipEntry, directory, local_header
from edgeml.wire.errors import EdgemlError, ModelError
from tests.unit.mil_builder import convert, package, run

X = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def model() -> bytes:
    weight = np.arange(64, dtype=np.float32).reshape(16, 4)
    return package(lambda mb, a: mb.relu(x=mb.linear(x=a, weight=weight)), [X])


def _zip(files: Mapping[str, bytes]) -> bytes:
    entries = [ZipEntry(name, len(data), zlib.crc32(data)) for name, data in files.items()]
    return b"".join(part for e in entries for part in (local_header(e), files[e.name])) + directory(entries)


def test_unpacked_files_are_the_packed_ones(model: bytes, tmp_path: Path) -> None:
    unpack_mlpackage(model, tmp_path / "m.mlpackage")
    assert pack_mlpackage(tmp_path / "m.mlpackage") == model


def test_two_conversions_give_the_same_bytes() -> None:
    first, second = (package(lambda mb, a: mb.relu(x=a), [X]) for _ in range(2))
    assert first == second


def test_versions_dates_and_identifiers_are_left_out(model: bytes) -> None:
    files = unpack_files(model)
    assert b"coremltools" not in files[MODEL]
    assert b"202" not in files[MANIFEST]


def test_inner_names_say_operation_and_position(model: bytes) -> None:
    function = parse_model(unpack_files(model)[MODEL]).mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    assert [op.outputs[0].name for op in block.operations if op.type != "const"] == ["linear_0", "relu_0", "y0"]


def test_inputs_and_outputs_take_the_names_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "m.mlpackage"
    convert(lambda mb, a: mb.relu(x=a), [X]).save(str(path))
    backend = open_mil(pack_mlpackage(path, inputs=["audio:0"], outputs=["0-label"]), EngineOptions())
    assert [raw.name for raw in backend.inputs] == ["audio_0"]
    assert [raw.name for raw in backend.outputs] == ["_0_label"]
    assert backend.run([-X])[0].tolist() == [[0, 0, 0, 0]]


def test_input_given_an_inner_name_keeps_its_meaning(tmp_path: Path) -> None:
    path = tmp_path / "m.mlpackage"
    convert(lambda mb, a: mb.relu(x=mb.mul(x=a, y=-1.0)), [X]).save(str(path))
    packed = pack_mlpackage(path, inputs=["mul_0"], outputs=["relu_0"])
    assert run(packed, X)[0].tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        WEIGHTS + "../../x",
        WEIGHTS + "a/b",
        WEIGHTS + ".hidden",
        "Data\\x",
        WEIGHTS,
        WEIGHTS + "a\0b",
        "other",
    ],
)
def test_name_that_does_not_belong_is_refused(model: bytes, name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        unpack_mlpackage(_zip(unpack_files(model) | {name: b"x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_link_in_a_folder_is_refused(model: bytes, tmp_path: Path) -> None:
    unpack_mlpackage(model, tmp_path)
    (tmp_path / "Data" / "link").symlink_to("/etc/passwd")
    with pytest.raises(ModelError, match="link"):
        pack_mlpackage(tmp_path)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="mlpackage"):
        pack_mlpackage(tmp_path)


def test_every_cut_is_refused(model: bytes) -> None:
    for size in range(0, len(model), max(1, len(model) // 50)):
        with pytest.raises(ModelError):
            unpack_files(model[:size])


def test_bytes_after_the_end_are_refused(model: bytes) -> None:
    with pytest.raises(ModelError):
        unpack_files(model + b"\0")


def test_file_that_claims_to_be_huge_is_refused(model: bytes) -> None:
    forged = bytearray(model)
    forged[22:26] = b"\xff\xff\xff\x7f"  # the first local header's size
    with pytest.raises(ModelError):
        unpack_files(bytes(forged))


@given(st.integers(0, 1 << 30), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_changed_byte_is_refused(model: bytes, place: int, change: int) -> None:
    forged = bytearray(model)
    forged[place % len(model)] ^= change
    with pytest.raises(ModelError):
        unpack_files(bytes(forged))


@given(st.integers(0, 1 << 30), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_damaged_program_ends_in_one_of_our_errors_or_runs(model: bytes, place: int, change: int) -> None:
    """A damaged but well-packed program may still mean something; it never ends in a foreign exception."""
    files = unpack_files(model)
    damaged = bytearray(files[MODEL])
    damaged[place % len(damaged)] ^= change
    with contextlib.suppress(EdgemlError):
        run(pack_files(files | {MODEL: bytes(damaged)}), X)
