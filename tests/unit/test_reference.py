"""Reference sketches have edges that devices can count with and counts that add up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgeml.exporter.reference import confidence_edges, make_reference, stride_of
from edgeml.exporter.samples import make_samples
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import PostProcessing
from edgeml.wire.sketches import Histogram

GENERATOR = np.random.default_rng(0)


def two_classes(confidence: Array) -> dict[str, Array]:
    return {"p": np.stack([confidence, 1 - confidence], axis=1)}


def test_confidence_edges_are_the_twentieths_of_the_samples_and_hold_the_5_percent_quantile() -> None:
    confidence = np.linspace(0.5, 1.0, 2001)
    reference = make_reference(
        make_samples({"x": np.zeros((2001, 3), np.float32)}, None), two_classes(confidence), PostProcessing("p")
    )
    assert reference.confidence is not None
    assert reference.confidence.edges == pytest.approx([0.5 + 0.5 * i / 20 for i in range(1, 20)])
    assert reference.confidence.edges[0] == float(f"{np.quantile(confidence, 0.05):.6g}")
    assert max(reference.confidence.counts) - min(reference.confidence.counts) <= 1
    assert reference.confidence.total == reference.n == 2001


def test_counts_are_those_a_device_would_count() -> None:
    confidence = GENERATOR.beta(5, 1, 500) / 2 + 0.5
    reference = make_reference(
        make_samples({"x": np.zeros((500, 1), np.float32)}), two_classes(confidence), PostProcessing("p")
    )
    assert reference.confidence is not None
    assert reference.confidence == Histogram.of(confidence.tolist(), reference.confidence.edges)


@pytest.mark.parametrize(
    "confidence",
    [
        pytest.param(np.ones(800), id="always certain"),
        pytest.param(np.r_[np.ones(790), np.linspace(0.4, 0.9, 10)], id="nearly always certain"),
        pytest.param(np.full(800, 0.1), id="never certain"),
        pytest.param(1 - np.exp(-GENERATOR.uniform(0, 30, 800)), id="within float rounding of 1"),
        pytest.param(np.array([0.7]), id="one sample"),
    ],
)
def test_edges_grow_strictly_however_the_model_behaves(confidence: Array) -> None:
    edges = confidence_edges(confidence, classes=10)
    assert all(low < high for low, high in pairwise(edges))
    assert 4 <= len(edges) <= 24
    if confidence.max() == 1.0:
        assert min(edges) < 0.5  # a model that loses its certainty must show


def test_classes_are_counted_by_the_best_score() -> None:
    rows = np.array([[2.0, 1.0, 0.0]] * 5 + [[0.0, 0.0, 7.0]] * 2, np.float32)
    reference = make_reference(make_samples({"x": np.zeros((7, 1), np.float32)}), {"z": rows}, PostProcessing("z", "softmax"))
    assert reference.classes == (5, 0, 2)


def test_confidence_of_logits_is_their_softmax_at_the_temperature() -> None:
    rows = np.array([[2.0, 0.0]] * 30, np.float32)
    reference = make_reference(
        make_samples({"x": np.zeros((30, 1), np.float32)}), {"z": rows}, PostProcessing("z", "softmax", temperature=2.0)
    )
    assert reference.confidence is not None
    assert float(f"{1 / (1 + np.exp(-1)):.6g}") in reference.confidence.edges


def test_a_single_sigmoid_output_has_two_classes() -> None:
    rows = np.array([[3.0], [-3.0], [-1.0]], np.float32)
    reference = make_reference(make_samples({"x": np.zeros((3, 1), np.float32)}), {"z": rows}, PostProcessing("z", "sigmoid"))
    assert reference.classes == (2, 1)


def test_inputs_have_10_to_20_bins_with_every_element_counted() -> None:
    values = GENERATOR.normal(size=(200, 7)).astype(np.float32)
    reference = make_reference(make_samples({"x": values}), {"y": values}, None)
    assert (reference.confidence, reference.classes) == (None, ())
    assert 10 <= len(reference.inputs["x"].counts) <= 20
    assert reference.inputs["x"] == Histogram.of(values.astype(np.float64).ravel().tolist(), reference.inputs["x"].edges)


def test_of_a_large_input_every_stride_th_element_counts() -> None:
    values = GENERATOR.integers(0, 256, (50, 100_000), np.uint8)
    reference = make_reference(make_samples({"x": values}), {"y": values[:, :1]}, None)
    assert reference.strides == {"x": 391}  # 100,000 / 256, rounded up
    expected = Histogram.of(values[:, ::391].ravel().tolist(), reference.inputs["x"].edges)
    assert reference.inputs["x"] == expected
    assert reference.ranges == {"x": (0.0, 255.0)}


@pytest.mark.parametrize("shape", [(96, 96, 3), (64, 64), (1000,), (49, 10, 1), (16_000,)])
def test_counted_elements_meet_every_place_of_every_axis(shape: tuple[int, ...]) -> None:
    elements = int(np.prod(shape))
    stride = stride_of(elements)
    met = np.unravel_index(np.arange(0, elements, stride), shape)
    assert len(met[0]) <= 256
    for axis, places in zip(shape, met, strict=True):
        assert len(np.unique(places)) >= min(axis, 64)


def test_a_short_input_is_counted_whole() -> None:
    assert (stride_of(1), stride_of(64), stride_of(256)) == (1, 1, 1)


def test_an_input_that_never_varies_has_no_histogram() -> None:
    samples = make_samples({"x": np.ones((9, 4), np.float32), "nan": np.full((9, 1), np.nan, np.float32)})
    assert make_reference(samples, {"y": np.ones((9, 1))}, None).inputs == {}


def test_an_input_of_two_values_still_has_edges_between_them() -> None:
    values = np.repeat([0.0, 1.0], 50)[:, None].astype(np.float32)
    histogram = make_reference(make_samples({"x": values}), {"y": values}, None).inputs["x"]
    assert len(histogram.edges) >= 4
    assert sorted(histogram.counts)[-2:] == [50, 50]
