"""What a person is told before trusting int8 or float16: odd samples, joined ranges, halves that disagree."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from edgeml.exporter.calibrate.samples import sample_warnings
from edgeml.exporter.calibrate.stability import unstable
from edgeml.exporter.calibrate.statistics import gather
from edgeml.exporter.outcome import Made, warnings_of
from edgeml.exporter.quantize.joins import Join, Operation, find_joins
from edgeml.exporter.quantize.onnx import smaller_onnx
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.quantize.tflite import smaller_tflite
from edgeml.exporter.samples import Samples, make_samples
from edgeml.runtime.backends import Array, EngineOptions, opener
from edgeml.wire.manifest import Format
from tests.unit.small_models import joined_tflite, onnx_model

RNG = np.random.default_rng(6)
node = helper.make_node


def values(*shape: int, scale: float = 1.0) -> Array:
    return (RNG.normal(size=shape) * scale).astype(np.float32)


def samples(x: Array) -> Samples:
    return make_samples({"x": x})


GOOD = values(200, 8)


def test_good_samples_are_not_talked_about() -> None:
    assert sample_warnings(samples(GOOD), samples(values(100, 8))) == ()


@pytest.mark.parametrize(
    ("calibration", "evaluation", "said"),
    [
        (GOOD[:20], None, "20 calibration samples are few: give 100 to 500"),
        (np.repeat(GOOD[:50], 4, axis=0), None, "150 of 200 calibration samples are copies of others"),
        (np.zeros((200, 8), np.float32), None, "input 'x' never changes over the calibration samples (all its values are 0.0)"),
        (np.tile(GOOD[:1], (200, 1)), None, "input 'x' never changes over the calibration samples (every sample is the same)"),
        (
            np.where(np.arange(200)[:, None] < 50, np.float32(0), GOOD),
            None,
            "50 of 200 calibration samples hold one value only",
        ),
        (np.abs(GOOD) / 5, 255 * np.abs(GOOD), "% of the evaluation values of 'x' (0"),
        (GOOD, GOOD[150:], "50 of 50 evaluation samples are calibration samples too: the drop is measured on what ranges were"),
    ],
    ids=["few", "copies", "zeros", "one", "flat", "scale", "overlap"],
)
def test_an_odd_sample_set_is_named_with_its_numbers(calibration: Array, evaluation: Array | None, said: str) -> None:
    found = sample_warnings(samples(calibration), None if evaluation is None else samples(evaluation))

    assert any(said in sentence for sentence in found), found


def test_samples_of_one_number_each_are_not_called_flat() -> None:
    assert sample_warnings(samples(values(200, 1)), None) == ()


def test_joins_are_found_with_what_computes_from_them() -> None:
    graph = [
        Operation("Conv", ("x",), "boxes"), Operation("Conv", ("x",), "scores"),
        Operation("Concat", ("boxes", "scores"), "all"),
        Operation("Reshape", ("all",), "flat"), Operation("Gemm", ("flat",), "y"), Operation("Add", ("all",), "z"),
    ]  # fmt: skip

    assert find_joins(graph, "Concat", {"Reshape"}) == (Join(("boxes", "scores"), "all", ("y", "z")),)


BOXES, SCORES, AFTER = values(8, 16, scale=60.0), values(4, 16, scale=0.06), values(12, 6)
X = values(128, 16)


def detector(*, read: bool) -> bytes:
    """Boxes of hundreds beside scores of less than one; `read`: by a layer to which both matter alike."""
    after = AFTER * np.repeat([1e-3, 1.0], [8, 4])[:, None].astype(np.float32)
    nodes = [node("MatMul", ["x", "v"], ["p"]), node("MatMul", ["x", "w"], ["q"])]
    if not read:
        nodes.append(node("Concat", ["p", "q"], ["y"], axis=1))
        return onnx_model(nodes, {"v": BOXES.T, "w": SCORES.T}, {"x": ["batch", 16]}, {"y": ["batch", 12]})
    nodes += [node("Concat", ["p", "q"], ["c"], axis=1), node("MatMul", ["c", "a"], ["y"])]
    return onnx_model(nodes, {"v": BOXES.T, "w": SCORES.T, "a": after}, {"x": ["batch", 16]}, {"y": ["batch", 6]})


def run(format_: Format, model: bytes) -> Array:
    backend = opener(format_)(model, EngineOptions(kernels="exact"))
    return np.concatenate([backend.run([X[i : i + 1]])[0] for i in range(len(X))])


def relative(got: Array, wanted: Array) -> float:
    return float(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())


def test_scores_joined_with_boxes_keep_their_values_in_tflite() -> None:
    """On the joined scale a step is 6: every score would be 0, and its relative error 1."""
    small = smaller_tflite(joined_tflite(BOXES, SCORES), "int8", {"x": X})

    assert relative(run("tflite", small.model)[:, 8:], X @ SCORES.T) < 0.03
    assert "'y' joins 'p' (" in small.warnings[0]
    assert "with 'q' (" in small.warnings[0]
    assert "of 256 steps, so the joined tensor stays float" in small.warnings[0]


@pytest.mark.parametrize("read", [False, True], ids=["output", "read"])
def test_scores_joined_with_boxes_keep_their_values_in_onnx(read: bool) -> None:
    model = detector(read=read)
    wanted = run("onnx", model)

    small: Quantized = smaller_onnx(model, "int8", {"x": X})

    got = run("onnx", small.model)
    part = slice(None) if read else slice(8, None)
    assert relative(got[:, part], wanted[:, part]) < 0.03
    assert ("and what reads it stay float" if read else "joined tensor stays float") in small.warnings[0]


def test_parts_of_like_ranges_are_joined_on_integers_without_a_word() -> None:
    small = smaller_tflite(joined_tflite(BOXES, BOXES[:4] / 4), "int8", {"x": X})

    assert small.warnings == ()


def half_of(x: Array) -> tuple[tuple[str, ...], ...]:
    seen = gather(lambda: ({"t": sample} for sample in x), 4)
    return (unstable(seen.half(0), seen.half(1)),)


def test_halves_of_ordinary_samples_agree() -> None:
    for seed in range(20):
        assert half_of(np.random.default_rng(seed).normal(size=(60, 200)).astype(np.float32)) == ((),)


def test_halves_of_different_loudness_are_told_with_both_ranges() -> None:
    loud = np.where(np.arange(100) % 2 == 0, 1.0, 12.0)[:, None]

    (told,) = half_of((values(100, 50) * loud).astype(np.float32))

    assert "two halves of the calibration samples disagree on ranges: 't' (" in told[0]
    assert "give more samples, or more alike" in told[0]


def test_a_warning_is_said_once_for_all_the_artifacts_it_is_about() -> None:
    made = [
        Made("onnx", "int8", None, None, None, warnings=("a", "b")), Made("onnx", "int16", None, None, None, warnings=("a",)),
        Made("tflite", "int8", None, None, None),
    ]  # fmt: skip

    assert warnings_of(made) == ("onnx int8, int16: a", "onnx int8: b")
