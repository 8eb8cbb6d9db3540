"""A folder that shows a failing piece to somebody without the models and edgeml: the piece, inputs, what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from edgeml.exporter.layers.bisect import Piece
from edgeml.wire.errors import EnvironmentProblem
from edgeml.wire.manifest import Format

RUN: Final = '''"""Run the piece on its inputs and print how far it is from what was expected: python run.py"""

import numpy as np
{load}
inputs = np.load("inputs.npz")
expected = np.load("expected.npz")["arr_0"]
got = np.stack([run([inputs[f"arr_{{i}}"][n] for i in range(len(inputs.files))]) for n in range(len(expected))])
noise = float(np.sqrt(np.mean((got - expected) ** 2)))
print("expected values   ", float(expected.min()), "to", float(expected.max()))
print("largest difference", float(np.abs(got - expected).max()))
print("signal to noise   ", 20 * np.log10(float(np.std(expected)) / noise) if noise else "no noise", "dB")
'''
ONNX: Final = """import onnxruntime

options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
session = onnxruntime.InferenceSession("piece.onnx", options, providers=["CPUExecutionProvider"])


def run(tensors):
    return session.run(None, dict(zip([node.name for node in session.get_inputs()], tensors)))[0]

"""
TFLITE: Final = """from ai_edge_litert.interpreter import Interpreter, OpResolverType

interpreter = Interpreter("piece.tflite", experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
interpreter.allocate_tensors()
scale, zero_point = interpreter.get_output_details()[0]["quantization"]


def run(tensors):
    for detail, tensor in zip(interpreter.get_input_details(), tensors):
        interpreter.set_tensor(detail["index"], tensor)
    interpreter.invoke()
    values = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).astype(np.float32)
    return (values - zero_point) * scale if scale else values

"""


def write_reproducer(piece: Piece, format_: Format, folder: Path, about: str) -> tuple[Path, ...]:
    """Write piece.onnx or piece.tflite, inputs.npz, expected.npz, run.py, README.txt; gives their paths.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """
    model = folder / f"piece.{format_}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model.write_bytes(piece.model)
        np.savez(folder / "inputs.npz", *[values for _, values in piece.inputs])
        np.savez(folder / "expected.npz", piece.expected)
        (folder / "run.py").write_text(RUN.format(load=ONNX if format_ == "onnx" else TFLITE), encoding="utf-8")
        (folder / "README.txt").write_text(about, encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"cannot write to {str(folder)!r}: {error.strerror}", hint="give another -o DIR") from error
    return model, *(folder / name for name in ("inputs.npz", "expected.npz", "run.py", "README.txt"))
