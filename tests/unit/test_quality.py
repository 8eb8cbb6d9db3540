"""What a model is fed shows in a window: bins, and cheap signs that the data is broken. A raw value never does."""

from __future__ import annotations

import threading
import zlib
from functools import cache

import msgspec
import numpy as np
import pytest

from edgeml.exporter.reference import make_reference
from edgeml.exporter.samples import make_samples
from edgeml.runtime.backends import Array
from edgeml.runtime.model import Result
from edgeml.runtime.quality import ROWS, InputWatch
from edgeml.runtime.telemetry import Window
from edgeml.wire import messages
from edgeml.wire.errors import BundleError
from edgeml.wire.manifest import (
    SCHEMA,
    Manifest,
    PostProcessing,
    Reference,
    Signature,
    SourceFile,
    TensorSpec,
    decode_manifest,
    edges_id,
)
from edgeml.wire.sketches import Histogram, InputSketch

LADDER = Reference(  # elements 0 … 9, bins [0, 2.5), [2.5, 5), [5, 7.5), [7.5, 9]
    10, inputs={"x": Histogram((2.5, 5.0, 7.5), (3, 2, 3, 2))}, ranges={"x": (0.0, 9.0)}
)
FOUR = Signature((TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 2)),))


def seen(*arrays: Array, signature: Signature = FOUR, reference: Reference = LADDER) -> InputSketch:
    watch = InputWatch(signature, reference)
    for array in arrays:
        watch.look({"x": array})
    return watch.take()["x"]


def floats(*values: float) -> Array:
    return np.asarray(values, np.float32)


def test_elements_are_counted_by_the_references_bins() -> None:
    assert seen(floats(0, 1, 3, 9)) == InputSketch(calls=1, counts=(2, 1, 0, 1))
    assert seen(floats(2.5, 5, 7.5, 9)).counts == (0, 1, 1, 2)  # an edge belongs above, the range's end inside


def test_the_batch_axis_may_be_there_or_not() -> None:
    one = floats(0, 1, 3, 9)
    assert seen(one) == seen(one[None])


def test_values_outside_the_references_range_count_in_the_outer_bins_and_show() -> None:
    assert seen(floats(-1, 4, 9.5, np.inf)) == InputSketch(calls=1, counts=(1, 1, 0, 2), outside=3)


def test_nan_is_in_no_bin_and_shows() -> None:
    assert seen(floats(np.nan, np.nan, 3, 100)) == InputSketch(calls=1, counts=(0, 1, 0, 1), nan=2, outside=1)


def test_an_input_that_says_nothing_shows() -> None:
    assert seen(floats(3, 3, 3, 3), floats(3, 3, 3, 4), floats(3, 4, 3, 4)).constant == 1


def test_a_scalar_that_never_moves_shows() -> None:
    signature = Signature((TensorSpec("x", "float32", ("batch", 1)),), FOUR.outputs)
    assert seen(*[floats(value) for value in (1, 2, 2, 2, 3)], signature=signature).constant == 2


def test_of_a_large_batch_a_few_samples_are_counted() -> None:
    sketch = seen(np.zeros((100, 4), np.float32))
    assert (sketch.calls, sketch.elements, sketch.constant) == (ROWS, 4 * ROWS, ROWS)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(np.zeros(4, np.float64), id="dtype"),
        pytest.param(np.zeros((2, 1, 4), np.float32), id="rank"),
        pytest.param(np.zeros((0, 4), np.float32), id="no samples"),
        pytest.param([1.0, 2.0], id="a list"),
        pytest.param(None, id="nothing"),
    ],
)
def test_what_does_not_fit_the_signature_is_not_counted(wrong: Array) -> None:
    assert seen(wrong).calls == 0


def test_integers_are_counted_too() -> None:
    signature = Signature((TensorSpec("x", "uint8", ("batch", 2, 2)),), FOUR.outputs)
    assert seen(np.asarray([[0, 3], [200, 9]], np.uint8), signature=signature) == InputSketch(1, (1, 1, 0, 2), outside=1)


def test_a_device_counts_what_the_exporter_counted() -> None:
    pictures = np.random.default_rng(0).normal(size=(40, 96, 96, 3)).astype(np.float32)
    reference = make_reference(make_samples({"x": pictures}), {"y": pictures[:, 0, 0]}, None)
    signature = Signature((TensorSpec("x", "float32", ("batch", 96, 96, 3)),), FOUR.outputs)
    sketch = seen(*pictures, signature=signature, reference=reference)
    assert sketch.counts == reference.inputs["x"].counts
    assert (sketch.outside, sketch.nan) == (0, 0)


def test_sketches_add() -> None:
    a, b = InputSketch(2, (1, 2), nan=1), InputSketch(3, (5, 0), outside=4, constant=1)
    assert a + b == InputSketch(5, (6, 2), nan=1, outside=4, constant=1)
    with pytest.raises(ValueError, match="different bins"):
        a + InputSketch(1, (1, 2, 3))


