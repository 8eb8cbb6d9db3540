"""What ONNX graphs become in each precision, where one dense layer does not tell: sub-graphs, recurrent layers, float16."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeml.exporter.quantize.onnx import smaller_onnx, to_fp16_onnx
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx
from edgeml.wire.errors import UnsupportedError
from edgeml.wire.manifest import Precision
from tests.unit.small_models import onnx_model

RNG = np.random.default_rng(4)
node = helper.make_node


def values(*shape: int, scale: float = 1.0) -> Array:
    return (RNG.normal(size=shape) * scale).astype(np.float32)


def run(model: bytes, *inputs: Array) -> list[Array]:
    return open_onnx(model, EngineOptions(kernels="exact")).run(list(inputs))


def kinds(model: bytes) -> list[str]:
    return [one.op_type for one in onnx.load_from_string(model).graph.node]


def relative(got: Array, wanted: Array) -> float:
    return float(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())


def recurrent(kind: str, gates: int, hidden: int = 24, inputs: int = 16) -> bytes:
    """(steps, batch, inputs) -> (steps, 1, batch, hidden)."""
    constants = {
        "w": values(1, gates * hidden, inputs, scale=0.3), "r": values(1, gates * hidden, hidden, scale=0.3),
        "b": values(1, 2 * gates * hidden, scale=0.1),
    }  # fmt: skip
    layer = node(kind, ["x", "w", "r", "b"], ["y"], hidden_size=hidden)
    return onnx_model([layer], constants, {"x": [10, 1, inputs]}, {"y": [10, 1, 1, hidden]})


def convolutional() -> bytes:
    """(batch, 8, 6, 6) -> two 3x3 convolutions, a depthwise one between -> (batch, 5)."""
    constants = {
        "k1": values(48, 8, 3, 3, scale=0.15), "k2": values(48, 1, 3, 3, scale=0.3), "k3": values(5, 48, 3, 3, scale=0.05),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "k1"], ["a"]), node("Relu", ["a"], ["ar"]), node("Conv", ["ar", "k2"], ["d"], group=48),
        node("Relu", ["d"], ["dr"]), node("GlobalAveragePool", ["dr"], ["p"]), node("Pad", ["p", "pads"], ["q"]),
        node("Conv", ["q", "k3"], ["z"]), node("Flatten", ["z"], ["y"]),
    ]  # fmt: skip
    constants |= {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    return onnx_model(nodes, constants, {"x": ["batch", 8, 6, 6]}, {"y": ["batch", 5]})


def test_dynamic_lstm_computes_in_integers_and_is_near() -> None:
    model, x = recurrent("LSTM", 4), values(10, 1, 16)

    small = smaller_onnx(model, "int8-dynamic", None).model

    assert "DynamicQuantizeLSTM" in kinds(small)
    assert relative(run(small, x)[0], run(model, x)[0]) < 0.02
    assert len(small) < len(model) - 3 * (4 * 24) * (16 + 24) * 0.9


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-weights"])
def test_gru_weights_are_int8_and_the_layer_stays_one(precision: Precision) -> None:
    model, x = recurrent("GRU", 3), values(10, 1, 16)

    small = smaller_onnx(model, precision, None).model

    assert kinds(small) == ["DequantizeLinear", "DequantizeLinear", "GRU"]
    assert relative(run(small, x)[0], run(model, x)[0]) < 0.02


def test_four_bit_kernels_are_matrices_in_blocks_and_depthwise_ones_stay_int8() -> None:
    model, x = convolutional(), values(4, 8, 6, 6)

    small = onnx.load_from_string(smaller_onnx(model, "int4-weights", {"x": values(64, 8, 6, 6)}).model)

    stored = {t.name: (t.data_type, tuple(t.dims)) for t in small.graph.initializer}
    assert (TensorProto.INT4, (48, 72)) in stored.values()
    assert (TensorProto.INT4, (5, 432)) in stored.values()
    assert (TensorProto.INT8, (48, 1, 3, 3)) in stored.values()
    # The largest of 32 normal weights is 2.1 deviations, a step 0.3 of one, its error 0.09: twice over, 0.13.
    assert relative(run(small.SerializeToString(), x)[0], run(model, x)[0]) < 0.13
    onnx.checker.check_model(small, full_check=True)


def test_a_convolution_is_not_made_dynamic_but_its_weights_are_small() -> None:
    model, x = convolutional(), values(4, 8, 6, 6)

    small = smaller_onnx(model, "int8-dynamic", None).model

    assert "ConvInteger" not in kinds(small)
    assert relative(run(small, x)[0], run(model, x)[0]) < 0.02
    assert len(small) < 0.45 * len(model)


def test_sixteen_bit_activations_err_no_more_than_the_weights_do() -> None:
    model, x, feeds = convolutional(), values(16, 8, 6, 6), {"x": values(64, 8, 6, 6)}
    wanted = run(model, x)[0]

    sixteen, eight, weights = (smaller_onnx(model, p, feeds).model for p in ("int16", "int8", "int8-weights"))

    errors = {name: relative(run(m, x)[0], wanted) for name, m in (("16", sixteen), ("8", eight), ("w", weights))}
    assert errors["16"] == pytest.approx(errors["w"], rel=0.05)
    assert errors["16"] < errors["8"]
    zeros = {t.data_type for t in onnx.load_from_string(sixteen).graph.initializer}
    assert TensorProto.UINT16 in zeros


def test_an_old_opset_is_brought_to_one_that_has_four_bits() -> None:
    w = values(64, 8)
    model = onnx_model([node("MatMul", ["x", "w"], ["y"])], {"w": w}, {"x": [1, 64]}, {"y": [1, 8]}, opset=13)
    x = values(1, 64)

    small = smaller_onnx(model, "int4-weights", None).model

    assert onnx.load_from_string(small).opset_import[0].version == 21
    assert relative(run(small, x)[0], x @ w) < 0.2


def test_rows_of_a_table_are_unpacked_alone_and_a_tied_one_is_read_both_ways() -> None:
    """An embedding whose table is the last layer's weights, too."""
    table = values(50, 24)
    nodes = [node("Gather", ["table", "ids"], ["e"]), node("Relu", ["e"], ["r"]), node("Gemm", ["r", "table"], ["y"], transB=1)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 50])],
        [numpy_helper.from_array(table, "table")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model, ids = proto.SerializeToString(), np.array([3, 7, 49], np.int64)

    small = smaller_onnx(model, "int8-weights", None).model

    assert kinds(small).count("DequantizeLinear") == 1  # the last layer's
    assert relative(run(small, ids)[0], run(model, ids)[0]) < 0.02
    assert len(small) < 0.8 * len(model)


def test_a_model_without_weights_is_refused() -> None:
    model = onnx_model([node("Relu", ["x"], ["y"])], {}, {"x": [1, 4]}, {"y": [1, 4]})
    with pytest.raises(UnsupportedError, match="no weight tensor of this model has 256 elements"):
        smaller_onnx(model, "int8-weights", None)


def test_float16_of_an_output_that_is_also_read_inside() -> None:
    """A joined one: the converter that was used before left the reader float32 and the rest float16, and no engine took it."""
    nodes = [node("Gemm", ["x", "w", "b"], ["h"]), node("Relu", ["h"], ["r"]), node("Concat", ["r", "x"], ["y"], axis=1)]
    model = onnx_model(nodes, {"w": values(4, 6), "b": values(6)}, {"x": ["batch", 4]}, {"y": ["batch", 10], "r": ["batch", 6]})
    x = values(1, 4)

    half = to_fp16_onnx(model).model

    for got, wanted in zip(run(half, x), run(model, x), strict=True):
        assert got.dtype == np.float32
        assert got == pytest.approx(wanted, abs=0.01)


def branching() -> bytes:
    """y = w x, or that plus one where the first input is above zero: the branch reads the product from outside."""
    plus = helper.make_graph(
        [node("Add", ["h", "one"], ["then"])], "then", [], [helper.make_tensor_value_info("then", TensorProto.FLOAT, [1, 16])]
    )
    same = helper.make_graph(
        [node("Identity", ["h"], ["else"])], "else", [], [helper.make_tensor_value_info("else", TensorProto.FLOAT, [1, 16])]
    )
    nodes = [
        node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["h"]), node("Gather", ["x", "zero"], ["first"], axis=1),
        node("Greater", ["first", "none"], ["above"]), node("If", ["above"], ["y"], then_branch=plus, else_branch=same),
    ]  # fmt: skip
    constants = {"w": values(32, 16), "zero": np.array(0), "none": np.zeros(1, np.float32), "one": np.ones(1, np.float32)}
    return onnx_model(nodes, constants, {"x": [1, 32]}, {"y": [1, 16]})


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-weights", "int8-dynamic", "int4-weights"])
def test_what_a_branch_reads_from_outside_stays_there(precision: Precision) -> None:
    model = branching()
    x = values(8, 1, 32)

    small = smaller_onnx(model, precision, {"x": x[:, 0]}).model

    wanted = np.concatenate([run(model, one)[0] for one in x])
    got = np.concatenate([run(small, one)[0] for one in x])
    assert relative(got, wanted) < (0.2 if precision == "int4-weights" else 0.02)


