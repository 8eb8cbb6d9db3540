"""Keras and SavedModel sources: loaded with the Keras that wrote them, and frozen to one graph that every converter takes.

Runs in the TensorFlow worker. `.h5` files of Keras 1 and 2 load with tf_keras, `.keras` and Keras 3's `.h5` with Keras 3.
A frozen graph has its weights as constants, so no converter can leave a variable unresolved.
"""

from __future__ import annotations

import functools
import json
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgeml.exporter.extras import missing
from edgeml.exporter.source.archive import read_text
from edgeml.exporter.source.keras_code import check_config, check_weights
from edgeml.exporter.source.model import (
    SourceModel,
    SourceRef,
    batched,
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
from edgeml.exporter.source.saved_files import check_graphs
from edgeml.runtime.backends import Array
from edgeml.wire.errors import EdgemlError, MissingExtraError, ModelError, UnsupportedError
from edgeml.wire.manifest import BATCH, Signature, TensorSpec

CHUNK: Final = 64  # samples a call of the reference
WEIGHTS: Final = "model.weights.h5"  # in a .keras file


@dataclass(frozen=True, slots=True)
class TfModel:
    """A loaded model: `call` takes tensors in the signature's order and gives tensors in its order.

    `loops` are its recurrent layers that run as loops, which only Keras can write out step by step.
    """

    signature: Signature
    call: Callable[[Sequence[Any]], Sequence[Any]]
    weights: tuple[tuple[str, Array], ...]
    any_batch: bool
    notes: tuple[str, ...] = ()
    loops: tuple[Any, ...] = ()


def _tensorflow() -> Any:
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise MissingExtraError("tensorflow", "keras") from error
    return tf


@functools.lru_cache(maxsize=1)
def load(source: SourceRef) -> TfModel:
    """Load a source.

    Raises:
        ModelError: damaged, or it would run code and is not trusted.
        UnsupportedError: a layer or form that cannot be loaded.
    """
    try:
        written_by = ""
        if source.kind == "savedmodel":
            check_graphs(Path(source.path), trust=source.trust)
        else:
            written_by = _keras_version(source)
        tf = _tensorflow()
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        model = _load_keras(source, written_by) if written_by else _load_saved(source)
    except EdgemlError:
        raise
    except Exception as error:
        raise missing(error) or _unreadable(source, error) from error
    refuse_non_finite(model.weights)
    return model


def _unreadable(source: SourceRef, error: Exception) -> EdgemlError:
    text = " ".join(str(error).split())
    if "Unknown layer" in text or "Could not locate class" in text:
        return UnsupportedError(
            f"{Path(source.path).name!r} has a layer that Keras does not know: {text[:200]}",
            hint="export it as a SavedModel (model.export), which needs no class",
        )
    return ModelError(f"{Path(source.path).name!r} cannot be loaded: {type(error).__name__}: {text[:200]}")


def _keras_version(source: SourceRef) -> str:
    """The Keras that wrote a file, which must hold no code; found in a second, before any framework is imported."""
    config, written_by = _keras_config(source)
    if not source.trust:
        check_config(config)
    return written_by


def _load_keras(source: SourceRef, written_by: str) -> TfModel:
    try:
        if source.kind == "keras-h5" and not written_by.startswith("3"):
            import tf_keras as keras
        else:
            import keras
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "keras", "keras") from error
    model = keras.models.load_model(source.path, compile=False, safe_mode=not source.trust)
    if not getattr(model, "inputs", None):
        raise UnsupportedError("a Keras model without declared inputs", hint="save it with model.export() as a SavedModel")
    inputs = tuple(_spec(_plain(tensor.name), tensor.shape, tensor.dtype) for tensor in model.inputs)
    found = [_output_name(tensor) for tensor in model.outputs]
    outputs = tuple(_spec(name, t.shape, t.dtype) for name, t in zip(_distinct(found), model.outputs, strict=True))

    def call(tensors: Sequence[Any]) -> Sequence[Any]:
        given = model(list(tensors) if len(tensors) > 1 else tensors[0], training=False)
        return [given[name] for name in given] if isinstance(given, dict) else _flat(given)

    signature = Signature(inputs, outputs)
    any_batch = batched(signature)
    weights = tuple((str(getattr(w, "path", w.name)), np.asarray(w.numpy())) for w in model.weights)
    loops = tuple(layer for layer in model._flatten_layers() if getattr(layer, "unroll", None) is False)  # noqa: SLF001 - within wrappers too
    return TfModel(stack_ones(signature), call, weights, any_batch, loops=loops)


@contextmanager
def unrolled(model: TfModel) -> Iterator[None]:
    """Meanwhile `call` writes recurrent layers out step by step, where their number of steps is fixed."""
    for layer in model.loops:
        layer.unroll = True
    try:
        yield
    finally:
        for layer in model.loops:
            layer.unroll = False


def _keras_config(source: SourceRef) -> tuple[dict[str, Any], str]:
    """(architecture, Keras version) without running anything from the file."""
    import h5py

    if source.kind == "keras":
        with zipfile.ZipFile(source.path) as archive:
            written_by = json.loads(read_text(archive, "metadata.json")).get("keras_version", "3")
            if WEIGHTS in archive.namelist():
                with archive.open(WEIGHTS) as weights, h5py.File(weights, "r") as file:
                    check_weights(file)
            return json.loads(read_text(archive, "config.json")), str(written_by)
    with h5py.File(source.path, "r") as file:
        check_weights(file)
        text = file.attrs.get("model_config")
        if text is None:
            raise ModelError(
                f"{Path(source.path).name!r} holds weights without an architecture",
                hint="save the whole model: model.save(...)",
            )
        return json.loads(text), str(file.attrs.get("keras_version", "2"))


