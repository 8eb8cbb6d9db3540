"""Every precision of every format on one dense layer: what the file holds, how far its answers are off, how small it is.

The bounds are worked out from the layer and the steps alone. An error of rounding lies evenly within half a step, so its mean
square is step^2 / 12; over independent weights and inputs mean squares add.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from edgeml.exporter.contents import contents
from edgeml.exporter.mil.backend import open_mil
from edgeml.exporter.precision import AVAILABLE, CALIBRATED
from edgeml.exporter.quantize.coreml import smaller_coreml
from edgeml.exporter.quantize.onnx import smaller_onnx
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.quantize.tflite import smaller_tflite
from edgeml.runtime.backends import Array, Backend, EngineOptions, opener
from edgeml.wire.manifest import Format, Precision
from tests.unit.small_models import dense_coreml, dense_onnx, dense_tflite, input_of

OUTPUTS, INPUTS, BLOCK = 48, 128, 32
RNG = np.random.default_rng(0)
W = RNG.normal(size=(OUTPUTS, INPUTS)).astype(np.float32)
B = RNG.normal(size=OUTPUTS).astype(np.float32)
X = RNG.normal(size=(120, INPUTS)).astype(np.float32)
SLACK = 1.15  # of a root mean square over 5,760 answers
HALF = 2.0**-11  # the largest relative error of rounding to float16

BUILD: dict[Format, Callable[[Array, Array], bytes]] = {
    "onnx": dense_onnx, "tflite": dense_tflite, "coreml": dense_coreml,
}  # fmt: skip
MAKE: dict[Format, Callable[..., Quantized]] = {"onnx": smaller_onnx, "tflite": smaller_tflite, "coreml": smaller_coreml}
FOUND: dict[Precision, str] = {
    "fp16": "float16", "int16": "int8", "int8-weights": "int8", "int8-dynamic": "int8", "int8": "int8", "int4-weights": "int4",
    "w8a8": "int8", "palette8": "palette8", "palette6": "palette6", "palette4": "palette4",
}  # fmt: skip
BITS: dict[Precision, int] = {"fp16": 16, "int4-weights": 4, "palette6": 6, "palette4": 4}  # of a weight; 8 for all others
FLOATS: dict[Format, str] = {"onnx": "float32", "tflite": "float32", "coreml": "float16"}  # what scales and biases may be

FAST: list[Format] = ["onnx", "tflite"]
CASES = [
    pytest.param(format_, precision, marks=[] if format_ in FAST else pytest.mark.slow)
    for format_ in BUILD
    for precision in AVAILABLE[format_]
    if precision != "fp32"
]


@cache
def whole(format_: Format) -> bytes:
    return BUILD[format_](W, B)


@cache
def made(format_: Format, precision: Precision, *, calibrated: bool) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # converters warn about their own deprecations
        return MAKE[format_](whole(format_), precision, {input_of(format_): X} if calibrated else None).model


def ways(format_: Format, precision: Precision) -> list[bool]:
    """With samples, and without where none are needed."""
    return [True] if precision in CALIBRATED[format_] or format_ == "coreml" else [True, False]


def run(format_: Format, model: bytes, x: Array) -> Array:
    options = EngineOptions(kernels="exact")
    backend: Backend = open_mil(model, options) if format_ == "coreml" else opener(format_)(model, options)
    return np.concatenate([backend.run([x[i : i + 1]])[0] for i in range(len(x))])


def weight_variance(format_: Format, precision: Precision) -> Array:
    """Of an answer's error by rounded weights: (samples, outputs)."""
    squares = X.astype(np.float64) ** 2
    if precision == "fp16":
        return (W.astype(np.float64) ** 2 @ squares.T * HALF**2 / 3).T
    if precision.startswith("palette"):  # no worse than as many values at even distances
        step = np.full(W.shape, np.ptp(W) / 2 ** BITS.get(precision, 8))
        return squares @ (step.T**2 / 12)
    block = INPUTS if precision != "int4-weights" or format_ == "tflite" else BLOCK
    largest = np.abs(W).reshape(OUTPUTS, -1, block).max(axis=2)
    step = np.repeat(largest / (7 if precision == "int4-weights" else 127), block, axis=1)
    return squares @ (step.T**2 / 12)


