"""Canonical ONNX: the signature's names, nothing of the machine or the converter's counters, the same values."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.exporter.convert.onnx import canonical, unsupported
from edgeml.runtime.backends import EngineOptions, opener
from edgeml.wire.manifest import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("audio", "float32", ("batch", 2)),), (TensorSpec("scores", "float32", ("batch", 2)),))


def converted(counter: int) -> onnx.ModelProto:
    """y = relu(x @ w) @ w as a converter writes it that has made `counter` models before."""
    inner = [f"model/dense/MatMul__{counter}", f"model/dense/Relu__{counter + 1}"]
    nodes = [
        helper.make_node("MatMul", ["x:0", f"w__{counter}"], [inner[0]], name=f"n__{counter}", doc_string="/home/me/model.py"),
        helper.make_node("Relu", [inner[0]], [inner[1]]),
        helper.make_node("MatMul", [inner[1], f"w__{counter}"], ["Identity:0"]),
    ]
    weight = numpy_helper.from_array(np.array([[1, -2], [3, 4]], np.float32), f"w__{counter}")
    graph = helper.make_graph(
        nodes,
        f"graph made at {counter}",
        [helper.make_tensor_value_info("x:0", TensorProto.FLOAT, [f"unk__{counter}", 2])],
        [helper.make_tensor_value_info("Identity:0", TensorProto.FLOAT, [f"unk__{counter}", 2])],
        [weight],
        value_info=[helper.make_tensor_value_info(inner[0], TensorProto.FLOAT, [None, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="converter")
    entry = model.metadata_props.add()
    entry.key, entry.value = "path", "/home/me"
    return model


def test_counters_paths_and_producers_leave_no_trace() -> None:
    assert canonical(converted(7), SIGNATURE) == canonical(converted(940), SIGNATURE)
    assert b"/home/me" not in canonical(converted(7), SIGNATURE)


def test_inputs_outputs_and_the_batch_axis_bear_the_names_of_the_signature() -> None:
    graph = onnx.load_model_from_string(canonical(converted(1), SIGNATURE)).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["audio", "scores"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_values_are_unchanged() -> None:
    backend = opener("onnx")(canonical(converted(1), SIGNATURE), EngineOptions())
    # relu([1, 2] @ [[1, -2], [3, 4]]) = relu([7, 6]) = [7, 6]; [7, 6] @ w = [7 + 18, -14 + 24]
    np.testing.assert_array_equal(backend.run([np.array([[1, 2]], np.float32)])[0], [[25, 10]])


def test_an_inner_name_equal_to_a_new_outer_name_is_moved_aside() -> None:
    model = converted(1)
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "audio"
    checked = onnx.load_model_from_string(canonical(model, SIGNATURE))
    onnx.checker.check_model(checked)
    assert checked.graph.node[0].output[0] == "audio_1"


def test_a_refusal_names_the_operator() -> None:
    cause = ValueError("No decomposition for node with target=<OpOverload(op='aten.bessel_j0', overload='default')>")
    assert "'bessel_j0'" in str(unsupported("torch.onnx", cause))
