"""A bundle is packed from what the stages made, and opens again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeml.exporter.golden import golden_inputs
from edgeml.exporter.pack import check_folder, move_all, pack
from edgeml.exporter.samples import make_samples
from edgeml.runtime.bundle import open_bundle
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.errors import BundleError, EnvironmentProblem
from edgeml.wire.manifest import SCHEMA, Artifact, Binding, Manifest, Parity, Requirement, Signature, SourceFile, TensorSpec

MODEL = b"a model file"
GOLDEN = golden_inputs(make_samples({"x": np.arange(12, dtype=np.float32).reshape(3, 4)}), [0, 2])


def manifest() -> Manifest:
    artifact = Artifact(
        format="onnx",
        precision="fp32",
        precision_found="float32",
        sha256=sha256_hex(MODEL),
        bytes=len(MODEL),
        requires=Requirement("onnxruntime"),
        inputs=(Binding("x", "x", 0, "float32", ("batch", 4)),),
        outputs=(Binding("y", "y", 0, "float32", ("batch", 2)),),
        parity=Parity("pass", "verified", 3, 0.0, 0.0),
    )
    signature = Signature((TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 2)),))
    return Manifest(
        SCHEMA, "toy", "1.0.0", signature, SourceFile("onnx", "0" * 64, 1), {}, {}, 0, (artifact,), golden_inputs=GOLDEN.tensors
    )


def test_what_was_packed_opens_with_its_digest_and_tensors(tmp_path: Path) -> None:
    unused = {sha256_hex(b"left over"): b"left over"}
    digest = pack(manifest(), {sha256_hex(MODEL): MODEL, **GOLDEN.blobs, **unused}, tmp_path / "toy.edgeml")
    with open_bundle(tmp_path / "toy.edgeml") as bundle:
        assert bundle.digest == digest == manifest().digest
        np.testing.assert_array_equal(bundle.tensor(GOLDEN.tensors[0]), [[0, 1, 2, 3], [8, 9, 10, 11]])


def test_a_missing_blob_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing"):
        pack(manifest(), {sha256_hex(MODEL): MODEL}, tmp_path / "toy.edgeml")
    assert list(tmp_path.iterdir()) == []


def test_reports_and_bundle_appear_together_or_not_at_all(tmp_path: Path) -> None:
    place, out = tmp_path / "place", tmp_path / "out"
    for folder in (place, out):
        folder.mkdir()
    files = [place / name for name in ("a.edgeml", "b.html", "c.json")]
    for path in files:
        path.write_bytes(path.name.encode() * 100)
    (out / "a.edgeml").write_bytes(b"the one before")
    (out / ".c.json.part").symlink_to("/dev/full")  # a real disk that is full, for the last file only
    with pytest.raises(EnvironmentProblem, match="No space left"):
        move_all(files, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"a.edgeml": b"the one before"}
    assert move_all(files, out) == {path: out / path.name for path in files}
    assert sorted(path.name for path in out.iterdir()) == ["a.edgeml", "b.html", "c.json"]


def test_a_folder_that_cannot_be_written_is_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match="give another -o DIR"):
        check_folder(tmp_path / "file" / "out")
    check_folder(tmp_path / "not" / "yet" / "there")
    assert not (tmp_path / "not").exists()
