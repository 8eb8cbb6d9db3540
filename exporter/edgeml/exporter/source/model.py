"""What is known of a source model: where it is, what it takes and gives, and which file it is by content."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from edgeml.exporter.free import FreeAxis
from edgeml.runtime.backends import Array
from edgeml.wire.errors import ModelError, PlanError, UnsupportedError
from edgeml.wire.manifest import BATCH, Count, Precision, Sha256, Signature, TensorSpec

Kind = Literal[
    "keras-h5", "keras", "savedmodel", "torch", "torch-pt2", "torchscript", "onnx", "tflite", "sklearn", "sklearn-py"
]
Family = Literal["tensorflow", "torch", "onnx", "tflite", "sklearn"]
"""Which framework runs the source, hence which worker."""

FAMILY: Final[dict[Kind, Family]] = {
    "keras-h5": "tensorflow",
    "keras": "tensorflow",
    "savedmodel": "tensorflow",
    "torch": "torch",
    "torch-pt2": "torch",
    "torchscript": "torch",
    "onnx": "onnx",
    "tflite": "tflite",
    "sklearn": "sklearn",
    "sklearn-py": "sklearn",
}
WHOLE: Final[frozenset[Kind]] = frozenset({"keras-h5", "keras", "savedmodel", "torch-pt2", "torchscript", "tflite", "sklearn"})
"""Kinds whose file or folder holds all there is to the model."""
DEFAULT_SIGNATURE: Final = "serving_default"
CHUNK_BYTES: Final = 1 << 20
SAMPLE_LIMIT_BYTES: Final = 1 << 30  # of one tensor; the worker that would make it may take eight times that


class SourceRef(msgspec.Struct, frozen=True):
    """A model on disk.

    `factory` names the callable of a Python file, `example` an .npz whose samples give shapes, `signature` one of several ways
    to call the model, `sizes` the sizes that named axes have in the samples: TFLite and Core ML are fixed to them, but for the
    axes that are to be `free`.
    """

    path: str
    kind: Kind
    factory: str | None = None
    trust: bool = False
    example: str | None = None
    seed: int = 0
    signature: str | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    free: tuple[FreeAxis, ...] = ()

    @property
    def family(self) -> Family:
        return FAMILY[self.kind]


class SourceModel(msgspec.Struct, frozen=True):
    """A source that was loaded once: its contract and identity. `notes` is for the report, `metadata` came with the file.

    `fingerprint` is a digest of all that its conversion depends on: code and files beside the source too. `stored` is the
    precision of the source's own tensors: a quantized file has no other one. `classes` are a classifier's class numbers, in
    order of its scores, where they do not simply count from 0.
    """

    kind: Kind
    signature: Signature
    sha256: Sha256
    bytes: Count
    labels: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    libraries: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    stored: Precision = "fp32"
    classes: tuple[int, ...] = ()


def feed(sample: Array, spec: TensorSpec, start: int, count: int) -> Array:
    """What one call is fed for `spec` from `count` samples at `start`: without a batch axis it is one sample, bare."""
    return sample[start : start + count] if spec.has_batch else np.asarray(sample[start])


def write_arrays(path: Path | str, arrays: Sequence[Array]) -> None:
    """Arrays to an .npz by position: tensor names are data, and some are no file names."""
    np.savez(path, *arrays)


def read_arrays(path: Path | str, names: Sequence[str]) -> dict[str, Array]:
    """What `write_arrays` wrote, under `names` in the same order."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[f"arr_{index}"] for index, name in enumerate(names)}


def gather(calls: Sequence[Sequence[Array]], signature: Signature) -> list[Array]:
    """The outputs of many calls in the signature's order, samples on the first axis."""
    return [
        np.concatenate([call[i] if spec.has_batch else np.asarray(call[i])[None] for call in calls])
        for i, spec in enumerate(signature.outputs)
    ]


def names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs]


