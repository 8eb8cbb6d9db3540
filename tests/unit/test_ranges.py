"""`--ranges`: whichever observer is asked for, its ranges are the ones in the file, in every format."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeml.exporter.calibrate.observers import OBSERVERS
from edgeml.exporter.calibrate.statistics import gather
from edgeml.exporter.mil.package import MODEL, unpack_files
from edgeml.exporter.mil.program import Constant, Operation, Program, Ref, read_program
from edgeml.exporter.mil.schema import parse_model
from edgeml.exporter.precision import RANGES, Ranges
from edgeml.exporter.quantize.coreml import smaller_coreml
from edgeml.exporter.quantize.onnx import smaller_onnx
from edgeml.exporter.quantize.tflite import smaller_tflite
from edgeml.runtime.backends import Array
from tests.unit.small_models import dense_coreml, dense_onnx, dense_tflite

RNG = np.random.default_rng(21)
W = RNG.normal(size=(24, 16)).astype(np.float32)
B = np.zeros(24, np.float32)
# 24,000 ordinary values and 8 far out: every observer cuts off another part of those
X = RNG.normal(size=(1500, 16)).astype(np.float32)
X[::200, 0] = np.linspace(6.0, 20.0, 8)
NAMED = [ranges for ranges in RANGES if ranges != "auto"]


def step_of(ranges: Ranges, values: Array = X) -> float:
    """What the input is rounded in: 255 steps from end to end."""
    seen = gather(lambda: ({"x": sample} for sample in values)).without()["x"]
    low, high = OBSERVERS[ranges](seen)
    return (high - low) / 255


def test_the_observers_disagree_on_these_samples() -> None:
    steps = [step_of(ranges) for ranges in NAMED]

    assert len(np.unique(np.round(steps, 5))) == len(NAMED)


@pytest.mark.parametrize("ranges", NAMED)
def test_onnx_holds_the_ranges_that_were_asked_for(ranges: Ranges) -> None:
    made = smaller_onnx(dense_onnx(W, B), "int8", {"x": X}, ranges)

    graph = onnx.load_from_string(made.model).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    assert float(constants[first.input[1]]) == pytest.approx(step_of(ranges), rel=1e-5)
    assert f"ranges by {ranges}, as asked" in made.notes[0]


@pytest.mark.parametrize("ranges", NAMED)
def test_tflite_holds_the_ranges_that_were_asked_for(ranges: Ranges) -> None:
    made = smaller_tflite(dense_tflite(W, B), "int16", {"x": X}, ranges)

    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    graph = schema.Model.GetRootAs(made.model, 0).Subgraphs(0)
    tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    rounded = next(t for t in tensors if t.Type() == schema.TensorType.INT16 and t.Name().decode().startswith("x"))
    low, high = OBSERVERS[ranges](gather(lambda: ({"x": sample} for sample in X)).without()["x"])
    assert float(rounded.Quantization().ScaleAsNumpy()[0]) == pytest.approx(max(-low, high) / 32767, rel=1e-4)  # symmetric


@pytest.mark.slow
@pytest.mark.parametrize("ranges", NAMED)
def test_core_ml_holds_the_ranges_that_were_asked_for(ranges: Ranges) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # converters warn about their own deprecations
        made = smaller_coreml(dense_coreml(W, B), "w8a8", {"x0": X}, ranges)

    files = unpack_files(made.model)
    scale = first_scale(read_program(parse_model(files[MODEL]), files))
    halves = X.astype(np.float16).astype(np.float32)
    assert scale == pytest.approx(step_of(ranges, halves), rel=2e-3)  # itself stored as float16


def first_scale(program: Program) -> float:
    """Of the first operation that rounds an activation."""
    operations: dict[str, Operation] = {item.name: op for op in program.body.operations for item in op.outputs}
    first = next(op for op in program.body.operations if op.type == "quantize")
    (argument,) = first.inputs["scale"]
    if isinstance(argument, Ref):
        (argument,) = operations[argument.name].inputs["val"]
    assert isinstance(argument, Constant)
    return float(np.asarray(argument.value))
