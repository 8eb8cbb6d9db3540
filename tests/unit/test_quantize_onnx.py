"""int8 and float16 ONNX of small models built here, against fake quantization in numpy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.exporter.calibrate.observers import Range
from edgeml.exporter.quantize.fold import ready
from edgeml.exporter.quantize.onnx import to_fp16_onnx, to_int8_onnx
from edgeml.exporter.quantize.qdq import codes, insert, weight_scales
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx
from edgeml.wire.errors import ModelError, PlanError, UnsupportedError

RNG = np.random.default_rng(11)
W1, B1 = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=6).astype(np.float32)
W2, B2 = RNG.normal(size=(6, 3)).astype(np.float32), RNG.normal(size=3).astype(np.float32)
KERNEL = RNG.normal(size=(6, 2, 3, 3)).astype(np.float32)


def model(nodes: list[onnx.NodeProto], constants: dict[str, Array], x: list[int | str], y: list[int | str]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(proto.SerializeToString(deterministic=True))


def dense() -> bytes:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    return model(nodes, {"w1": W1, "b1": B1, "w2": W2, "b2": B2}, ["batch", 4], ["batch", 3])


def convolution() -> bytes:
    """Two channels, convolution, batch normalization, ReLU, mean, three classes."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gain", "offset", "mean", "variance"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"], axis=-1),
    ]
    rng = np.random.default_rng(12)
    norm = {name: rng.uniform(0.5, 2.0, size=6).astype(np.float32) for name in ("gain", "offset", "mean", "variance")}
    return model(nodes, {"k": KERNEL, "w2": W2, "b2": B2, **norm}, ["batch", 2, 5, 5], ["batch", 3])


def samples(*shape: int, n: int = 64, seed: int = 5) -> Array:
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def run(data: bytes, x: Array, kernels: str = "exact") -> Array:
    answer: Array = open_onnx(data, EngineOptions(kernels=kernels)).run([x])[0]
    return answer


def fake(values: Array, range_: Range) -> Array:
    found = codes(range_)
    code = np.clip(np.round(values / found.scale) + found.zero_point, 0, 255)
    rounded: Array = (code - found.zero_point) * found.scale
    return rounded


def stored(data: bytes) -> list[tuple[float, int]]:
    """(scale, zero point) of every QuantizeLinear, in the graph's order."""
    graph = onnx.load_from_string(data).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node.input[1:] for node in graph.node if node.op_type == "QuantizeLinear"]
    return [(float(constants[scale]), int(constants[zero])) for scale, zero in pairs]


def test_codes_cover_the_range_with_zero_among_them() -> None:
    found = codes(Range(-1.0, 4.1))

    assert found.scale == np.float32(5.1 / 255)  # 0.02
    assert found.zero_point == 50


def test_ranges_in_the_file_are_the_ones_given() -> None:
    ranges = {"x": Range(-2.0, 3.1), "r": Range(0.0, 5.1)}

    written = insert(ready(dense()), ranges).SerializeToString()

    scales, zeros = zip(*stored(written), strict=True)
    assert scales == pytest.approx((5.1 / 255, 5.1 / 255))
    assert zeros == (100, 0)


def test_a_quantized_dense_model_computes_what_fake_quantization_says() -> None:
    ranges = {"x": Range(-2.0, 2.5), "r": Range(0.0, 4.0)}
    x = samples(4)
    w1 = np.round(W1 / weight_scales(W1, 1)) * weight_scales(W1, 1)
    w2 = np.round(W2 / weight_scales(W2, 1)) * weight_scales(W2, 1)
    hidden = fake(np.maximum(fake(x, ranges["x"]) @ w1 + B1, 0.0), ranges["r"])

    got = run(insert(ready(dense()), ranges).SerializeToString(), x)

    # biases are rounded to input scale * weight scale, under 2e-4 here; a hidden value at a half may fall to either side
    assert np.median(np.abs(got - (hidden @ w2 + B2))) < 1e-3
    assert np.abs(got - (hidden @ w2 + B2)).max() < 4.0 / 255 * np.abs(W2).max() + 1e-3