def refuse_lone_samples(ref: SourceRef, *, any_batch: bool) -> None:
    """Raises:
    UnsupportedError: a free batch was asked for, and the source takes one sample a call.
    """
    if not any_batch and BATCH in {axis.name for axis in ref.free}:
        raise UnsupportedError("axis 'batch' cannot be free: the source takes one sample a call", hint="leave it out of --free")


def batched(signature: Signature) -> bool:
    """Whether one call can take many samples: every input and output stacks them."""
    return all(spec.has_batch for spec in (*signature.inputs, *signature.outputs))


def stack_ones(signature: Signature) -> Signature:
    """The signature with a batch axis where every input and output leads with 1: such a model is called once a sample."""
    tensors = (*signature.inputs, *signature.outputs)
    if not all(spec.shape and spec.shape[0] in {1, BATCH} for spec in tensors):
        return signature
    inputs, outputs = (
        tuple(msgspec.structs.replace(spec, shape=(BATCH, *spec.shape[1:])) for spec in specs)
        for specs in (signature.inputs, signature.outputs)
    )
    return Signature(inputs, outputs)


def choose_signature(asked: str | None, found: Sequence[str], what: str) -> str | None:
    """The name of the signature to export: what was asked for, else the default, else the only one; `None` if there are none.

    Raises:
        PlanError: it is not there, or nothing says which of several.
    """
    listed = ", ".join(sorted(found)) or "none"
    if asked is not None:
        if asked not in found:
            raise PlanError(f"{what!r} has no signature {asked!r}", expected="one of its own", got=listed)
        return asked
    if DEFAULT_SIGNATURE in found or not found:
        return DEFAULT_SIGNATURE if found else None
    if len(found) > 1:
        raise PlanError(f"{what!r} has several signatures: {listed}", hint="choose one with --signature NAME")
    return found[0]


def identity(path: Path) -> tuple[str, int]:
    """(sha256, bytes) of a file, or of a folder by its sorted relative names and their digests."""
    if path.is_file():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest(), path.stat().st_size
    total, listing = 0, hashlib.sha256()
    for file_path in sorted((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.relative_to(path).as_posix()):
        inner, size = identity(file_path)
        listing.update(f"{file_path.relative_to(path).as_posix()}\0{inner}\n".encode())
        total += size
    return listing.hexdigest(), total


def fingerprint(ref: SourceRef) -> dict[str, object] | None:
    """All that loading a source depends on; `None` where that is more than its file."""
    if ref.kind not in WHOLE:
        return None
    example = identity(Path(ref.example))[0] if ref.example is not None and ref.family == "torch" else None
    told = {"kind": ref.kind, "trust": ref.trust, "seed": ref.seed, "example": example, "signature": ref.signature}
    return {**told, "source": identity(Path(ref.path))}


def check_signature(signature: Signature) -> None:
    """Refuse a contract that no bundle can keep.

    Raises:
        ModelError: two inputs or two outputs of one name.
        UnsupportedError: a tensor without elements, or of more than any device holds.
    """
    for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if names(specs).count(spec.name) > 1:
                raise ModelError(f"two {side}s are called {spec.name!r}", hint="give each a name of its own")
            fixed = [size for size in spec.shape if isinstance(size, int)]
            if any(size < 1 for size in fixed):
                raise UnsupportedError(f"{side} {spec.name!r} has no elements", got=f"shape {spec.shape}")
            size = math.prod(fixed) * np.dtype(spec.dtype).itemsize
            if size > SAMPLE_LIMIT_BYTES:
                raise UnsupportedError(
                    f"{side} {spec.name!r} of one sample", expected=f"at most {SAMPLE_LIMIT_BYTES:,} bytes", got=f"{size:,}"
                )


def refuse_non_finite(weights: Iterable[tuple[str, Array]]) -> None:
    """Raises:
    ModelError: a weight holds NaN or infinity; the tensor is named.
    """
    for name, values in weights:
        if not np.issubdtype(values.dtype, np.inexact):
            continue
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            raise ModelError(
                f"weight {name!r} holds NaN or infinity in {bad} of {math.prod(values.shape)} values",
                hint="export a checkpoint from before training diverged",
            )
