"""Core ML in small precisions where one dense layer does not tell: blocks, joined integer operations, overflow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgeml.exporter.calibrate.coreml import watch_coreml
from edgeml.exporter.calibrate.observers import Range
from edgeml.exporter.mil.backend import count_operations, open_mil
from edgeml.exporter.quantize.coreml import smaller_coreml, to_fp16_coreml
from edgeml.exporter.quantize.coreml_activations import with_activations
from edgeml.exporter.quantize.coreml_weights import block_of
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.wire.errors import PlanError, UnsupportedError
from tests.unit.mil_builder import coremltools, forgotten_folders, package

RNG = np.random.default_rng(8)
K1 = (RNG.normal(size=(16, 3, 3, 3)) * 0.2).astype(np.float32)
K2 = (RNG.normal(size=(24, 16, 3, 3)) * 0.1).astype(np.float32)
W = (RNG.normal(size=(10, 24 * 16)) * 0.1).astype(np.float32)
X = RNG.uniform(-2.0, 2.0, size=(48, 3, 4, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Converters warn about their own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coremltools()
        with forgotten_folders():
            yield


def net(mb: Any, x: Any) -> Any:
    """Two convolutions, a flattening, a dense layer."""
    h = mb.relu(x=mb.conv(x=x, weight=K1, pad_type="same"))
    h = mb.relu(x=mb.conv(x=h, weight=K2, pad_type="same"))
    return mb.linear(x=mb.reshape(x=h, shape=[1, 24 * 16]), weight=W)


@pytest.fixture(scope="module")
def model() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return package(net, [X[:1]])


def run(packed: bytes, x: Array) -> Array:
    backend = open_mil(packed, EngineOptions())
    return np.concatenate([backend.run([x[i : i + 1]])[0] for i in range(len(x))])


def relative(got: Array, wanted: Array) -> float:
    return float(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())


def test_a_block_is_whole_kernels_of_inputs_that_divide_evenly() -> None:
    assert block_of((40, 64), ["linear"]) == (1, 32)
    assert block_of((64, 32, 3, 3), ["conv"]) == (1, 4, 3, 3)  # 36 weights
    assert block_of((16, 3, 3, 3), ["conv"]) == (1, 3, 3, 3)  # 27: the whole channel
    assert block_of((64, 1, 3, 3), ["conv"]) is None  # depthwise: 9 weights a channel
    assert block_of((30, 50), ["linear"]) == (1, 25)
    assert block_of((30, 50), ["gather"]) is None


@pytest.mark.slow
def test_integer_activations_are_near_and_stand_at_every_layer(model: bytes) -> None:
    wanted, fresh = run(model, X), RNG.uniform(-2.0, 2.0, size=X.shape).astype(np.float32)

    small = smaller_coreml(model, "w8a8", {"x0": X})

    assert relative(run(small.model, X), wanted) < 0.02
    assert relative(run(small.model, fresh), run(model, fresh)) < 0.02
    assert count_operations(small.model)["quantize"] == 4  # the input, behind each ReLU, behind the flattening
    assert "4 activations are int8, ranges by" in small.notes[0]


@pytest.mark.slow
def test_an_activation_that_is_always_zero_has_a_scale_that_float16_holds() -> None:
    def stuck(mb: Any, x: Any) -> Any:
        silent = mb.relu(x=mb.linear(x=x, weight=-np.eye(32, dtype=np.float32)))
        return mb.linear(x=mb.add(x=silent, y=mb.relu(x=x)), weight=W[:, :32])

    positive = RNG.uniform(0.5, 2.0, size=(48, 32)).astype(np.float32)
    model = package(stuck, [positive[:1]])

    small = smaller_coreml(model, "w8a8", {"x0": positive})

    assert relative(run(small.model, positive), run(model, positive)) < 0.02


@pytest.mark.slow
def test_scales_that_change_at_a_flattening_are_both_kept(model: bytes) -> None:
    """coremltools' own passes would read the integers of one scale by the other, and double or halve the answers."""
    half = to_fp16_coreml(model)
    ranges = dict.fromkeys(_names(half), Range(-4.0, 4.0))
    wide = {name: Range(-8.0, 8.0) if "reshape" in name else ends for name, ends in ranges.items()}

    got, same = (run(with_activations(half, ends), X) for ends in (wide, ranges))

    assert relative(got, same) < 0.1


def _names(packed: bytes) -> list[str]:
    return list(next(iter(watch_coreml(packed, {"x0": X[:1]})())))


@pytest.mark.slow
def test_what_float16_cannot_hold_is_computed_in_float32_and_named() -> None:
    def large(mb: Any, x: Any) -> Any:
        return mb.log(x=mb.add(x=mb.exp(x=mb.mul(x=x, y=6.0)), y=1.0))

    x = np.array([[0.5, 1.0, 2.0, 2.5]], np.float32)  # e^15 is 3.3 million
    packed = package(large, [x])

    blind, told = smaller_coreml(packed, "fp16", None), smaller_coreml(packed, "fp16", {"x0": x})

    assert not np.isfinite(run(blind.model, x)).all()
    assert run(told.model, x) == pytest.approx(np.log(np.exp(6.0 * x) + 1.0), rel=1e-2)
    assert "beyond 60000" in told.warnings[0]
    assert "3.27e+06" in told.warnings[0]


@pytest.mark.slow
def test_a_model_without_weights_is_refused_in_small_precisions() -> None:
    packed = package(lambda mb, x: mb.relu(x=x), [np.zeros((1, 4), np.float32)])
    for precision in ("int8", "int4-weights", "palette4"):
        with pytest.raises(UnsupportedError, match="no weight tensor"):
            smaller_coreml(packed, precision, None)
    with pytest.raises((UnsupportedError, PlanError)):
        smaller_coreml(packed, "w8a8", {"x0": np.zeros((4, 4), np.float32)})
