"""Faults in a toy's engine and file are caught by its golden vectors, by the program that measures this on real models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.golden import emulated, results
from benchmarks.golden.onnx_files import faulty_files
from benchmarks.golden.runs import measured, run, verdict
from benchmarks.golden.saturation import HIGH, LOW, saturating
from benchmarks.golden.trials import Found, look_at
from benchmarks.golden.weights import CUT, ONE_SCALE, SATURATED, STUCK_INPUT, STUCK_READ, STUCK_WRITTEN
from edgeml.runtime.backends import Array, EngineOptions, opener
from edgeml.runtime.bundle import open_bundle
from edgeml.wire.contract import label
from tests.unit.bundles import make_bundle

ANSWERS = {
    "an output's scale off by 1 %", "an output's scale off by 5 %", "an output's scale off by 2", "an output's sign flipped",
    "the previous answer", "NaN in one sample", "the same answer always", "a channel of an output silent",
    "two channels of an output exchanged",
}  # fmt: skip
FILES = {
    "one channel of a layer silent",
    "two channels of a layer exchanged",
    "a layer of another version",
    "a layer without its bias",
}


def found_in(path: Path) -> list[Found]:
    with open_bundle(path) as bundle:
        return [look_at(bundle, artifact) for artifact in bundle.manifest.artifacts]


def test_every_fault_of_a_float_model_is_caught_and_no_kernel_is_refused(tmp_path: Path) -> None:
    found = found_in(make_bundle(tmp_path, artifacts=(("onnx", "fp32"), ("tflite", "fp32"))))
    assert [one.artifact for one in found] == ["onnx:fp32", "tflite:fp32"]
    for one in found:
        assert {trial.fault for trial in one.trials} >= ANSWERS | FILES
        assert one.healthy >= 4
    assert (list(results.misses(found)), [one.refused for one in found]) == ([], [[], []])
    assert results.summary(found)["caught"] == sum(len(one.trials) for one in found)


def test_what_bounds_do_not_cover_is_listed_with_its_size(tmp_path: Path) -> None:
    """A bundle whose tolerance is wider than a step lets small shifts through, and says so."""
    found = found_in(make_bundle(tmp_path, artifacts=(("onnx", "int8"),)))
    assert any("scale off by 1 %" in line and "of the range" in line for line in results.misses(found))
    assert f"healthy kernels refused: 0 of {found[0].healthy}" in list(results.healthy(found))


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = found_in(make_bundle(tmp_path, artifacts=(("onnx", "fp32"),)))[0]
    results.append(found, "a", tmp_path / "faults.jsonl")
    assert results.read(tmp_path / "faults.jsonl") == {"a": found}


def test_answers_are_measured_by_each_bound(tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path, artifacts=(("onnx", "fp32"),))) as bundle:
        (artifact,) = bundle.manifest.artifacts
        healthy = run(bundle, artifact, opener("onnx"))
        assert healthy is not None
        assert set(measured(bundle, artifact, healthy.again).values()) == {0.0}
        healthy.raw[3][0] = healthy.raw[3][0] + np.float32(1)
        shares = measured(bundle, artifact, healthy.again)
        assert verdict(bundle, artifact, healthy.again, EngineOptions()) is not None
        assert shares["tolerance"] > 1


STEP_IN, POINT = 0.02, -11


def quantized(operator: str, weights: Array, shape: Sequence[int | str], **attributes: object) -> bytes:
    """x -> int8 by STEP_IN and POINT -> one layer with int8 weights by channel -> y, quantized by 0.5 with zero point 3."""
    scales = np.linspace(0.01, 0.03, len(weights)).astype(np.float32)
    constants = {
        "step": np.float32(STEP_IN), "point": np.int8(POINT), "w": weights, "scales": scales, "bias": scales * 3,
        "step_out": np.float32(0.5), "point_out": np.int8(3),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "point"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "point"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scales"], ["dw"], axis=0),
        helper.make_node(operator, ["d", "dw", "bias"], ["r"], **attributes),
        helper.make_node("QuantizeLinear", ["r", "step_out", "point_out"], ["qr"]),
        helper.make_node("DequantizeLinear", ["qr", "step_out", "point_out"], ["y"]),
    ]
    rank = len(shape)
    graph = helper.make_graph(
        nodes, "one_layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def answer(model: bytes, x: Array) -> Array:
    backend = opener("onnx")(model, EngineOptions())
    (y,) = backend.run([x])
    backend.close()
    return y


def convolution() -> tuple[bytes, Array]:
    chance = np.random.default_rng(2)
    weights = chance.integers(-127, 128, (4, 3, 3, 2)).astype(np.int8)
    model = quantized("Conv", weights, [1, 3, 7, 6], strides=[2, 1], pads=[1, 0, 0, 1], dilations=[1, 1])
    return model, chance.normal(0, 5, (1, 3, 7, 6)).astype(np.float32)


def product() -> tuple[bytes, Array, Array]:
    chance = np.random.default_rng(3)
    weights = chance.integers(-127, 128, (5, 8)).astype(np.int8)
    return quantized("Gemm", weights, ["n", 8], transB=1), chance.normal(0, 2, (6, 8)).astype(np.float32), weights


def test_a_convolution_in_pairs_that_do_not_saturate_gives_the_same() -> None:
    model, x = convolution()
    wide = saturating(model, low=-1e9, high=1e9)
    assert wide is not None
    np.testing.assert_allclose(answer(wide, x), answer(model, x), atol=1e-6)
    narrow = saturating(model)
    assert narrow is not None
    assert not np.allclose(answer(narrow, x), answer(model, x), atol=0.4)  # a step is 0.5


def test_pairs_of_products_saturate_as_the_instruction_does() -> None:
    model, x, weights = product()
    codes = np.clip(np.rint(x / STEP_IN) + POINT, -128, 127).astype(np.int64) + 128  # bytes without a sign
    pairs = (codes[:, None, :] * weights[None].astype(np.int64)).reshape(6, 5, 4, 2).sum(axis=3)
    sums = np.clip(pairs, LOW, HIGH).sum(axis=2) - (128 + POINT) * weights.astype(np.int64).sum(axis=1)
    scales = np.linspace(0.01, 0.03, 5)
    real = sums * STEP_IN * scales + scales * 3
    narrow = saturating(model)
    assert narrow is not None
    expected = (np.clip(np.rint(real / 0.5) + 3, -128, 127) - 3) * 0.5
    np.testing.assert_allclose(
        answer(narrow, x), expected, atol=0.5 + 1e-6
    )  # a step, where float32 rounds a half the other way
    assert (np.abs(answer(narrow, x) - expected) < 1e-4).mean() > 0.9
    assert (pairs > HIGH).any()


def test_a_float_model_has_nothing_that_saturates() -> None:
    graph = helper.make_graph([], "empty", [], [])
    assert saturating(helper.make_model(graph).SerializeToString()) is None


@pytest.mark.parametrize("model", [convolution()[0], product()[0]], ids=["convolution", "product"])
def test_an_int8_layer_gets_the_faults_of_zero_points_and_scales(model: bytes) -> None:
    kinds = dict(faulty_files(model))
    assert kinds.keys() >= {STUCK_INPUT, STUCK_READ, STUCK_WRITTEN, ONE_SCALE, CUT, SATURATED}
    for data in kinds.values():
        onnx.checker.check_model(onnx.load_model_from_string(data))


def test_a_stuck_zero_point_shifts_by_what_was_forgotten() -> None:
    model, x, weights = product()
    kinds = dict(faulty_files(model))
    scales = np.linspace(0.01, 0.03, 5)
    x = np.clip(x, -1, 1)
    forgotten = POINT * STEP_IN * scales * weights.astype(np.int64).sum(axis=1)  # reads q - 0 for q - POINT
    np.testing.assert_allclose(answer(kinds[STUCK_READ], x) - answer(model, x), np.tile(forgotten, (6, 1)), atol=0.51)
    inner = np.abs(answer(model, x)) < 50
    np.testing.assert_allclose((answer(kinds[STUCK_WRITTEN], x) - answer(model, x))[inner], -3 * 0.5, atol=1e-4)


def test_answers_kept_from_an_emulator_are_held_to_the_vectors_as_they_are(tmp_path: Path) -> None:
    path = make_bundle(tmp_path, artifacts=(("onnx", "fp32"), ("tflite", "fp32")))
    with open_bundle(path) as bundle:
        runs = {label(one): run(bundle, one, opener(one.format)) for one in bundle.manifest.artifacts}
        answers = {f"{name}/0": np.stack([raw[0] for raw in found.raw]) for name, found in runs.items() if found is not None}
        answers["onnx:fp32/0"] = answers["onnx:fp32/0"] + np.float32(1e-3)
        kept = tmp_path / "kept"
        kept.mkdir()
        np.savez(emulated.place(bundle, kept), **answers)  # type: ignore[arg-type]  # numpy types the keywords as its own flag
    shifted, right = emulated.hold("cortex-a76", path, kept)
    assert (right.artifact, right.refused, right.taken) == ("tflite:fp32", None, 0.0)
    assert shifted.refused is not None
    assert "golden sample 0 is off" in shifted.refused
    assert shifted.taken > 1
