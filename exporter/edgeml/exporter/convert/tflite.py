"""To TFLite: Keras and SavedModel by TensorFlow's converter, torch and ONNX by litert-torch.

A model takes one sample a call, and the session loops; axes named by `--free` are left open, see `tflite_axes`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeml.exporter.convert.detour import to_onnx
from edgeml.exporter.convert.onnx import free_name, unsupported
from edgeml.exporter.convert.tflite_axes import with_free_axes
from edgeml.exporter.convert.tflite_operators import bounded_celu, bounded_elu
from edgeml.exporter.source.model import SourceRef, refuse_lone_samples
from edgeml.exporter.source.tflite_graphs import pack_model, parse_model
from edgeml.wire.errors import MissingExtraError, UnsupportedError
from edgeml.wire.manifest import Signature

RUNTIME_VERSION: Final = b"min_runtime_version"  # the one entry of the metadata that says what a device needs
PREFIX: Final = re.compile(r"^(?:StatefulPartitionedCall/|serving_default_|model/)+")
POSITION: Final = re.compile(r"(?:serving_default_)?args_(\d+):0|Identity(?:_(\d+))?|StatefulPartitionedCall:(\d+)")
WRAPPED: Final = (
    "edgeml.exporter."  # litert-torch's path of a tensor begins at what wraps the module, each part `package.Class_name`
)
PART: Final = re.compile(r"(?:[\w<>]+\.)+_*[A-Za-z0-9]+?(?:_(\w+))?")
MISSING: Final = re.compile(r"(?:TF Select|Custom) ops: ([\w, ]+)|op '?tf\.(\w+)'?|'tf\.(\w+)' op")


def from_tensorflow(source: dict[str, Any], out: str) -> list[str] | dict[str, Any]:
    """Job: write the TFLite of a Keras or SavedModel source; gives notes, or a `Detour` where TFLiteConverter refuses it."""
    from edgeml.exporter.source.tensorflow import load

    ref = msgspec.convert(source, SourceRef)
    refuse_lone_samples(ref, any_batch=load(ref).any_batch)
    try:
        model = with_free_axes(ref, _graph_to_tflite)
    except UnsupportedError as refusal:
        return to_onnx(source, out, refusal)
    Path(out).write_bytes(canonical(model, load(ref).signature))
    return []


def _graph_to_tflite(ref: SourceRef, count: int) -> bytes:
    import tensorflow as tf

    from edgeml.exporter.source.tensorflow import frozen

    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen(ref, count)])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        return bytes(converter.convert())
    except Exception as error:
        names = {name for match in MISSING.findall(str(error)) for part in match for name in part.split(", ") if name}
        if names:
            listed = ", ".join(map(repr, sorted(names)))
            raise UnsupportedError(f"TFLite has no operator for {listed}", hint="rewrite it with others") from error
        raise unsupported("TFLiteConverter", error) from error


def from_torch(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the TFLite of a torch source, or of an ONNX source through its torch form; gives notes."""
    from edgeml.exporter.source.torch import load

    ref = msgspec.convert(source, SourceRef)
    refuse_lone_samples(ref, any_batch=load(ref).any_batch)
    model = with_free_axes(ref, _torch_at)
    Path(out).write_bytes(canonical(model, load(ref).signature))
    return []


def _torch_at(ref: SourceRef, count: int) -> bytes:
    try:
        import litert_torch
        from litert_torch.fx_infra import decomp
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "litert_torch", "export") from error
    import torch

    from edgeml.exporter.source.torch import load
    from edgeml.exporter.source.torchscript import as_operators

    decomp.add_pre_convert_decomp(torch.ops.aten.elu.default, bounded_elu)
    decomp.add_pre_convert_decomp(torch.ops.aten.celu.default, bounded_celu)
    model = load(ref)
    try:
        module = as_operators(model) if ref.kind == "torchscript" else model.module
        return bytes(litert_torch.convert(module, model.example(count)).model_content())
    except Exception as error:
        raise unsupported("litert-torch", error) from error


from_onnx = from_torch
from_sklearn = from_torch


def from_tflite(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the TFLite file as it was given; gives notes."""
    from edgeml.exporter.source.tflite import load

    model = load(msgspec.convert(source, SourceRef))
    if model.stored == "fp32" and _repeats(model.model):
        Path(out).write_bytes(canonical(model.model, model.signature))
        return ["tensors that shared a name were given names of their own"]
    Path(out).write_bytes(model.model)
    return ["packed as it was given"]


def _repeats(model: bytes) -> bool:
    """Whether tensors share a name: ranges and layers are told apart by names."""
    found = [tensor.name for graph in parse_model(model).subgraphs for tensor in graph.tensors]
    return len(set(found)) < len(found)


def canonical(model: bytes, signature: Signature) -> bytes:
    """The model with the signature's names for its inputs and outputs, and short inner names without converters' counters.

    Which tensor is which is read from the converters' own names; where those say nothing the name stays, and the bindings are
    proved by value in any case. Weights keep the 16-byte alignment that the schema asks for.
    """
    parsed = parse_model(model)
    graph = parsed.subgraphs[0]
    taken: set[str] = set()
    known: dict[int, str] = {}
    for indices, specs in ((graph.inputs, signature.inputs), (graph.outputs, signature.outputs)):
        for index in indices:
            place = _place(graph.tensors[index].name.decode(), [spec.name for spec in specs])
            if place is not None and place < len(specs) and index not in known and specs[place].name not in taken:
                known[index] = free_name(specs[place].name, taken)
    for number, one in enumerate(parsed.subgraphs):
        for index, tensor in enumerate(one.tensors):
            own = known.get(index) if number == 0 else None
            tensor.name = (own or free_name(_short((tensor.name or b"").decode()), taken)).encode()
    for definition in parsed.signatureDefs or ():
        for entry in (*(definition.inputs or ()), *(definition.outputs or ())):
            entry.name = graph.tensors[entry.tensorIndex].name
    parsed.description = b""
    parsed.metadata = [entry for entry in parsed.metadata or () if entry.name == RUNTIME_VERSION]
    return pack_model(parsed)


def _place(name: str, names: list[str]) -> int | None:
    """The position in the signature that a converter's tensor name stands for: the very name, `args_2`, `Identity_1`."""
    plain = PREFIX.sub("", name).partition(":")[0]
    if plain in names:
        return names.index(plain)
    found = POSITION.fullmatch(name)
    if found is None:
        return None
    return int(next(filter(None, found.groups()), "0"))


def _short(name: str) -> str:
    """One readable part of a fused tensor's name: `a/Relu;b/BiasAdd;6468;b/Conv2D1` gives `b/Conv2D1`.

    Of a torch module's path the modules' own names: `…Flat/nets.Net_inner/torch.nn.modules.conv.Conv2d_0` gives `inner/0`.
    """
    parts = [part for part in name.split(";") if part and not part.isdigit() and not part.endswith("resource")]
    short = PREFIX.sub("", parts[-1] if parts else name)
    if short.startswith(WRAPPED):
        found = [PART.fullmatch(part) for part in short.split("/")]
        short = "/".join(part[1] for part in found if part is not None and part[1]) or short
    return short or "tensor"
