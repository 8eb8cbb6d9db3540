"""To ONNX: Keras and SavedModel by tf2onnx, torch by torch.onnx, ONNX by onnxslim; then one canonical form.

Canonical means: the signature's names and a batch axis called `batch`, no producer, doc strings or stack traces, inner
names without the counters that converters keep per process. Equal sources give equal bytes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgeml.exporter.convert.onnx_order import by_position, inner_graphs, settle
from edgeml.exporter.extras import missing
from edgeml.exporter.source.model import SourceRef
from edgeml.wire.errors import MissingExtraError, UnsupportedError
from edgeml.wire.manifest import BATCH, Signature, TensorSpec

if TYPE_CHECKING:
    from edgeml.exporter.source.tflite import TfliteModel

OPSET: Final = 18  # the newest that tf2onnx writes
IR_VERSION: Final = 10  # readable by ONNX Runtime 1.18 and later
COUNTER: Final = re.compile(r"__\d+|:\d+$")  # tf2onnx's process-wide counter; TensorFlow's output index
STANDARD: Final = frozenset({"", "ai.onnx"})
OPERATOR: Final = re.compile(r"aten[.:]+([\w.]+)|Tensorflow op \[[^\]]*: (\w+)\]|op type (\w+)|Lowering not found: (\w+)")


def from_tensorflow(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the ONNX of a Keras or SavedModel source; gives notes."""
    from edgeml.exporter.source.tensorflow import frozen, load

    try:
        import tf2onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError("tf2onnx", "keras") from error
    ref = msgspec.convert(source, SourceRef)
    model = load(ref)
    function = frozen(ref, None if model.any_batch else 1, free=_names(model.signature))
    try:
        proto, _ = tf2onnx.convert.from_graph_def(
            function.graph.as_graph_def(),
            input_names=[tensor.name for tensor in function.inputs],
            output_names=[tensor.name for tensor in function.outputs],
            opset=OPSET,
        )
    except Exception as error:
        raise unsupported("tf2onnx", error) from error
    settle(proto.graph)
    Path(out).write_bytes(canonical(proto, model.signature, positional=True))
    return []


