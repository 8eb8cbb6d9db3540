"""ONNX control flow in the importer: followed when run, refused by name where a converter would keep one path for ever."""

from __future__ import annotations

import warnings

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgeml.exporter.importer import to_torch
from edgeml.wire.errors import UnsupportedError


def branching() -> onnx.ModelProto:
    """y = x if sum(x) > 0 else -x."""

    def branch(operator: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(operator, TensorProto.FLOAT, [2])
        return helper.make_graph([helper.make_node(operator, ["x"], [operator])], operator, [], [value])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], name="which", then_branch=branch("Identity"), else_branch=branch("Neg")),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 18)])


def test_a_branch_goes_the_way_of_its_data() -> None:
    module = to_torch(branching())
    assert module(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert module(torch.tensor([-1.0, -2.0])).tolist() == [1, 2]


def test_a_trace_of_a_branch_on_data_is_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnsupportedError, match=r"'If' .node 'which'.: which way it goes depends on data"):
            torch.jit.trace(to_torch(branching()), (torch.ones(2),))  # type: ignore[no-untyped-call]  # torch leaves it so