def input_variance(precision: Precision) -> Array:
    """Of an answer's error by rounded inputs; a range has a tenth of headroom at both ends."""
    largest = np.abs(X).max(axis=1, keepdims=True) if precision == "int8-dynamic" else np.abs(X).max()
    step = {"int8": 2.2 * largest / 255, "int16": 2.2 * largest / 65535, "int8-dynamic": 2 * largest / 254}.get(precision, 0.0)
    if precision == "w8a8":
        step = 2.2 * largest / 255
    return np.broadcast_to(np.asarray(step) ** 2 / 12 * (W.astype(np.float64) ** 2).sum(axis=1), (len(X), OUTPUTS))


def output_variance(format_: Format, precision: Precision) -> float:
    """Of an answer's error by rounding it to float16, and its terms."""
    exact = X.astype(np.float64) @ W.T + B
    return float(4 * np.mean(exact**2) * HALF**2 if format_ == "coreml" or precision == "fp16" else 0.0)


@pytest.mark.parametrize(("format_", "precision"), CASES)
def test_the_weights_in_the_file_are_what_the_name_says(format_: Format, precision: Precision) -> None:
    for calibrated in ways(format_, precision):
        found, _ = contents(format_, made(format_, precision, calibrated=calibrated))
        assert found.split("+")[0] == FOUND[precision]
        assert set(found.split("+")) <= {FOUND[precision], FLOATS[format_]}


@pytest.mark.parametrize(("format_", "precision"), CASES)
def test_answers_are_off_by_no_more_than_the_steps_make_them(format_: Format, precision: Precision) -> None:
    bound = np.sqrt(
        np.mean(weight_variance(format_, precision) + input_variance(precision)) + output_variance(format_, precision)
    )
    exact = X.astype(np.float64) @ W.T + B
    for calibrated in ways(format_, precision):
        got = run(format_, made(format_, precision, calibrated=calibrated), X)
        error = np.sqrt(np.mean((got - exact) ** 2))
        assert error <= SLACK * bound
        assert error > 0.1 * bound  # something was rounded


@pytest.mark.parametrize(("format_", "precision"), CASES)
def test_the_file_shrinks_by_what_the_weights_save(format_: Format, precision: Precision) -> None:
    saved = W.size * (32 - BITS.get(precision, 8)) // 8
    scales = 4 * OUTPUTS * max(1, INPUTS // BLOCK) + 2 * 256  # or a palette
    for calibrated in ways(format_, precision):
        overhead = len(made(format_, precision, calibrated=calibrated)) - (len(whole(format_)) - saved)
        assert overhead < scales + 9 * OUTPUTS + 2500  # zero points, a bias of its own scale, and the nodes that unpack


@pytest.mark.parametrize("format_", FAST)
def test_samples_make_four_bits_err_less_where_inputs_go_together(format_: Format) -> None:
    mixed = (X @ RNG.normal(size=(INPUTS, 12)) @ RNG.normal(size=(12, INPUTS)) / 12).astype(np.float32)
    exact = mixed.astype(np.float64) @ W.T + B
    known, unknown = (MAKE[format_](whole(format_), "int4-weights", feeds).model for feeds in ({"x": mixed}, None))

    error, nearest = (np.sqrt(np.mean((run(format_, model, mixed) - exact) ** 2)) for model in (known, unknown))

    assert error < 0.3 * nearest


@pytest.mark.parametrize(("format_", "precision"), [("onnx", "int8-weights"), ("tflite", "int4-weights")])
def test_equal_inputs_give_equal_bytes(format_: Format, precision: Precision) -> None:
    assert MAKE[format_](whole(format_), precision, {"x": X}).model == made(format_, precision, calibrated=True)
