"""TFLite sources: a file that a converter made before, packed as it is, run by the device's own engine for the reference.

Quantized inputs and outputs are float32 to the application: a session quantizes by the file's own scale and zero point. Of a
file with several signatures one is chosen, and its graph put first, since that is the one an interpreter runs.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import numpy as np

from edgeml.exporter.contents import contents
from edgeml.exporter.source.model import (
    SourceModel,
    SourceRef,
    choose_signature,
    feed,
    gather,
    identity,
    names,
    read_arrays,
    refuse_non_finite,
    stack_ones,
    write_arrays,
)
from edgeml.exporter.source.tflite_graphs import pack_model, parse_model, put_first
from edgeml.runtime.backends import Array, EngineOptions, RawTensor, one_line, opener
from edgeml.runtime.inspection import inspect_model
from edgeml.runtime.session import Session
from edgeml.wire.errors import EdgemlError, EngineError, ModelError, UnsupportedError
from edgeml.wire.manifest import BATCH, Binding, Precision, Signature, TensorSpec

CALL: Final = re.compile(r"^(?:StatefulPartitionedCall/|serving_default_|model/)+|:\d+$")
DEQUANTIZE: Final = 6  # BuiltinOperator in the schema: weights are made float before use
WHOLE_NUMBERS: Final = frozenset({"int8", "uint8", "int4", "uint4"})


@dataclass(frozen=True, slots=True)
class TfliteModel:
    """A checked file. `model` is what is packed: the file's own bytes, or those with the chosen graph put first."""

    signature: Signature
    model: bytes
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    stored: Precision
    notes: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def load(source: SourceRef) -> TfliteModel:
    """Read and check a file.

    Raises:
        ModelError: damaged, or with weights that are not finite.
        PlanError: it has several signatures and none was chosen.
        UnsupportedError: it has an operator that LiteRT lacks.
    """
    name = Path(source.path).name
    try:
        return _load(source)
    except EngineError as error:
        if "unresolved" in error.what:
            raise UnsupportedError(f"{name!r}: {error.what}", hint="export it with built-in operators only") from error
        raise ModelError(f"{name!r} cannot be loaded: {error.what}", hint="fetch or convert it again") from error
    except EdgemlError:
        raise
    except Exception as error:  # its tables lead nowhere, or its names are no text
        raise ModelError(f"{name!r} is truncated or damaged: {type(error).__name__}: {one_line(error)}") from error


def _load(source: SourceRef) -> TfliteModel:
    path = Path(source.path)
    data = path.read_bytes()
    try:
        inspect_model(data)  # every offset is checked before the library trusts them
        parsed = parse_model(data)
    except ModelError as error:
        raise ModelError(f"{path.name!r} is truncated or damaged: {error}", hint="fetch or save it again") from error
    refuse_non_finite(_weights(parsed))
    definitions = {one.signatureKey.decode(): one for one in parsed.signatureDefs or ()}
    chosen = choose_signature(source.signature, list(definitions), path.name)
    definition = definitions.get(chosen) if chosen is not None else None
    notes = ["The TFLite file is its own source: it is packed as it was given, and compared with itself."]
    if len(definitions) > 1:
        notes.append(f"Signature {chosen!r} of {', '.join(map(repr, definitions))}.")
    if definition is not None and definition.subgraphIndex:
        put_first(parsed, definition.subgraphIndex)
        data = pack_model(parsed)
        notes = ["The chosen graph was put first in the packed file, where interpreters look.", notes[-1]]
    backend = opener("tflite")(data, EngineOptions())
    given = {entry.tensorIndex: entry.name.decode() for entry in (definition.inputs or () if definition else ())}
    gotten = {entry.tensorIndex: entry.name.decode() for entry in (definition.outputs or () if definition else ())}
    graph = parsed.subgraphs[0]
    inputs = _specs(backend.inputs, [given.get(int(index)) for index in graph.inputs])
    outputs = _specs(backend.outputs, [gotten.get(int(index)) for index in graph.outputs])
    notes += [
        f"Input {spec.name!r} is {raw.dtype} in the file (scale {raw.quantization.scale:.6g}, zero point "
        f"{raw.quantization.zero_point}): give real numbers, the session rounds them."
        for spec, raw in zip(inputs, backend.inputs, strict=True)
        if raw.quantization is not None
    ]
    signature = _batched(inputs, outputs, backend.inputs, backend.outputs)
    stored = stored_precision(data, parsed)
    bound = (_bindings(signature.inputs, backend.inputs), _bindings(signature.outputs, backend.outputs))
    backend.close()
    return TfliteModel(signature, data, *bound, stored, tuple(notes))


