"""To Core ML, for one sample a call unless `--free` says otherwise: TensorFlow by coremltools, torch by trace or torch.export.

A TensorFlow graph that coremltools refuses, as it does every recurrent layer's loop, goes on by ONNX and torch.

A model is one bytes object: the canonical zip of the `.mlpackage` (see `mil.package`), for iOS 16 and later, where float16
inputs exist and every engine reads it; what needs newer operators is built for iOS 17 or 18. Jobs run in the worker that holds
the source's framework.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeml.exporter.convert.coreml_axes import TWO, OpenAxes, dynamic_shapes, input_shapes
from edgeml.exporter.convert.detour import to_onnx
from edgeml.exporter.convert.onnx import tflite_to_onnx, unsupported
from edgeml.exporter.mil.package import pack_mlpackage
from edgeml.exporter.source.model import SourceRef, refuse_lone_samples
from edgeml.wire.errors import MissingExtraError, UnsupportedError
from edgeml.wire.manifest import BATCH, Signature

MISCOMPILING_PASSES: Final = ("common::int_op_canonicalization",)
"""Passes of coremltools 9.0 that change what a model computes.

`int_op_canonicalization` turns dequantize -> reshape -> quantize into a reshape of the integers without comparing the two
scales: measured on a quantized ResNet-8, agreement fell from 1.0 to 0.53.
"""
LOOPS: Final = frozenset({"While", "StatelessWhile"})
TARGETS: Final = ("iOS16", "iOS17", "iOS18")


def from_tensorflow(source: dict[str, Any], out: str) -> list[str] | dict[str, Any]:
    """Job: write the Core ML of a Keras or SavedModel source; gives notes, or a `Detour` where coremltools refuses it."""
    from edgeml.exporter.source.tensorflow import load

    ref = msgspec.convert(source, SourceRef)
    refuse_lone_samples(ref, any_batch=load(ref).any_batch)
    try:
        model = _graph_to_coreml(ref)
    except UnsupportedError as refusal:
        return to_onnx(source, out, refusal)
    return _write(model, load(ref).signature, out)


def _graph_to_coreml(ref: SourceRef) -> Any:
    ct = coremltools()
    from edgeml.exporter.source.tensorflow import frozen, load

    free = {axis.name for axis in ref.free}
    function = frozen(ref, None if BATCH in free else 1, free=free)
    if {node.op for node in function.graph.as_graph_def().node} & LOOPS:
        raise UnsupportedError(
            "coremltools cannot convert operator 'While', a recurrent layer's loop", hint="build the layer with unroll=True"
        )
    shapes = input_shapes(ct, ref, load(ref).signature.inputs)
    inputs = [ct.TensorType(name=tensor.op.name, shape=shape) for tensor, shape in zip(function.inputs, shapes, strict=True)]
    outputs = [ct.TensorType(name=tensor.op.name) for tensor in function.outputs]

    def convert(target: str) -> Any:
        return _convert(ct, [function], target, source="tensorflow", inputs=inputs if free else None, outputs=outputs)

    return _first_target(convert)


def from_torch(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the Core ML of a torch source, or of an ONNX source through its torch form; gives notes."""
    from edgeml.exporter.source.torch import load

    ref = msgspec.convert(source, SourceRef)
    model = load(ref)
    refuse_lone_samples(ref, any_batch=model.any_batch)
    if not ref.free:
        return _write(torch_to_coreml(model.module, model.example(1)), model.signature, out)
    specs = model.signature.inputs
    open_axes = OpenAxes(input_shapes(coremltools(), ref, specs), dynamic_shapes(_torch(), ref, specs), model.example(TWO))
    return _write(torch_to_coreml(model.module, model.example(1), open_axes), model.signature, out)


from_onnx = from_torch
from_sklearn = from_torch