def test_calls_counted_from_many_threads_all_count() -> None:
    watch = InputWatch(FOUR, LADDER)

    def work() -> None:
        for _ in range(500):
            watch.look({"x": floats(0, 3, 6, 9)})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watch.take()["x"] == InputSketch(2000, (2000, 2000, 2000, 2000))


@cache
def sixteen_inputs() -> Manifest:
    generator = np.random.default_rng(0)
    names = [f"sensor_{i:02d}" for i in range(16)]
    samples = make_samples({name: generator.normal(i, 1 + i, (60, 8)).astype(np.float32) for i, name in enumerate(names)})
    post = PostProcessing("p")
    return Manifest(
        schema=SCHEMA,
        name="gateway",
        version="1.0.0",
        signature=Signature(
            tuple(TensorSpec(name, "float32", ("batch", 8)) for name in names), (TensorSpec("p", "float32", ("batch", 10)),)
        ),
        source=SourceFile("onnx", "0" * 64, 1),
        exporter={},
        options={},
        seed=0,
        artifacts=(),
        post=post,
        reference=make_reference(samples, {"p": generator.dirichlet(np.ones(10), 60)}, post),
    )


def test_a_minute_of_a_gateway_with_16_inputs_fits_a_kilobyte() -> None:
    manifest, generator = sixteen_inputs(), np.random.default_rng(1)
    window = Window(manifest, now=1.7e9)
    for call in range(60):
        window.observe(
            {spec.name: generator.normal(i, 1 + i, 8).astype(np.float32) for i, spec in enumerate(manifest.signature.inputs)}
        )
        latency_s = float(generator.lognormal(-5, 0.3))
        index = int(generator.integers(10))
        window.record(Result({}, None, index, float(generator.beta(5, 2)), "device", latency_s, "gateway", "1.0.0", str(call)))
    message = window.take(1.7e9 + 60).telemetry("gateway-17", 1_790_000_000_123, 1_790_000_000_123_456)
    assert len(message.inputs) == 16
    assert all(sketch.calls == 60 for sketch in message.inputs.values())
    assert len(zlib.compress(messages.encode(message), 9)) <= 1024
    assert messages.decode(messages.Telemetry, messages.encode(message)) == message


def test_a_window_names_the_bins_it_was_counted_with() -> None:
    manifest = sixteen_inputs()
    assert manifest.reference is not None
    window = Window(manifest, now=0.0)
    window.observe({"sensor_00": np.zeros(8, np.float32)})
    counts = window.take(60.0)
    assert counts.edges_id == manifest.reference.edges_id
    assert list(counts.inputs) == ["sensor_00"]  # what was not fed is not sent


def test_a_manifest_whose_edges_were_touched_is_refused() -> None:
    manifest = sixteen_inputs()
    assert decode_manifest(manifest.encode()) == manifest
    text = msgspec.json.decode(manifest.encode())
    text["reference"]["inputs"]["sensor_03"]["edges"][0] -= 0.5
    with pytest.raises(BundleError, match="edges_id"):
        decode_manifest(msgspec.json.encode(text))


def test_the_same_edges_have_the_same_id_whatever_was_counted() -> None:
    a, b = Histogram((1.0, 2.0), (1, 2, 3)), Histogram((1.0, 2.0), (9, 9, 9))
    assert edges_id(a, {"x": a}, {}) == edges_id(b, {"x": b}, {})
    assert edges_id(a, {"x": a}, {}) != edges_id(a, {"x": a}, {"x": 3})


def test_a_shifted_sensor_is_told_in_the_window_and_to_the_fall_back() -> None:
    manifest, generator = sixteen_inputs(), np.random.default_rng(1)
    window, now = Window(manifest, now=0.0), 0.0
    alarms: list[str] = []
    for minute in range(80):
        shift = 3.0 if minute >= 45 else 0.0
        for _ in range(60):
            window.observe(
                {
                    spec.name: generator.normal(i + (shift * (1 + i) if i == 5 else 0.0), 1 + i, 8).astype(np.float32)
                    for i, spec in enumerate(manifest.signature.inputs)
                }
            )
        now += 60.0
        alarms += [stream for stream, drift in window.take(now).drift.items() if drift.alarm and stream not in alarms]
        assert window.is_drifting == bool(alarms)
    assert alarms == ["input:sensor_05"]


def test_a_bundle_without_reference_is_watched_for_nothing() -> None:
    manifest = msgspec.structs.replace(sixteen_inputs(), reference=None)
    window = Window(manifest, now=0.0)
    window.observe({"sensor_00": np.zeros(8, np.float32)})
    counts = window.take(60.0)
    assert (counts.inputs, counts.drift, counts.edges_id) == ({}, {}, None)
