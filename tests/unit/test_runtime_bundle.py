from __future__ import annotations

import os
import random
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeml.runtime.bundle import open_bundle, unpack_bundle, write_bundle
from edgeml.wire.canonical import header_size, sha256_hex
from edgeml.wire.errors import BundleError, EnvironmentProblem
from edgeml.wire.manifest import Deferral, Manifest, Quantization
from edgeml.wire.packed import layout
from tests.unit.bundles import FULL, make_bundle, samples


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), artifacts=FULL)


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    unpack_bundle(packed, tmp_path / "kept")
    return tmp_path / "kept"


def damaged(packed: Path, position: int, target: Path) -> Path:
    data = bytearray(packed.read_bytes())
    data[position] ^= 1 << (position % 8)
    target.write_bytes(data)
    return target


def zip_structure(packed: Path) -> list[int]:
    """Positions of every byte that is not content: local headers, central directory, end record."""
    positions: list[int] = []
    at = 0
    with open_bundle(packed) as bundle:
        files = layout(bundle.manifest, len(bundle.manifest.encode()))
    for name, size in files:
        positions += range(at, at + header_size(name))
        at += header_size(name) + size
    return positions + list(range(at, packed.stat().st_size))


def test_a_bundle_gives_back_what_was_written(packed: Path) -> None:
    with open_bundle(packed) as bundle:
        assert bundle.digest == sha256_hex(bundle.manifest.encode())
        golden = bundle.tensor(bundle.manifest.golden_inputs[0])
        assert (golden == samples()).all()
        assert not golden.flags.writeable
        assert [sha256_hex(bundle.blob(a.sha256)) for a in bundle.manifest.artifacts] == [
            a.sha256 for a in bundle.manifest.artifacts
        ]


def test_equal_arguments_give_equal_bytes(packed: Path, tmp_path: Path) -> None:
    assert make_bundle(tmp_path, artifacts=FULL).read_bytes() == packed.read_bytes()


def test_any_zip_tool_can_read_it(packed: Path) -> None:
    with zipfile.ZipFile(packed) as file:
        assert file.namelist()[:2] == ["manifest.json", "manifest.sha256"]
        assert file.namelist()[2:] == sorted(file.namelist()[2:])
        assert file.testzip() is None


def test_every_changed_byte_of_the_zip_structure_is_refused(packed: Path, tmp_path: Path) -> None:
    positions = zip_structure(packed)
    assert len(positions) > 500
    for position in positions:
        with pytest.raises(BundleError) as caught:
            open_bundle(damaged(packed, position, tmp_path / "bad.edgeml"))
        assert any(word in str(caught.value) for word in ("manifest", "blob", "central directory", "packed bundle")), position


def test_200_random_changed_bytes_are_refused_by_name(packed: Path, tmp_path: Path) -> None:
    chance = random.Random(20261123)
    for position in chance.sample(range(packed.stat().st_size), 200):
        with pytest.raises(BundleError) as caught:
            open_bundle(damaged(packed, position, tmp_path / "bad.edgeml"))
        assert any(word in str(caught.value) for word in ("manifest", "blob", "central directory", "packed bundle")), position


def test_a_changed_artifact_is_named(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    position = data.index(b"TFL3") + 40
    with pytest.raises(BundleError, match=r"content of blob [0-9a-f]{12} \(artifact tflite:fp32\): expected sha256"):
        open_bundle(damaged(packed, position, tmp_path / "bad.edgeml"))


@pytest.mark.parametrize("cut", [0, 1, 29, 43, 200, 3000, -1], ids=str)
def test_a_truncated_bundle_is_refused(packed: Path, tmp_path: Path, cut: int) -> None:
    (tmp_path / "cut.edgeml").write_bytes(packed.read_bytes()[:cut])
    with pytest.raises(BundleError):
        open_bundle(tmp_path / "cut.edgeml")


def test_bytes_behind_the_zip_are_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "long.edgeml").write_bytes(packed.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="size of the packed bundle"):
        open_bundle(tmp_path / "long.edgeml")


