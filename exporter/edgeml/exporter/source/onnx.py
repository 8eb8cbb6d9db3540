"""ONNX sources: checked before they are believed, run by the device's own engine for the reference.

An ONNX file may name other files for its tensors and promise any size; both are looked at before anything is allocated.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeml.exporter.source.model import (
    SourceModel,
    SourceRef,
    batched,
    feed,
    gather,
    identity,
    names,
    read_arrays,
    refuse_non_finite,
    stack_ones,
    write_arrays,
)
from edgeml.exporter.source.onnx_checks import check_operators, check_sizes, check_versions, take_in_external
from edgeml.exporter.source.torch import TorchModel
from edgeml.runtime.backends import EngineOptions, opener
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.errors import EdgemlError, MissingExtraError, ModelError, UnsupportedError
from edgeml.wire.manifest import BATCH, Signature, TensorSpec

CHUNK: Final = 64  # samples a call of the reference
LIMIT_BYTES: Final = 2**31 - 1  # protobuf's own
LABEL_KEYS: Final = ("labels", "classes", "names")


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A checked graph, its own tensor names as the signature."""

    signature: Signature
    proto: Any
    any_batch: bool


def _onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnx", "export") from error
    return onnx


@functools.lru_cache(maxsize=1)
def load(source: SourceRef) -> OnnxModel:
    """Read and check a graph.

    Raises:
        ModelError: damaged, hostile, or with weights that are not finite.
    """
    onnx = _onnx()
    path = Path(source.path)
    if path.stat().st_size > LIMIT_BYTES:
        raise ModelError(f"{path.name!r} is too large", expected=f"at most {LIMIT_BYTES} bytes", got=str(path.stat().st_size))
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:
        raise ModelError(f"{path.name!r} is not an ONNX model: truncated or damaged", hint="fetch or save it again") from error
    if not proto.graph.node:
        raise ModelError(f"{path.name!r} holds no graph", hint="fetch or save it again")
    try:
        check_versions(onnx, proto)
        take_in_external(onnx, proto, path.parent)
        check_operators(onnx, proto)
        check_sizes(onnx, proto)
        onnx.checker.check_model(proto)
        refuse_non_finite((t.name, onnx.numpy_helper.to_array(t)) for t in proto.graph.initializer)
        return _described(onnx, proto, path)
    except EdgemlError:
        raise
    except Exception as error:
        raise ModelError(f"{path.name!r} is not a valid ONNX model: {' '.join(str(error).split())[:300]}") from error


def _described(onnx: Any, proto: Any, path: Path) -> OnnxModel:
    known = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(_spec(onnx, value) for value in proto.graph.input if value.name not in known)
    if not inputs:
        raise UnsupportedError(f"{path.name!r} takes no input")
    signature = _name_batch(Signature(inputs, tuple(_spec(onnx, value) for value in proto.graph.output)))
    return OnnxModel(stack_ones(signature), proto, batched(signature))


def _spec(onnx: Any, value: Any) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(f"{value.name!r} is not a tensor", hint="export the model without sequences and maps")
    if isinstance(value.name, bytes):  # what protobuf gives where it cannot decode
        raise ModelError(f"the name {value.name!r} is not UTF-8", hint="name it in plain letters")
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    if not tensor.HasField("shape"):
        raise UnsupportedError(f"{value.name!r} has no declared shape", hint="run onnx.shape_inference first")
    sizes: list[int | str] = [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else (dim.dim_param or f"{value.name}_{axis}")
        for axis, dim in enumerate(tensor.shape.dim)
    ]
    try:
        return msgspec.convert({"name": value.name, "dtype": dtype, "shape": sizes}, TensorSpec)
    except msgspec.ValidationError as error:
        raise UnsupportedError(f"{value.name!r} holds {dtype}", hint="export the model with numeric tensors only") from error


def _name_batch(signature: Signature) -> Signature:
    """Call the free first axis `batch` if every input has one."""
    if not all(spec.shape and isinstance(spec.shape[0], str) for spec in signature.inputs):
        return signature

    def renamed(spec: TensorSpec) -> TensorSpec:
        free = bool(spec.shape) and isinstance(spec.shape[0], str)
        return msgspec.structs.replace(spec, shape=(BATCH, *spec.shape[1:])) if free else spec

    return Signature(tuple(map(renamed, signature.inputs)), tuple(map(renamed, signature.outputs)))


def as_module(source: SourceRef) -> TorchModel:
    """The graph as a torch module, by our own importer, so that torch's converters take it."""
    model = load(source)
    return TorchModel(
        model.signature, as_tuple_module(model.proto), zeros(model.signature, dict(source.sizes)), model.any_batch
    )


def zeros(signature: Signature, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """One sample of zeros for each input, named axes having the given sizes."""
    import torch

    return tuple(torch.zeros(_sizes(spec, sizes), dtype=getattr(torch, spec.dtype)) for spec in signature.inputs)


def _sizes(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    known = {BATCH: 1, **sizes}
    if free := [size for size in spec.shape if isinstance(size, str) and size not in known]:
        raise UnsupportedError(f"input {spec.name!r} has free axes {free}", hint="give samples, which say their size")
    return tuple(known[size] if isinstance(size, str) else size for size in spec.shape)


def as_tuple_module(proto: Any) -> Any:
    """The graph as a torch module that gives a tuple."""
    import torch

    from edgeml.exporter.importer import to_torch

    module = to_torch(proto)

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            result = self.inner(*tensors)
            if isinstance(result, torch.Tensor):
                return (result,)
            return tuple(result.values()) if isinstance(result, dict) else tuple(result)

    return Flat().eval()


def describe(source: dict[str, Any]) -> Any:
    """Job: `SourceModel` of a `SourceRef`, both as JSON-able values."""
    ref = msgspec.convert(source, SourceRef)
    model = load(ref)
    digest, size = identity(Path(ref.path))
    metadata = {entry.key: entry.value for entry in model.proto.metadata_props}
    described = SourceModel(
        ref.kind,
        model.signature,
        digest,
        size,
        _labels(metadata),
        metadata,
        {"onnx": version("onnx"), "onnxruntime": version("onnxruntime")},
        fingerprint=sha256_hex(model.proto.SerializeToString(deterministic=True)),  # tensors from other files included
    )
    return msgspec.to_builtins(described)


def _labels(metadata: dict[str, str]) -> tuple[str, ...]:
    for key in LABEL_KEYS:
        try:
            value = json.loads(metadata.get(key, ""))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, list):
            return tuple(map(str, value))
        if isinstance(value, dict):
            return tuple(str(item) for item in value.values())
    return ()


def reference(source: dict[str, Any], inputs: str, out: str) -> None:
    """Job: run the source on the samples of one .npz, write its outputs to another; the first axis counts samples."""
    model = load(msgspec.convert(source, SourceRef))
    backend = opener("onnx")(model.proto.SerializeToString(), EngineOptions(threads=1, kernels="exact"))
    by_name = read_arrays(inputs, names(model.signature.inputs))
    count = CHUNK if model.any_batch else 1
    calls = [
        backend.run([feed(by_name[spec.name], spec, start, count) for spec in model.signature.inputs])
        for start in range(0, len(next(iter(by_name.values()))), count)
    ]
    write_arrays(out, gather(calls, model.signature))
