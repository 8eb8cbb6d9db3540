"""LSTM, GRU and RNN of the importer against ONNX Runtime, their functions named as tf2onnx names them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeml.exporter.importer import to_torch
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
STEPS, INPUTS, HIDDEN = 7, 5, 6


def recurrent(kind: str, direction: str, **more: int) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    ways, gates = 2 if direction == "bidirectional" else 1, GATES[kind] * HIDDEN
    shapes = {"w": (ways, gates, INPUTS), "r": (ways, gates, HIDDEN), "b": (ways, 2 * gates)}
    weights = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()]
    outputs = ["y", "h", "c"] if kind == "LSTM" else ["y", "h"]
    node = helper.make_node(
        kind, ["x", "w", "r", "b"], outputs, hidden_size=HIDDEN, direction=direction, activations=FUNCTIONS[kind] * ways, **more
    )
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, 2, INPUTS])
    ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, ways, 2, HIDDEN])]
    ends += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ways, 2, HIDDEN]) for name in outputs[1:]]
    graph = helper.make_graph([node], "g", [given], ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def sample() -> Array:
    return np.random.default_rng(2).normal(size=(STEPS, 2, INPUTS)).astype(np.float32)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [("LSTM", {}), ("GRU", {"linear_before_reset": 0}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})],
    ids=["lstm", "gru", "gru-reset-after", "rnn"],
)
def test_a_recurrent_operator_gives_what_onnx_runtime_gives(kind: str, more: dict[str, int], direction: str) -> None:
    model = recurrent(kind, direction, **more)

    wanted = open_onnx(model.SerializeToString(), EngineOptions()).run([sample()])
    got = to_torch(model)(torch.from_numpy(sample()))

    for array, tensor in zip(wanted, got, strict=True):
        np.testing.assert_allclose(tensor.numpy(force=True), array, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_lstm_that_names_its_usual_functions_is_kept_whole(direction: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace: Any = torch.jit.trace  # untyped
        traced = trace(to_torch(recurrent("LSTM", direction)), torch.from_numpy(sample()), check_trace=False)

    operators = [node.kind() for node in traced.inlined_graph.nodes()]
    assert operators.count("aten::lstm") == 1
    assert "aten::sigmoid" not in operators
