"""Changed bytes of small valid files, on every reader of models and samples: an error of ours, or success, and nothing else.

`EDGEML_FUZZ_EXAMPLES` sets how many changes each reader gets; the default keeps the everyday tests fast.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgeml.exporter.mil.backend import load_interpreter
from edgeml.exporter.mil.package import MODEL, WEIGHTS, pack_files, unpack_files
from edgeml.exporter.mil.schema import data_types, new_model
from edgeml.exporter.source.model import SourceRef
from edgeml.exporter.source.onnx import load
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.inspection import inspect_model
from edgeml.runtime.npz import read_npz
from edgeml.wire.canonical import ZipEntry, directory, local_header, sha256_hex
from edgeml.wire.errors import EdgemlError
from edgeml.wire.packed import DIGEST, MANIFEST, digest_file
from tests.unit.bundles import make_bundle, onnx_int8_model, onnx_model, tflite_model

EXAMPLES: Final = int(os.environ.get("EDGEML_FUZZ_EXAMPLES", "60"))
FUZZ: Final = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
GROWTH_BYTES: Final = 400 << 20  # what all examples of one reader may add to the process's peak


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


@st.composite
def changes(draw: st.DrawFn, valid: bytes) -> bytes:
    """One to four changes: bytes flipped, cut, moved or doubled, and numbers as protocol buffers and flatbuffers write them."""
    data = valid
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        size = draw(st.integers(1, 64))
        match draw(st.integers(0, 7)):
            case 0:
                data = data[:at] + bytes(b ^ draw(st.integers(1, 255)) for b in data[at : at + 1]) + data[at + 1 :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + data[at + size :]
            case 3:
                there = draw(st.integers(0, len(data)))
                data = data[:there] + data[at : at + size] + data[there:]
            case 4:
                data = data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]
            case 5:
                number = struct.pack("<Q", draw(st.sampled_from(NUMBERS)))[: draw(st.sampled_from([1, 2, 4, 8]))]
                at -= at % len(number)
                data = data[:at] + number + data[at + len(number) :]
            case 6:
                data = data[:at] + varint(draw(st.sampled_from(NUMBERS))) + data[at + 1 :]
            case _:
                data = data[:at] + data[at : at + size] * draw(st.integers(2, 40)) + data[at + size :]
    return data


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
    before = peak_bytes()
    yield
    assert peak_bytes() - before < GROWTH_BYTES


def survives(read: Callable[[bytes], object], valid: bytes) -> None:
    """The valid bytes are read; what became of them ends in an error of ours or is read too."""
    read(valid)

    @given(changes(valid))
    @FUZZ
    def check(data: bytes) -> None:
        try:
            read(data)
        except EdgemlError as error:
            assert "\n" not in str(error)  # noqa: PT017 - a message is one line

    check()


@pytest.mark.parametrize("model", [onnx_model(), onnx_int8_model(), tflite_model()], ids=["onnx", "onnx int8", "tflite"])
def test_looking_into_a_model_file(model: bytes) -> None:
    survives(inspect_model, model)


def test_looking_into_a_core_ml_package() -> None:
    survives(inspect_model, coreml_package())


@pytest.mark.parametrize("model", [onnx_model(), onnx_int8_model()], ids=["float", "int8"])
def test_reading_an_onnx_source(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load.cache_clear()
        load(SourceRef(str(path), "onnx"))

    survives(read, model)


def test_reading_a_packed_bundle(tmp_path: Path) -> None:
    path = make_bundle(tmp_path)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        open_bundle(path).close()

    survives(read, path.read_bytes())


def test_reading_a_bundle_whose_digests_were_made_to_fit(tmp_path: Path) -> None:
    """Only the manifest is changed, and everything that depends on it is computed anew."""
    path = make_bundle(tmp_path)
    with open_bundle(path) as bundle:
        manifest = bundle.manifest.encode()
        blobs = {digest: bundle.blob(digest) for digest in bundle.manifest.blobs()}

    def read(data: bytes) -> None:
        files = {MANIFEST: data, DIGEST: digest_file(sha256_hex(data))}
        files |= {f"blobs/sha256/{digest}": blob for digest, blob in sorted(blobs.items())}
        path.write_bytes(zipped(files))
        open_bundle(path).close()

    survives(read, manifest)


def test_reading_samples(tmp_path: Path) -> None:
    buffer, path = io.BytesIO(), tmp_path / "s.npz"
    np.savez(buffer, x=np.arange(12, dtype=np.float32).reshape(3, 4), y=np.array([0, 1, 2]))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_npz(path)

    survives(read, buffer.getvalue())


def test_reading_samples_whose_header_was_changed(tmp_path: Path) -> None:
    buffer, path = io.BytesIO(), tmp_path / "s.npz"
    np.save(buffer, np.arange(12, dtype=np.float32).reshape(3, 4))

    def read(data: bytes) -> None:
        path.write_bytes(zipped({"x.npy": data}))
        read_npz(path)

    survives(read, buffer.getvalue())


def test_reading_a_core_ml_package() -> None:
    survives(load_interpreter, coreml_package())


@pytest.mark.parametrize("name", [MODEL, f"{WEIGHTS}weight.bin"])
def test_reading_a_core_ml_program_whose_packing_is_right(name: str) -> None:
    files = unpack_files(coreml_package())

    def read(data: bytes) -> None:
        load_interpreter(zipped(dict(sorted((files | {name: data}).items()))))
        pack_files(files | {name: data})

    survives(read, files[name])


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip as edgeml packs it."""
    entries = [ZipEntry(name, len(data), zlib.crc32(data)) for name, data in files.items()]
    return b"".join(part for e in entries for part in (local_header(e), files[e.name])) + directory(entries)


def coreml_package() -> bytes:
    """y = x + w with w in a weight file, written without coremltools."""
    kinds = {word: number for number, word in data_types().items()}
    model = new_model()
    model.specificationVersion = 7
    model.description.input.add(name="x").type.multiArrayType.shape.extend([1, 4])
    model.description.output.add(name="y").type.multiArrayType.shape.extend([1, 4])
    program = model.mlProgram
    program.version = 1
    function = program.functions["main"]
    function.opset = "CoreML6"
    tensor(kinds, function.inputs.add(name="x").type)
    block = function.block_specializations["CoreML6"]
    constant = block.operations.add(type="const")
    tensor(kinds, constant.outputs.add(name="w").type)
    value = constant.attributes["val"]
    tensor(kinds, value.type)
    value.blobFileValue.fileName, value.blobFileValue.offset = "@model_path/weights/weight.bin", 64
    add = block.operations.add(type="add")
    add.inputs["x"].arguments.add(name="x")
    add.inputs["y"].arguments.add(name="w")
    tensor(kinds, add.outputs.add(name="y").type)
    block.outputs.append("y")
    weights = struct.pack("<II56x", 1, 2) + struct.pack("<IIQQ40x", 0xDEADBEEF, 1, 16, 128)
    weights += np.arange(4, dtype=np.float32).tobytes()
    return pack_files({MODEL: model.SerializeToString(), f"{WEIGHTS}weight.bin": weights})


def tensor(kinds: dict[str, int], spec: Any) -> None:
    spec.tensorType.dataType, spec.tensorType.rank = kinds["float32"], 2
    for size in (1, 4):
        spec.tensorType.dimensions.add().constant.size = size


def test_the_program_that_is_changed_computes() -> None:
    answer = load_interpreter(coreml_package()).run({"x": np.ones((1, 4), np.float32)})
    assert json.dumps({name: values.tolist() for name, values in answer.items()}) == '{"y": [[1.0, 2.0, 3.0, 4.0]]}'
