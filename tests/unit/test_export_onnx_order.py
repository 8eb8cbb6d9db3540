"""Equal graphs become equal bytes, whatever a converter called and ordered their parts."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgeml.exporter.convert.onnx import canonical
from edgeml.exporter.convert.onnx_order import settle
from edgeml.wire.manifest import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "float32", ("batch", 3)),), (TensorSpec("y", "float32", ("batch", 3)),))


def _graph(a: str, b: str, one: str, *, turned: bool) -> onnx.ModelProto:
    """y = if sum(x) > 0: (x + a) * b + a else x - a, with a dead node and a dead constant."""

    def branch(name: str, nodes: list[onnx.NodeProto], gives: str) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(gives, TensorProto.FLOAT, None)])

    then = branch("then", [helper.make_node("Add", [one, a], [f"{one}_t"])], f"{one}_t")
    other = branch("else", [helper.make_node("Sub", ["x", a], [f"{one}_e"])], f"{one}_e")
    nodes = [
        helper.make_node("Add", ["x", a], [f"{one}_s"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Neg", ["x"], ["dead"]),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("Mul", [f"{one}_s", b], [one]),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    if turned:
        nodes = [nodes[1], nodes[3], nodes[0], nodes[4], nodes[2], nodes[5]]
    constants = [
        numpy_helper.from_array(np.array([1, 2, 3], np.float32), a),
        numpy_helper.from_array(np.array([4, 5, 6], np.float32), b),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array([7, 8], np.float32), "unused"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        constants[::-1] if turned else constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_names_and_orders_leave_no_trace_and_the_graph_computes_the_same() -> None:
    first, second = _graph("const__7", "bias", "v", turned=False), _graph("other", "const__9", "w", turned=True)
    made = []
    for proto in (first, second):
        settle(proto.graph)
        made.append(canonical(proto, SIGNATURE, positional=True))
    assert made[0] == made[1]
    proto = onnx.load_model_from_string(made[0])
    assert [node.op_type for node in proto.graph.node] == ["ReduceSum", "Greater", "Add", "Mul", "If"]
    assert len(proto.graph.initializer) == 3
    session = onnxruntime.InferenceSession(made[0], providers=["CPUExecutionProvider"])
    for x, y in (([[1, 1, 1]], [[9, 17, 27]]), ([[-1, -1, -1]], [[-2, -3, -4]])):
        assert session.run(None, {"x": np.array(x, np.float32)})[0].tolist() == y