def from_tflite(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the Core ML of a TFLite source, through its ONNX form; gives notes."""
    from edgeml.exporter.source.onnx import as_tuple_module, zeros
    from edgeml.exporter.source.tflite import load

    ref = msgspec.convert(source, SourceRef)
    model = load(ref)
    module = as_tuple_module(tflite_to_onnx(model))
    return _write(torch_to_coreml(module, zeros(model.signature, dict(ref.sizes))), model.signature, out)


def torch_to_coreml(module: Any, example: tuple[Any, ...], free: OpenAxes | None = None) -> Any:
    """The coremltools model of a torch module for inputs shaped like `example`, or with free axes.

    A trace keeps whole operators (`lstm`, `gelu`); `torch.export` takes what a trace cannot, first with no decompositions, then
    with all of them.

    Raises:
        UnsupportedError: no route can convert it; the operator is named.
    """
    ct, torch = coremltools(), _torch()

    def traced() -> Any:
        with torch.no_grad():
            return torch.jit.trace(module, example, check_trace=False)

    def program() -> Any:
        if free is None:
            return torch.export.export(module, example)
        return torch.export.export(module, free.example, dynamic_shapes=(free.dynamic,))

    def exported() -> Any:
        return program().run_decompositions({})

    def decomposed() -> Any:
        return program().run_decompositions()

    shapes = [tuple(tensor.shape) for tensor in example] if free is None else free.shapes
    inputs = [
        ct.TensorType(name=f"input_{i}", shape=shape, dtype=_dtype(tensor))
        for i, (shape, tensor) in enumerate(zip(shapes, example, strict=True))
    ]
    failure: Exception | None = None
    for capture, told in ((traced, inputs), (exported, None), (decomposed, None)):
        try:
            captured = capture()
            return _first_target(lambda target, captured=captured, told=told: _convert(ct, captured, target, inputs=told))  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - any failure sends us to the next route; the first is the one to tell
            failure = failure or error
    assert failure is not None, "every route ends in a return or a failure"
    if branches := _branches(torch, module, example):
        raise UnsupportedError(
            f"coremltools cannot convert operator {', '.join(map(repr, branches))}", hint="a branch on data stays in ONNX alone"
        ) from failure
    raise failure if isinstance(failure, UnsupportedError) else unsupported("coremltools", failure) from failure


def _branches(torch: Any, module: Any, example: tuple[Any, ...]) -> list[str]:
    """Operators that choose their way by data."""
    try:
        graph = torch.export.export(module, example).graph
    except Exception:  # noqa: BLE001 - then they are not what stood in the way
        return []
    names = {str(getattr(node.target, "__name__", "")) for node in graph.nodes if node.op == "call_function"}
    return sorted(names & {"cond", "while_loop", "scan", "map_impl"})


def passes() -> Any:
    """The passes of coremltools without those that miscompile."""
    pipeline = coremltools().PassPipeline.DEFAULT
    pipeline.remove_passes(MISCOMPILING_PASSES)
    return pipeline


def coremltools() -> Any:
    """coremltools, quiet.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import coremltools as ct
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "coremltools", "export") from error
    return ct


def packed(model: Any, signature: Signature | None = None) -> bytes:
    """The canonical bytes of a coremltools model, inputs and outputs named as in `signature` where Core ML allows it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mlpackage"
        model.save(str(path))
        if signature is None:
            return pack_mlpackage(path)
        return pack_mlpackage(path, [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs])


def _convert(ct: Any, model: Any, target: str, **arguments: Any) -> Any:
    return ct.convert(
        model,
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=getattr(ct.target, target),
        pass_pipeline=passes(),
        skip_model_load=True,
        **{key: value for key, value in arguments.items() if value is not None},
    )


def _first_target(convert: Callable[[str], Any]) -> Any:
    """The model for the oldest system that has its operators."""
    failure: Exception | None = None
    for target in TARGETS:
        try:
            return convert(target)
        except Exception as error:  # noqa: BLE001 - coremltools raises ValueError, TypeError, AssertionError alike
            failure = failure or error
            if not re.search(r"opset|iOS1[78]|only supported|deployment target", str(error)):
                break
    assert failure is not None, "the loop ends in a return or a failure"
    raise failure if isinstance(failure, UnsupportedError) else unsupported("coremltools", failure) from failure


def _write(model: Any, signature: Signature, out: str) -> list[str]:
    Path(out).write_bytes(packed(model, signature))
    return []


def _dtype(tensor: Any) -> Any:
    import numpy as np

    return np.int32 if not tensor.dtype.is_floating_point else np.float32


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "export") from error
    return torch