def test_a_header_that_promises_a_huge_manifest_is_refused_before_reading(packed: Path, tmp_path: Path) -> None:
    data = bytearray(packed.read_bytes())
    struct.pack_into("<II", data, 18, 0xF000_0000, 0xF000_0000)
    (tmp_path / "huge.edgeml").write_bytes(data)
    with pytest.raises(BundleError, match="too large: expected at most 8388608 bytes, got 4026531840"):
        open_bundle(tmp_path / "huge.edgeml")


def test_the_same_files_zipped_by_another_tool_are_refused(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(tmp_path / "other.edgeml", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(BundleError):
        open_bundle(tmp_path / "other.edgeml")


@pytest.mark.parametrize("place", ["missing.edgeml", "fifo"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BundleError, match=place):
        open_bundle(tmp_path / place)


def test_a_blob_changed_after_opening_is_noticed(packed: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(packed, tmp_path / "moving.edgeml"))
    with open_bundle(path) as bundle:
        artifact = bundle.manifest.artifacts[0]
        data = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(data.index(bundle.blob(artifact.sha256)))
            file.write(b"else")
        with pytest.raises(BundleError, match=r"artifact onnx:fp32.*changed since"):
            bundle.blob(artifact.sha256)


def test_a_folder_is_the_same_bundle(packed: Path, folder: Path) -> None:
    with open_bundle(packed) as first, open_bundle(folder) as second:
        assert first.digest == second.digest
        assert first.blob(first.manifest.artifacts[0].sha256) == second.blob(first.manifest.artifacts[0].sha256)


def test_sha256sum_checks_the_folders_manifest(folder: Path) -> None:
    digest, _, name = (folder / "manifest.sha256").read_text().strip().partition("  ")
    assert (digest, name) == (sha256_hex((folder / "manifest.json").read_bytes()), "manifest.json")


def blob_of(folder: Path) -> Path:
    return min((folder / "blobs" / "sha256").iterdir())


def link_a_blob(folder: Path) -> None:
    blob = blob_of(folder)
    shutil.move(blob, folder.parent / "outside")
    blob.symlink_to(folder.parent / "outside")


def link_the_blobs(folder: Path) -> None:
    shutil.move(folder / "blobs", folder.parent / "outside")
    (folder / "blobs").symlink_to(folder.parent / "outside")


def fifo_for_a_blob(folder: Path) -> None:
    blob = blob_of(folder)
    blob.unlink()
    os.mkfifo(blob)


def change_a_blob(folder: Path) -> None:
    blob = blob_of(folder)
    blob.write_bytes(bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:])


def change_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"1.0.0", b"9.0.0"))


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (link_a_blob, "links are refused"),
        (link_the_blobs, "'blobs' is not a folder"),
        (fifo_for_a_blob, "not a regular file"),
        (change_a_blob, "content of blob"),
        (change_the_manifest, "not the digest of manifest.json"),
        (lambda folder: blob_of(folder).unlink(), "lacks 'blobs/sha256/"),
        (lambda folder: (folder / "extra").touch(), "does not name: 'extra'"),
        (lambda folder: (folder / "blobs" / "extra").touch(), "does not name: 'blobs/extra'"),
        (lambda folder: blob_of(folder).write_bytes(b""), "size of blob"),
    ],
    ids=[
        "linked-blob",
        "linked-blobs",
        "fifo",
        "changed-blob",
        "changed-manifest",
        "missing",
        "extra",
        "extra-blob",
        "empty-blob",
    ],
)
def test_a_folder_that_is_not_exactly_its_files_is_refused(folder: Path, attack: Any, named: str) -> None:
    attack(folder)
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert named in str(caught.value)


def lie(manifest: Manifest, **changes: Any) -> Manifest:
    return msgspec.structs.replace(manifest, **changes)


def with_artifact(manifest: Manifest, **changes: Any) -> Manifest:
    return lie(manifest, artifacts=(msgspec.structs.replace(manifest.artifacts[0], **changes), *manifest.artifacts[1:]))


def with_input_binding(manifest: Manifest, **changes: Any) -> Manifest:
    return with_artifact(manifest, inputs=(msgspec.structs.replace(manifest.artifacts[0].inputs[0], **changes),))