def test_a_quantized_convolution_computes_what_fake_quantization_says() -> None:
    nodes = [helper.make_node("Conv", ["x", "k"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    x, scales = samples(2, 3, 3), weight_scales(KERNEL, 0)
    data = model(nodes, {"k": KERNEL}, ["batch", 2, 3, 3], ["batch", 6, 1, 1])
    rounded = np.round(KERNEL / scales[:, None, None, None]) * scales[:, None, None, None]
    expected = np.maximum(np.einsum("nchw,ochw->no", fake(x, Range(-3.0, 3.0)), rounded), 0.0)

    got = run(insert(ready(data), {"x": Range(-3.0, 3.0)}).SerializeToString(), x)

    assert got.reshape(-1, 6) == pytest.approx(expected, abs=1e-4)


def test_batch_normalization_and_arithmetic_fold_into_their_layer() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"]),
        helper.make_node("Add", ["m", "b1"], ["a"]),
        helper.make_node("Mul", ["a", "s"], ["t"]),
        helper.make_node("Sub", ["t", "b1"], ["u"]),
        helper.make_node("Relu", ["u"], ["y"]),
    ]
    scale = np.linspace(-1.0, 2.0, 6, dtype=np.float32)
    arithmetic = model(nodes, {"w1": W1, "b1": B1, "s": scale}, ["batch", 4], ["batch", 6])

    assert [node.op_type for node in ready(arithmetic).graph.node] == ["Gemm", "Relu"]
    assert [node.op_type for node in ready(convolution()).graph.node][:2] == ["Conv", "Relu"]
    for data, x in ((arithmetic, samples(4)), (convolution(), samples(2, 5, 5))):
        assert run(ready(data).SerializeToString(), x) == pytest.approx(run(data, x), abs=1e-5)


def test_what_else_reads_a_layer_keeps_it_from_folding() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Mul", ["h", "s"], ["t"]),
        helper.make_node("Add", ["h", "t"], ["y"]),
    ]
    data = model(nodes, {"w1": W1, "b1": B1, "s": np.full(6, 2.0, np.float32)}, ["batch", 4], ["batch", 6])

    assert run(ready(data).SerializeToString(), samples(4)) == pytest.approx(run(data, samples(4)), abs=1e-5)


@pytest.mark.parametrize(("data", "shape"), [(dense(), (4,)), (convolution(), (2, 5, 5))], ids=["dense", "convolution"])
def test_int8_is_near_and_small_and_takes_any_batch(data: bytes, shape: tuple[int, ...]) -> None:
    x = samples(*shape, seed=6)

    quantized = to_int8_onnx(data, {"x": samples(*shape, n=256)}).model

    wanted, got = run(data, x), run(quantized, x)
    assert np.sqrt(np.mean((got - wanted) ** 2)) < 0.03 * wanted.std()
    assert run(quantized, x[:1]) == pytest.approx(got[:1], abs=1e-5)
    kinds = {tensor.data_type for tensor in onnx.load_from_string(quantized).graph.initializer}
    assert TensorProto.INT8 in kinds
    assert TensorProto.INT32 in kinds
    onnx.checker.check_model(onnx.load_from_string(quantized), full_check=True)


def test_equal_samples_give_equal_bytes_and_the_notes_say_what_was_chosen() -> None:
    first, second = (to_int8_onnx(convolution(), {"x": samples(2, 5, 5)}) for _ in range(2))

    assert first == second
    assert "ranges by" in first.notes[0]


def test_few_samples_choose_nothing() -> None:
    notes = to_int8_onnx(dense(), {"x": samples(4, n=9)}).notes

    assert notes[0] == "ranges by headroom; 9 samples are too few to compare with others"


def test_a_layer_kept_float_keeps_its_weights() -> None:
    quantized = to_int8_onnx(dense(), {"x": samples(4)}, keep_float=frozenset({"y"})).model

    constants = [numpy_helper.to_array(t) for t in onnx.load_from_string(quantized).graph.initializer]
    assert any(values.dtype == np.float32 and np.array_equal(values, W2) for values in constants)
    assert any(values.dtype == np.int8 and values.shape == W1.shape for values in constants)


def test_a_model_without_layers_is_refused() -> None:
    data = model([helper.make_node("Erf", ["x"], ["y"])], {}, ["batch", 4], ["batch", 4])
    with pytest.raises(UnsupportedError, match="no operator"):
        to_int8_onnx(data, {"x": samples(4)})


def test_garbage_and_foreign_samples_are_refused() -> None:
    with pytest.raises(ModelError):
        to_int8_onnx(b"garbage", {"x": samples(4)})
    with pytest.raises(PlanError, match="no calibration samples for input 'x'"):
        to_int8_onnx(dense(), {"z": samples(4)})


def test_float16_keeps_float_inputs_and_what_would_overflow() -> None:
    x = samples(4)
    half = to_fp16_onnx(dense()).model
    large = model(
        [helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]), helper.make_node("Mul", ["h", "s"], ["y"])],
        {"w1": W1, "b1": B1, "s": np.array([1e6], np.float32)},
        ["batch", 4],
        ["batch", 6],
    )

    assert {t.data_type for t in onnx.load_from_string(half).graph.initializer} == {TensorProto.FLOAT16}
    assert run(half, x).dtype == np.float32
    assert run(half, x) == pytest.approx(run(dense(), x), abs=0.02)
    assert np.isfinite(run(to_fp16_onnx(large).model, x)).all()
    assert to_fp16_onnx(dense()).model == half