def stored_precision(data: bytes, parsed: Any) -> Precision:
    """The precision that a file's tensors have: of most weights, and of what its operators give each other."""
    weights = contents("tflite", data)[0].partition("+")[0]
    kinds = _kinds()
    made = Counter(
        kinds[graph.tensors[index].type] for graph in parsed.subgraphs for op in graph.operators or () for index in op.outputs
    )
    if weights in WHOLE_NUMBERS or (weights == "no weights" and made.keys() & {"int8", "uint8"}):
        return _quantized(parsed, weights, made)
    return "fp16" if weights == "float16" else "fp32"


def _quantized(parsed: Any, weights: str, made: Counter[str]) -> Precision:
    whole = made["int8"] + made["uint8"]
    if whole or made["int16"]:  # what operators hand on is whole numbers: not the weights alone were rounded
        return "int16" if made["int16"] > whole else "int8"
    if weights in {"int4", "uint4"}:
        return "int4-weights"
    codes = {parsed.operatorCodes[op.opcodeIndex].builtinCode for graph in parsed.subgraphs for op in graph.operators or ()}
    return "int8-weights" if DEQUANTIZE in codes else "int8-dynamic"


def _kinds() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {value: name.lower() for name, value in vars(schema.TensorType).items() if not name.startswith("_")}


def _weights(parsed: Any) -> Iterator[tuple[str, Array]]:
    kinds = _kinds()
    for graph in parsed.subgraphs:
        for tensor in graph.tensors:
            data = parsed.buffers[tensor.buffer].data
            if data is None or kinds[tensor.type] not in {"float32", "float16"}:
                continue
            dtype = np.dtype(kinds[tensor.type])
            values = np.asarray(data, np.uint8)
            if values.size and values.size % dtype.itemsize == 0:
                yield (tensor.name or b"").decode(errors="replace"), values.view(dtype)


def _specs(tensors: Sequence[RawTensor], named: Sequence[str | None]) -> list[TensorSpec]:
    """The application's view: names of the signature where it has them, real numbers where integers stand for them."""
    found, taken = [], set[str]()
    for position, (raw, name) in enumerate(zip(tensors, named, strict=True)):
        short = name or CALL.sub("", CALL.sub("", raw.name)) or f"tensor_{position}"
        if short in taken:
            short = f"{short}_{position}"
        taken.add(short)
        sizes: list[int | str] = [f"{short}_{axis}" if size is None else size for axis, size in enumerate(raw.shape)]
        dtype = "float32" if raw.quantization is not None else str(raw.dtype)
        layout = "NHWC" if len(sizes) == 4 else None  # TensorFlow's only layout for convolutions on a CPU
        found.append(msgspec.convert({"name": short, "dtype": dtype, "shape": sizes, "layout": layout}, TensorSpec))
    return found


def _batched(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], given: Sequence[RawTensor], got: Sequence[RawTensor]
) -> Signature:
    """Free first axes are the batch if every tensor has one; so are first axes of 1, one sample a call."""
    if all(raw.shape and raw.shape[0] is None for raw in (*given, *got)):
        inputs, outputs = (
            [msgspec.structs.replace(spec, shape=(BATCH, *spec.shape[1:])) for spec in specs] for specs in (inputs, outputs)
        )
    return stack_ones(Signature(tuple(inputs), tuple(outputs)))


def _bindings(specs: Sequence[TensorSpec], tensors: Sequence[RawTensor]) -> tuple[Binding, ...]:
    return tuple(
        Binding(
            spec.name,
            raw.name,
            index,
            cast("Any", str(raw.dtype)),
            tuple(spec.shape[axis] if size is None else size for axis, size in enumerate(raw.shape)),
            raw.quantization,
        )
        for index, (spec, raw) in enumerate(zip(specs, tensors, strict=True))
    )


def describe(source: dict[str, Any]) -> Any:
    """Job: `SourceModel` of a `SourceRef`, both as JSON-able values."""
    ref = msgspec.convert(source, SourceRef)
    model = load(ref)
    digest, size = identity(Path(ref.path))
    libraries = {"ai-edge-litert": version("ai-edge-litert")}
    described = SourceModel(
        ref.kind, model.signature, digest, size, libraries=libraries, notes=model.notes, fingerprint=digest, stored=model.stored
    )
    return msgspec.to_builtins(described)


def reference(source: dict[str, Any], inputs: str, out: str) -> None:
    """Job: run the source on the samples of one .npz, write its outputs to another; the first axis counts samples."""
    model = load(msgspec.convert(source, SourceRef))
    feeds = read_arrays(inputs, names(model.signature.inputs))
    calls = []
    with Session(model.signature, model.inputs, model.outputs, opener("tflite")(model.model, EngineOptions())) as session:
        for sample in range(len(next(iter(feeds.values())))):
            got = session.run({spec.name: feed(feeds[spec.name], spec, sample, 1) for spec in model.signature.inputs})
            calls.append([got[spec.name] for spec in model.signature.outputs])
    write_arrays(out, gather(calls, model.signature))