def with_golden_input(manifest: Manifest, **changes: Any) -> Manifest:
    return lie(manifest, golden_inputs=(msgspec.structs.replace(manifest.golden_inputs[0], **changes),))


def with_golden_output(manifest: Manifest, **changes: Any) -> Manifest:
    golden = manifest.artifacts[0].golden
    assert golden is not None
    output = msgspec.structs.replace(golden.outputs[0], **changes)
    return with_artifact(manifest, golden=msgspec.structs.replace(golden, outputs=(output,)))


def with_shape(manifest: Manifest, *shape: int | str) -> Manifest:
    spec = msgspec.structs.replace(manifest.signature.inputs[0], shape=shape)
    return lie(manifest, signature=msgspec.structs.replace(manifest.signature, inputs=(spec,)))


LIES = {
    "no artifacts": lambda m: lie(m, artifacts=()),
    "stands twice": lambda m: lie(m, artifacts=(m.artifacts[0], m.artifacts[0])),
    "do not bind the signature": lambda m: with_input_binding(m, name="y"),
    "permute": lambda m: with_input_binding(m, permute=(0, 2)),
    "an integer dtype": lambda m: with_input_binding(m, quantization=Quantization(0.1, 0)),
    "scale": lambda m: with_input_binding(m, dtype="int8", quantization=Quantization(0.0, 0)),
    "zero point": lambda m: with_input_binding(m, dtype="int8", quantization=Quantization(0.1, 200)),
    "bytes of float32": lambda m: with_golden_input(m, shape=(31, 4)),
    "golden inputs": lambda m: with_golden_input(m, name="other"),
    "axis": lambda m: with_golden_output(m, axis=2, units=(1.0, 1.0, 1.0)),
    "units": lambda m: with_golden_output(m, axis=1, units=(1.0, 1.0)),
    "unit": lambda m: with_golden_output(m, axis=1, units=(1.0, 1.0, 0.0)),
    "too many elements": lambda m: with_golden_input(m, shape=(2**20, 2**20)),
    "signature input 'x' has too many elements": lambda m: with_shape(m, 2**31, 2),
    "an axis is too small": lambda m: with_shape(m, "batch", 0),
    "post-processing reads an output": lambda m: lie(m, post=msgspec.structs.replace(m.post, output="nope")),
    "onnx:fp32: temperature": lambda m: lie(m, artifacts=(msgspec.structs.replace(m.artifacts[0], deferral=Deferral(-1.0)),)),
    "temperature": lambda m: lie(m, post=msgspec.structs.replace(m.post, temperature=0.0)),
    "labels of output": lambda m: lie(m, labels=("only", "two")),
}


@pytest.mark.parametrize("named", LIES)
def test_a_manifest_that_contradicts_itself_is_refused(packed: Path, tmp_path: Path, named: str) -> None:
    with open_bundle(packed) as bundle:
        liar = LIES[named](bundle.manifest)
        blobs = {digest: bundle.blob(digest) for digest in bundle.manifest.blobs()}
    with pytest.raises(BundleError) as caught:
        write_bundle(liar, blobs, tmp_path / "liar.edgeml")
    assert named in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_blobs_that_are_not_what_the_manifest_says_are_not_written(packed: Path, tmp_path: Path) -> None:
    with open_bundle(packed) as bundle:
        blobs = {digest: bundle.blob(digest) for digest in bundle.manifest.blobs()}
        manifest = bundle.manifest
    first = next(iter(blobs))
    for wrong in ({**blobs, first: b"else"}, {**blobs, "0" * 64: b"more"}, {k: v for k, v in blobs.items() if k != first}):
        with pytest.raises(BundleError):
            write_bundle(manifest, wrong, tmp_path / "wrong.edgeml")
    assert list(tmp_path.iterdir()) == []


def test_unpacking_over_something_leaves_it_alone(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine").write_text("mine")
    with pytest.raises(EnvironmentProblem, match="exists"):
        unpack_bundle(packed, tmp_path / "kept")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "mine"]