def _load_saved(source: SourceRef) -> TfModel:
    tf = _tensorflow()
    loaded = tf.saved_model.load(source.path)
    signatures = dict(loaded.signatures)
    name = choose_signature(source.signature, list(signatures), Path(source.path).name)
    if name is None:
        raise UnsupportedError(
            "a SavedModel without a signature", hint="save it with tf.saved_model.save(model, folder, signatures=…)"
        )
    function = signatures[name]
    _, named = function.structured_input_signature
    inputs = tuple(_spec(key, spec.shape, spec.dtype) for key, spec in named.items())
    outputs = tuple(_spec(key, spec.shape, spec.dtype) for key, spec in function.structured_outputs.items())

    def call(tensors: Sequence[Any]) -> Sequence[Any]:
        given = function(**{spec.name: tensor for spec, tensor in zip(inputs, tensors, strict=True)})
        return [given[spec.name] for spec in outputs]

    call.owner = loaded  # type: ignore[attr-defined]  # TensorFlow frees the variables with their owner
    signature = Signature(inputs, outputs)
    any_batch = batched(signature)
    weights = tuple((variable.name, np.asarray(variable.numpy())) for variable in function.variables)
    notes = (f"Signature {name!r} of {', '.join(map(repr, sorted(signatures)))}.",) if len(signatures) > 1 else ()
    return TfModel(stack_ones(signature), call, weights, any_batch, notes)


def _plain(name: str) -> str:
    return name.partition(":")[0]


def _output_name(tensor: Any) -> str:
    """The layer that made it, as Keras 2 calls outputs; Keras 3 names tensors by a counter of the process."""
    history = getattr(tensor, "_keras_history", None)
    maker = getattr(history, "operation", None) or getattr(history, "layer", None)
    return str(maker.name) if maker is not None else _plain(tensor.name)


def _distinct(found: Sequence[str]) -> list[str]:
    return [name if found.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(found)]


def _flat(given: Any) -> list[Any]:
    return [tensor for item in given for tensor in _flat(item)] if isinstance(given, (list, tuple)) else [given]


def _spec(name: str, shape: Any, dtype: Any) -> TensorSpec:
    sizes: list[int | str] = [
        size if size is not None else (BATCH if axis == 0 else f"{name}_{axis}") for axis, size in enumerate(tuple(shape))
    ]
    word = dtype if isinstance(dtype, str) else dtype.name
    layout = "NHWC" if len(sizes) == 4 else None  # Keras' and TensorFlow's only layout for convolutions on a CPU
    return msgspec.convert({"name": name, "dtype": word, "shape": sizes, "layout": layout}, TensorSpec)


def frozen(source: SourceRef, batch: int | None, *, free: Collection[str] = ()) -> Any:
    """The model as one ConcreteFunction without variables, for `batch` samples (`None`: any number).

    The named axes in `free` stay open, the others have the source's `sizes`.

    Inputs bear the signature's names; outputs are `Identity`, `Identity_1`, … in the signature's order.
    """
    tf = _tensorflow()
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = load(source)
    specs = [
        tf.TensorSpec(
            [None if size in free else _size(size, batch, dict(source.sizes)) for size in spec.shape],
            spec.dtype,
            name=spec.name,
        )
        for spec in model.signature.inputs
    ]
    function = tf.function(lambda *tensors: tuple(model.call(tensors)), autograph=False)
    concrete = function.get_concrete_function(*specs)
    # Loops stay whole: as switches and merges, ONNX Runtime cannot load them, nor coremltools read them.
    return convert_variables_to_constants_v2(concrete, lower_control_flow=False)


def _size(size: int | str, batch: int | None, sizes: Mapping[str, int]) -> int | None:
    if size == BATCH:
        return batch
    if isinstance(size, int):
        return size
    if size not in sizes:
        raise UnsupportedError(f"input axis {size!r} has no fixed size", hint="give samples, which say its size")
    return sizes[size]


def describe(source: dict[str, Any]) -> Any:
    """Job: `SourceModel` of a `SourceRef`, both as JSON-able values."""
    ref = msgspec.convert(source, SourceRef)
    model = load(ref)
    digest, size = identity(Path(ref.path))
    libraries = {"tensorflow": version("tensorflow")}
    if ref.kind != "savedmodel":
        libraries |= {"keras": version("keras"), "tf_keras": version("tf_keras")}
    described = SourceModel(ref.kind, model.signature, digest, size, libraries=libraries, notes=model.notes, fingerprint=digest)
    return msgspec.to_builtins(described)


def reference(source: dict[str, Any], inputs: str, out: str) -> None:
    """Job: run the source on the samples of one .npz, write its outputs to another; the first axis counts samples."""
    tf = _tensorflow()
    model = load(msgspec.convert(source, SourceRef))
    feeds = read_arrays(inputs, names(model.signature.inputs))
    count = CHUNK if model.any_batch else 1
    function = tf.function(lambda *tensors: tuple(model.call(tensors)), autograph=False)
    calls = []
    for start in range(0, len(next(iter(feeds.values()))), count):
        tensors = [tf.constant(feed(feeds[spec.name], spec, start, count)) for spec in model.signature.inputs]
        calls.append([np.asarray(tensor) for tensor in function(*tensors)])
    write_arrays(out, gather(calls, model.signature))