def from_torch(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the ONNX of a torch source; gives notes."""
    import torch

    from edgeml.exporter.source.torch import load
    from edgeml.exporter.source.torchscript import as_operators

    ref = msgspec.convert(source, SourceRef)
    model = load(ref)
    batch = torch.export.Dim(BATCH, min=1)
    shapes = tuple(_open_axes(torch, spec, batch if model.any_batch else None) for spec in model.signature.inputs)
    try:
        program = torch.onnx.export(
            as_operators(model) if ref.kind == "torchscript" else model.module,
            model.example(2 if model.any_batch else 1),  # an example batch of 1 would be taken for a constant
            dynamo=True,
            dynamic_shapes=(shapes,) if any(shapes) else None,
            external_data=False,
            verbose=False,
        )
    except Exception as error:
        raise unsupported("torch.onnx", error) from error
    assert program is not None, "only an export to a file gives none"
    Path(out).write_bytes(canonical(program.model_proto, model.signature))
    return []


def _names(signature: Signature) -> set[str]:
    """Its axes that may have any size, besides the batch."""
    return {size for spec in signature.inputs for size in spec.shape if isinstance(size, str) and size != BATCH}


def _open_axes(torch: Any, spec: TensorSpec, batch: Any) -> dict[int, Any] | None:
    """Which axes stay open: those that have a name, and the batch unless it is `None`."""
    named = {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
    found = {axis: batch if size == BATCH else torch.export.Dim.AUTO for axis, size in named.items()}
    return {axis: dim for axis, dim in found.items() if dim is not None} or None


def from_onnx(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the source simplified; gives notes."""
    import onnxslim

    from edgeml.exporter.source.onnx import load

    model = load(msgspec.convert(source, SourceRef))
    copy = type(model.proto)()
    copy.CopyFrom(model.proto)
    Path(out).write_bytes(canonical(onnxslim.slim(copy), model.signature))
    return []


def from_sklearn(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the ONNX of a scikit-learn source; gives notes."""
    from edgeml.exporter.convert.sklearn import to_onnx
    from edgeml.exporter.source.sklearn import load
    from edgeml.exporter.source.sklearn_layers import has_torch

    model = load(msgspec.convert(source, SourceRef))
    if has_torch(model.estimator, model.method):
        return from_torch(source, out)
    proto = to_onnx(model)
    settle(proto.graph)
    Path(out).write_bytes(canonical(proto, model.signature, positional=True))
    return []


def from_tflite(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the ONNX of a TFLite source; gives notes."""
    from edgeml.exporter.source.tflite import load

    model = load(msgspec.convert(source, SourceRef))
    Path(out).write_bytes(canonical(tflite_to_onnx(model), model.signature, positional=True))
    return []


def tflite_to_onnx(model: TfliteModel) -> Any:
    """The graph of a float TFLite file by tf2onnx.

    Raises:
        UnsupportedError: it is quantized, or an operator has no counterpart; it is named.
    """
    if model.stored != "fp32":
        raise UnsupportedError(
            f"TFLite only, because the file's own numbers are {model.stored}: another engine rounds them differently",
            hint="export the float model it was made from, or ask for --to tflite",
        )
    try:
        import tf2onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError("tf2onnx", "keras") from error
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(model.model)
        file.flush()
        try:
            proto, _ = tf2onnx.convert.from_tflite(file.name, opset=OPSET)
        except Exception as error:
            raise unsupported("tf2onnx", error) from error
    foreign = sorted(
        {node.op_type for node in proto.graph.node if node.domain not in STANDARD or node.op_type.startswith("TFL_")}
    )
    if foreign:
        raise UnsupportedError(
            f"TFLite only, because ONNX has no operator for {', '.join(map(repr, foreign))}", hint="ask for --to tflite"
        )
    settle(proto.graph)
    return proto


def unsupported(converter: str, error: Exception) -> UnsupportedError | MissingExtraError:
    """A converter's refusal, with the operator it names; or the package that the converter lacks."""
    if (absent := missing(error)) is not None:
        return absent
    text = " ".join(str(error).split())
    causes, cause = [text], error.__cause__
    if isinstance(error, UnsupportedError):
        return error
    while cause is not None:
        if isinstance(cause, UnsupportedError):
            return cause
        causes.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    names = sorted({next(filter(None, match)) for cause_text in causes for match in OPERATOR.findall(cause_text)})
    if names:
        return UnsupportedError(
            f"{converter} cannot convert operator {', '.join(map(repr, names))}", hint="rewrite it with others"
        )
    return UnsupportedError(f"{converter} failed: {type(error).__name__}: {causes[-1][:300]}")


def canonical(proto: Any, signature: Signature, *, positional: bool = False) -> bytes:
    """The model's canonical bytes, inputs and outputs named by the signature; inner values by their place if `positional`."""
    graph = proto.graph
    known = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in known]
    names: dict[str, str] = {}
    taken = {""}
    wanted = zip((*inputs, *graph.output), (*signature.inputs, *signature.outputs), strict=True)
    for value, spec in wanted:
        if value.name not in names:
            names[value.name] = free_name(spec.name, taken)
        _name_axes(value, spec.shape)
    for kept in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        _strip(kept)
    del graph.value_info[:]
    for name, called in by_position(graph) if positional else ():
        if name not in names:
            names[name] = free_name(called, taken)
    for name in _mentions(graph):
        if name and name not in names:
            names[name] = free_name(COUNTER.sub("", name) or "value", taken)
    _rename(graph, names)
    graph.name = "graph"
    proto.producer_name, proto.producer_version, proto.domain, proto.model_version = "", "", "", 0
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    bytes_: bytes = proto.SerializeToString(deterministic=True)
    return bytes_


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or `name_1`, `name_2`, …: the first that is not taken, which it is from now on."""
    candidate, number = name, 1
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate


def _name_axes(value: Any, shape: tuple[int | str, ...]) -> None:
    """Batch stays free under its own name; everything the signature fixes is fixed."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        return
    for dim, size in zip(dims, shape, strict=True):
        if isinstance(size, int):
            dim.dim_value = size
        elif not dim.HasField("dim_value"):
            dim.dim_param = size


def _strip(message: Any) -> None:
    message.ClearField("doc_string")
    if any(field.name == "metadata_props" for field in message.DESCRIPTOR.fields):
        message.ClearField("metadata_props")


def _mentions(graph: Any) -> Iterator[str]:
    """Every value name in order of first mention, inner graphs included."""
    for tensor in graph.initializer:
        yield tensor.name
    for value in (*graph.input, *graph.output):
        yield value.name
    for node in graph.node:
        yield from node.input
        for inner in inner_graphs(node):
            yield from _mentions(inner)
        yield from node.output


def _rename(graph: Any, names: dict[str, str]) -> None:
    for thing in (*graph.initializer, *graph.input, *graph.output):
        thing.name = names.get(thing.name, thing.name)
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        node.ClearField("doc_string")
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in inner_graphs(node):
            del inner.value_info[:]
            _rename(inner, names)