def test_weights_of_recurrent_operators_are_stored_as_int8() -> None:
    chance = np.random.default_rng(0)
    sizes = {"w": (1, 96, 16), "r": (1, 96, 32), "head": (32, 8)}
    arrays = {name: chance.normal(0, 0.2, shape).astype(np.float32) for name, shape in sizes.items()}
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 18]>
        agraph (float[5, 1, 16] x, float[1, 96, 16] w, float[1, 96, 32] r, float[32, 8] head) => (float[1, 1, 8] y) {
          all, last = GRU<hidden_size = 32>(x, w, r)
          y = MatMul(last, head)
        }""")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in arrays.items())
    del model.graph.input[1:]
    samples = chance.normal(size=(40, 5, 1, 16)).astype(np.float32)
    quantized = to_int8_onnx(model.SerializeToString(), {"x": samples}).model
    stored = {tuple(tensor.dims): tensor.data_type for tensor in onnx.load_from_string(quantized).graph.initializer}
    assert {stored[sizes[name]] for name in sizes} == {onnx.TensorProto.INT8}
    before, after = (open_onnx(one, EngineOptions()) for one in (model.SerializeToString(), quantized))
    difference = np.concatenate([after.run([x])[0] - before.run([x])[0] for x in samples])
    assert np.abs(difference).max() < 0.05 * np.abs(np.concatenate([before.run([x])[0] for x in samples])).max()


def test_columns_of_unlike_units_are_scaled_before_they_are_rounded() -> None:
    units = np.array([1e-3, 1.0, 30.0, 1e3], np.float32)
    nodes = [
        helper.make_node("Sub", ["x", "middle"], ["s"]),
        helper.make_node("Mul", ["s", "gain"], ["m"]),
        helper.make_node("Gemm", ["m", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    constants: dict[str, Array] = {"middle": 5 * units, "gain": 1 / units, "w1": W1, "b1": B1, "w2": W2, "b2": B2}
    data = model(nodes, constants, ["batch", 4], ["batch", 3])
    x = samples(4) * units + 5 * units

    made = run(to_int8_onnx(data, {"x": x}).model, x)

    wanted = run(data, x)
    assert np.sqrt(np.mean((made - wanted) ** 2)) < 0.02 * wanted.std()


def test_a_products_bias_is_added_before_the_sum_is_rounded() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"]),
        helper.make_node("Add", ["b1", "m"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["n"]),
        helper.make_node("Add", ["n", "b2"], ["y"]),
    ]
    data = model(nodes, {"w1": W1, "b1": B1, "w2": W2, "b2": B2}, ["batch", 3, 4], ["batch", 3, 3])
    x = samples(3, 4)

    made = to_int8_onnx(data, {"x": x}).model

    kinds = [node.op_type for node in onnx.load_from_string(made).graph.node if node.op_type != "DequantizeLinear"]
    assert kinds == ["QuantizeLinear", "MatMul", "Add", "QuantizeLinear", "MatMul", "Add"]
    wanted = run(data, x)
    assert np.sqrt(np.mean((run(made, x) - wanted) ** 2)) < 0.02 * wanted.std()
