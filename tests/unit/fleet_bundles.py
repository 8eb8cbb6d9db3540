"""Packed bundles for the fleet's tests: right in every byte of the wire format, with model bytes that nobody runs."""

from __future__ import annotations

from pathlib import Path

from edgeml.runtime.bundle import write_bundle
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.manifest import (
    SCHEMA,
    Artifact,
    Binding,
    Manifest,
    Parity,
    Requirement,
    Signature,
    SourceFile,
    TensorSpec,
)

X = TensorSpec("x", "float32", ("batch", 4))
Y = TensorSpec("y", "float32", ("batch", 3))


def make_manifest(model: bytes, name: str, version: str) -> Manifest:
    artifact = Artifact(
        format="onnx",
        precision="fp32",
        precision_found="fp32",
        sha256=sha256_hex(model),
        bytes=len(model),
        requires=Requirement("onnxruntime"),
        inputs=(Binding("x", "x", 0, "float32", ("batch", 4)),),
        outputs=(Binding("y", "y", 0, "float32", ("batch", 3)),),
        parity=Parity("pass", "verified", n=8, max_abs=0.0, rms=0.0),
    )
    return Manifest(
        schema=SCHEMA,
        name=name,
        version=version,
        signature=Signature((X,), (Y,)),
        source=SourceFile("onnx", sha256_hex(b"source"), 6),
        exporter={"edgeml": "0"},
        options={},
        seed=0,
        artifacts=(artifact,),
    )


def make_bundle(folder: Path, *, name: str = "kws", version: str = "1.0.0", model: bytes = b"model bytes") -> Path:
    """Write `<name>-<version>.edgeml` into `folder`, made if missing."""
    path = folder / f"{name}-{version}.edgeml"
    folder.mkdir(parents=True, exist_ok=True)
    write_bundle(make_manifest(model, name, version), {sha256_hex(model): model}, path)
    return path
