"""Packed bundles for the fleet's tests: right in every byte of the wire format, with model bytes that nobody runs."""

from __future__ import annotations

from pathlib import Path

from edgeml.runtime.bundle import write_bundle
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.manifest import (
    SCHEMA,
    Artifact,
    Binding,
    Format,
    Manifest,
    Parity,
    Requirement,
    Signature,
    SourceFile,
    TensorSpec,
)

X = TensorSpec("x", "float32", ("batch", 4))
Y = TensorSpec("y", "float32", ("batch", 3))


def make_manifest(model: bytes, name: str, version: str, *, second: bytes | None = None) -> Manifest:
    models: dict[Format, bytes] = {"onnx": model}
    if second is not None:
        models["tflite"] = second
    return Manifest(
        schema=SCHEMA,
        name=name,
        version=version,
        signature=Signature((X,), (Y,)),
        source=SourceFile("onnx", sha256_hex(b"source"), 6),
        exporter={"edgeml": "0"},
        options={},
        seed=0,
        artifacts=tuple(_artifact(kind, data) for kind, data in models.items()),
    )


def _artifact(kind: Format, model: bytes) -> Artifact:
    return Artifact(
        format=kind,
        precision="fp32",
        precision_found="fp32",
        sha256=sha256_hex(model),
        bytes=len(model),
        requires=Requirement("onnxruntime" if kind == "onnx" else "litert"),
        inputs=(Binding("x", "x", 0, "float32", ("batch", 4)),),
        outputs=(Binding("y", "y", 0, "float32", ("batch", 3)),),
        parity=Parity("pass", "verified", n=8, max_abs=0.0, rms=0.0),
    )


def make_bundle(
    folder: Path, *, name: str = "kws", version: str = "1.0.0", model: bytes = b"model bytes", second: bytes | None = None
) -> Path:
    """Write `<name>-<version>.edgeml` into `folder`, made if missing; `second` is a TFLite artifact beside the ONNX one."""
    path = folder / f"{name}-{version}.edgeml"
    folder.mkdir(parents=True, exist_ok=True)
    blobs = {sha256_hex(data): data for data in (model, second) if data is not None}
    write_bundle(make_manifest(model, name, version, second=second), blobs, path)
    return path
