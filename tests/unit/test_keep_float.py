"""Which operators are left float: ranked by what each does alone, tried from the most to the fewest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks._models import SIDE, conv_tflite
from edgeml.exporter.calibrate.choose import output_error
from edgeml.exporter.quantize.keep_float import Alone, Operator, StaticTuner, signal_to_noise, sizes
from edgeml.exporter.quantize.onnx import open_onnx_network
from edgeml.exporter.quantize.ranking import rank
from edgeml.exporter.quantize.tflite_network import TfliteNetwork
from edgeml.exporter.source.tflite_graphs import parse_model
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx
from edgeml.runtime.backends.tflite import open_tflite
from tests.unit import bad_layer


@pytest.fixture(scope="module")
def tuner() -> StaticTuner:
    data, (x, _) = bad_layer.model(), bad_layer.samples(64, 1)
    return StaticTuner(open_onnx_network(data), data, {"x": x})


def test_the_operator_that_int8_spoils_is_ranked_first(tuner: StaticTuner) -> None:
    base = tuner.alone(frozenset())
    found = rank(tuner.operators, base, lambda some: tuner.alone(frozenset(one.name for one in some)))

    assert base.error < 1e-5
    assert found[0].operator == Operator("Gemm", bad_layer.SPOILED)
    assert found[0].error > 10 * found[1].error
    assert found[0].extra_bytes > 16 * 24  # three more bytes for each of its weights, less scales


def test_leaving_it_float_repairs_the_model(tuner: StaticTuner) -> None:
    x, labels = bad_layer.samples(400, 2)

    def right(kept: frozenset[str]) -> float:
        backend = open_onnx(tuner.quantize(kept).model, EngineOptions(kernels="exact"))
        return float(np.mean(backend.run([x])[0].argmax(axis=1) == labels))

    assert right(frozenset()) < 0.8
    assert right(frozenset({bad_layer.SPOILED})) > 0.97


def test_a_layer_left_float_has_the_weights_of_the_model_not_rounded_ones(tuner: StaticTuner) -> None:
    model = onnx.load_from_string(tuner.quantize(frozenset({bad_layer.SPOILED})).model)

    constants = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert any(np.array_equal(values, bad_layer.weights().layers[0]) for values in constants)
    assert sum(values.dtype == np.int8 and values.ndim == 2 for values in constants) == 3


def test_sizes_begin_where_the_rest_no_longer_matters() -> None:
    assert sizes([1.0, 0.004, 0.004, 0.004, 0.004, 0.004]) == [1]
    assert sizes([1.0, 0.5, 0.004, 0.004, 0.004, 0.004]) == [2, 1]
    assert sizes([1.0, 0.004, 0.004, 0.004], widens=True) == [4, 3, 2, 1]


def test_sizes_never_leave_more_than_half_float() -> None:
    assert sizes([0.5] * 6) == [3, 2, 1]
    assert sizes([0.5]) == [1]


def test_sizes_of_many_operators_are_far_apart_where_there_are_many() -> None:
    found = sizes([0.5] * 100)

    assert found == [50, 40, 32, 25, 20, 16, 12, 9, 8, 7, 6, 5, 4, 3, 2, 1]


def test_signal_to_noise_is_in_decibels() -> None:
    assert signal_to_noise(0.1) == pytest.approx(20.0)
    assert signal_to_noise(0.0) == float("inf")


def simulated(
    errors: dict[str, float], noise: float = 0.0
) -> tuple[list[Operator], Alone, Callable[[Sequence[Operator]], Alone], list[int]]:
    """Operators whose errors add up as powers, on top of `noise`; and how many were measured together, each time."""
    calls: list[int] = []

    def measure(some: Sequence[Operator]) -> Alone:
        calls.append(len(some))
        return Alone(math.sqrt(noise**2 + sum(errors[one.name] ** 2 for one in some)), 1000 - 3 * len(some))

    return [Operator("Conv", name) for name in errors], Alone(noise, 1000), measure, calls


def test_of_many_operators_those_in_harmless_blocks_are_not_measured_one_by_one() -> None:
    errors = {f"c{i:03}": 1e-5 for i in range(120)} | {"c031": 0.5, "c077": 0.2}
    operators, base, measure, calls = simulated(errors, noise=0.01)

    found = rank(operators, base, measure)

    assert [one.operator.name for one in found[:2]] == ["c031", "c077"]
    assert [one.error for one in found[:2]] == pytest.approx([0.5, 0.2])
    assert sorted(one.operator.name for one in found) == sorted(errors)
    assert calls == [6] * 20 + [1] * 12


def test_of_many_operators_that_all_hurt_each_is_measured() -> None:
    errors = {f"c{i:03}": 0.01 + 0.001 * (i % 7) for i in range(60)}
    operators, base, measure, _ = simulated(errors)

    found = rank(operators, base, measure)

    assert {one.operator.name: one.error for one in found} == pytest.approx(errors)
    assert {one.extra_bytes for one in found} == {3}


@pytest.mark.parametrize("wide", [0, 2], ids=["first", "last"])
def test_where_nothing_may_be_float_an_operator_computes_with_16_bits(wide: int) -> None:
    model = conv_tflite()
    x = np.random.default_rng(5).normal(size=(40, SIDE, SIDE, 1)).astype(np.float32)
    name = open_tflite(model, EngineOptions()).inputs[0].name
    tuner = StaticTuner(TfliteNetwork(model, whole=True), model, {name: x}, widens=True)

    narrow = tuner.quantize(frozenset()).model
    widened = tuner.quantize(frozenset({tuner.operators[wide].name})).model

    assert made_by_kind(narrow) == {"CONV_2D": ["int8", "int8"], "FULLY_CONNECTED": ["int8"]}
    assert sorted(itertools.chain(*made_by_kind(widened).values())) == ["int16", "int8", "int8"]
    assert error(model, widened, x) < error(model, narrow, x)
    assert len(widened) - len(narrow) < 400


def made_by_kind(model: bytes) -> dict[str, list[str]]:
    """What each layer of a TFLite file gives."""
    kinds = {0: "float32", 7: "int16", 9: "int8"}
    codes = {3: "CONV_2D", 9: "FULLY_CONNECTED"}
    parsed = parse_model(model)
    graph, found = parsed.subgraphs[0], dict[str, list[str]]()
    for op in graph.operators:
        if (kind := codes.get(parsed.operatorCodes[op.opcodeIndex].builtinCode)) is not None:
            found.setdefault(kind, []).append(kinds[graph.tensors[op.outputs[0]].type])
    return found


def error(model: bytes, quantized: bytes, x: Array) -> float:
    float_, small = (open_tflite(one, EngineOptions()) for one in (model, quantized))
    return output_error(*([np.stack([one.run([row[None]])[0] for row in x])] for one in (float_, small)))
