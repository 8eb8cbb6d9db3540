"""An artifact's answers by its engine alone: onnxruntime or LiteRT without edgeml's sessions, to check what an export says.

Core ML has no engine on Linux but edgeml's own interpreter, so nothing independent can be said of it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.zoo.samples import Samples
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import Artifact, Binding

Call = Callable[[list[Array]], Array]


def first_answers(artifact: Artifact, model: bytes, samples: Samples) -> Array | None:
    """The artifact's first output (n, ...) as reals in the source's order of axes; `None` where no engine is at hand."""
    if artifact.format == "coreml":
        return None
    call = (_onnxruntime if artifact.format == "onnx" else _litert)(artifact, model)
    output = artifact.outputs[0]
    rows = [_back(call(feed), output) for feed in _feeds(artifact, samples)]
    return np.stack(rows)


def _feeds(artifact: Artifact, samples: Samples) -> Iterator[list[Array]]:
    alone = next(iter(samples.inputs.values())) if len(samples.inputs) == 1 else None
    columns = [(binding, samples.inputs[binding.name] if alone is None else alone) for binding in artifact.inputs]
    for index in range(len(samples)):
        yield [_given(values[index : index + 1], binding) for binding, values in columns]


def _given(sample: Array, binding: Binding) -> Array:
    if binding.permute is not None:
        sample = sample.transpose(binding.permute)
    if binding.quantization is not None:
        codes = np.round(sample / binding.quantization.scale) + binding.quantization.zero_point
        limits = np.iinfo(binding.dtype)
        sample = np.clip(codes, limits.min, limits.max)
    return np.ascontiguousarray(sample, binding.dtype)


def _back(got: Array, binding: Binding) -> Array:
    if binding.quantization is not None:
        got = (got.astype(np.float32) - binding.quantization.zero_point) * np.float32(binding.quantization.scale)
    if binding.permute is not None:
        got = got.transpose(np.argsort(binding.permute))
    return np.asarray(got[0])


def _onnxruntime(artifact: Artifact, model: bytes) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    left_out = ["MatmulTransposeFusion"] if b"LayerNormalization" in model else []  # it ends the process on float16 encoders
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
    names = [binding.tensor for binding in artifact.inputs]
    return lambda feed: session.run([artifact.outputs[0].tensor], dict(zip(names, feed, strict=True)))[0]


def _litert(artifact: Artifact, model: bytes) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()

    def call(feed: list[Array]) -> Array:
        for binding, values in zip(artifact.inputs, feed, strict=True):
            interpreter.set_tensor(inputs[binding.index]["index"], values)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(outputs[artifact.outputs[0].index]["index"]))

    return call