def run_in_halves(model: bytes, x: Array) -> Array:
    """By onnx's own evaluator: ONNX Runtime has few float16 kernels on a CPU, and quietly computes the rest in float32."""
    with np.errstate(all="ignore"):
        answer: Array = ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"x": x})[0]
    return answer


def test_an_activation_beyond_float16_stays_float32_and_is_named() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"]), node("Exp", ["h"], ["big"]), node("Log", ["big"], ["s"]),
        node("MatMul", ["s", "v"], ["y"]),
    ]  # fmt: skip
    constants = {"w": values(8, 8, scale=2.0), "v": values(8, 4)}  # h has a deviation of 6, its largest e^15
    model, x = onnx_model(nodes, constants, {"x": ["batch", 8]}, {"y": ["batch", 4]}), values(32, 8)
    wanted = run(model, x)[0]

    blind, told = to_fp16_onnx(model), to_fp16_onnx(model, {"x": x})

    assert not np.isfinite(run_in_halves(blind.model, x)).all()
    assert relative(run_in_halves(told.model, x), wanted) < 0.01
    assert "beyond 60000" in told.warnings[0]
    assert "'big'" in told.warnings[0]
    assert not blind.warnings


def test_an_epsilon_that_float16_would_make_zero_keeps_its_division() -> None:
    nodes = [node("Add", ["x", "epsilon"], ["a"]), node("Div", ["x", "a"], ["y"])]
    model = onnx_model(nodes, {"epsilon": np.full(1, 1e-12, np.float32)}, {"x": [1, 4]}, {"y": [1, 4]})

    got = run(to_fp16_onnx(model).model, np.array([[0.0, 1.0, 2.0, 0.0]], np.float32))[0]

    assert got.tolist() == [[0.0, 1.0, 1.0, 0.0]]
