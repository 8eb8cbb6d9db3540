"""Observers against values worked out by hand or by brute force; gathering; choosing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgeml.exporter.calibrate.checks import calibration_notes
from edgeml.exporter.calibrate.choose import FOLDS, Differences, first_good, judge, output_error
from edgeml.exporter.calibrate.feeds import Feeds, count, one_by_one, part
from edgeml.exporter.calibrate.observers import (
    OBSERVERS,
    Range,
    average,
    entropy,
    headroom,
    min_max,
    mse,
    percentile,
    squared_error,
)
from edgeml.exporter.calibrate.statistics import BINS, Statistics, gather
from edgeml.exporter.calibrate.stored import map_arrays
from edgeml.exporter.quantize.onnx import smaller_onnx
from edgeml.exporter.source.model import write_arrays
from edgeml.runtime.backends import Array, RawTensor
from edgeml.wire.errors import PlanError
from tests.unit.small_models import onnx_model


def seen(values: Array, samples: int = 1) -> Statistics:
    def run() -> Iterator[Mapping[str, Array]]:
        return ({"x": part} for part in np.array_split(values, samples))

    return gather(run).without()["x"]


def test_statistics_hold_extremes_their_means_and_every_value_once() -> None:
    found = seen(np.array([-1.0, 3.0, 0.0, 5.0], np.float32), samples=2)

    assert (found.low, found.high) == (-1.0, 5.0)
    assert (found.average_low, found.average_high) == (-0.5, 4.0)  # (-1 + 0) / 2, (3 + 5) / 2
    assert found.counts.sum() == 4
    assert found.counts[0] == 1
    assert found.counts[-1] == 1
    assert found.counts[BINS // 6] == 1  # 0 lies a sixth of the way from -1 to 5
    assert found.counts[BINS * 4 // 6] == 1


def test_a_value_that_is_not_finite_is_refused_with_its_tensor_and_sample() -> None:
    with pytest.raises(PlanError, match=r"'x' is not finite on calibration sample 1"):
        seen(np.array([0.0, 1.0, np.nan, 1.0], np.float32), samples=2)


def test_min_max_never_clips_and_holds_zero() -> None:
    assert min_max(seen(np.array([2.0, 6.0]))) == (0.0, 6.0)
    assert min_max(seen(np.array([-3.0, -1.0]))) == (-3.0, 0.0)


def test_headroom_adds_a_tenth_where_values_are() -> None:
    assert headroom(seen(np.array([-2.0, 10.0]))) == pytest.approx((-2.2, 11.0))
    assert headroom(seen(np.array([0.0, 10.0]))) == pytest.approx((0.0, 11.0))


def test_average_is_the_mean_of_each_samples_extremes() -> None:
    assert average(seen(np.array([-1.0, 1.0, -3.0, 9.0]), samples=2)) == (-2.0, 5.0)


def test_percentile_leaves_out_equal_tails() -> None:
    found = percentile(seen(np.linspace(-1.0, 1.0, 100_001)), 90.0)

    assert found == pytest.approx((-0.9, 0.9), abs=3 * 2 / BINS)


def test_percentile_keeps_an_end_at_zero() -> None:
    relu = np.maximum(np.random.default_rng(0).normal(size=50_000), 0.0)

    found = percentile(seen(relu), 99.0)

    assert found.low == 0.0
    assert found.high == pytest.approx(np.quantile(relu, 0.995), rel=0.01)


def test_mse_finds_the_clip_that_brute_force_over_the_values_finds() -> None:
    values = np.random.default_rng(1).laplace(size=400_000)  # 8 bits do best clipped at 9.9; the largest is beyond 12
    errors = []
    for end in np.abs(values).max() * np.linspace(0.3, 1.0, 36):
        scale = 2 * end / 255
        zero = np.round(end / scale)
        codes = np.clip(np.round(values / scale) + zero, 0, 255)
        errors.append(float(np.mean((values - (codes - zero) * scale) ** 2)))

    found = mse(seen(values))

    assert max(-found.low, found.high) < 0.9 * np.abs(values).max()
    assert squared_error(values, np.ones_like(values), found) / len(values) <= min(errors) * 1.02


def test_mse_keeps_a_uniform_range_whole() -> None:
    assert mse(seen(np.linspace(0.0, 4.0, 100_000))).high == pytest.approx(4.0, rel=0.011)


def test_squared_error_of_two_values_by_hand() -> None:
    # levels 0, 1, ..., 255: 0.25 is off by 0.25, 300 is clipped to 255
    assert squared_error(np.array([0.25, 300.0]), np.array([4.0, 1.0]), Range(0.0, 255.0)) == 4 * 0.0625 + 45.0**2


def test_entropy_clips_a_lonely_outlier_and_keeps_a_uniform_range() -> None:
    bulk = np.random.default_rng(2).normal(size=100_000)
    uniform = np.random.default_rng(3).uniform(0.0, 1.0, size=100_000)

    assert entropy(seen(np.append(bulk, 60.0))).high < 30.0
    assert entropy(seen(uniform)).high == pytest.approx(1.0, rel=0.07)


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_observer_survives_a_constant_tensor(name: str) -> None:
    for value in (0.0, 3.5, -2.0):
        low, high = OBSERVERS[name](seen(np.full(10, value)))
        assert low <= 0.0 <= high
        assert low < high


def test_notes_name_what_to_look_at() -> None:
    statistics = {"still": seen(np.zeros(3)), "fine": seen(np.array([0.0, 1.0]))}

    assert calibration_notes(statistics) == ("never changes over the calibration samples: 'still'",)
    assert not calibration_notes({"fine": statistics["fine"]})


def test_samples_that_disagree_or_are_missing_are_refused() -> None:
    inputs = (RawTensor("a", np.dtype(np.float32), (1, 2)), RawTensor("b", np.dtype(np.float32), (1, 2)))
    with pytest.raises(PlanError, match="different numbers"):
        count({"a": np.zeros((2, 2)), "b": np.zeros((3, 2))})
    with pytest.raises(PlanError, match="no calibration samples for input 'b'"):
        next(one_by_one(inputs, {"a": np.zeros((2, 2))}))
    with pytest.raises(PlanError, match="no calibration samples"):
        count({"a": np.zeros((0, 2))})


def test_each_sample_is_fed_with_a_batch_of_one_whether_it_has_the_axis_or_not() -> None:
    inputs = (RawTensor("a", np.dtype(np.float32), (1, 2)),)

    plain = next(one_by_one(inputs, {"a": np.ones((3, 2))}))
    stacked = next(one_by_one(inputs, {"a": np.ones((3, 1, 2))}))

    assert plain[0].shape == stacked[0].shape == (1, 2)
    assert plain[0].dtype == np.float32


def test_parts_hold_every_sample_once() -> None:
    feeds: Feeds = {"x": np.arange(10)}

    parts = [part(feeds, number, FOLDS)["x"] for number in range(FOLDS)]

    assert sorted(np.concatenate(parts)) == list(range(10))


def test_statistics_without_a_part_are_those_of_the_other_samples() -> None:
    values = np.random.default_rng(9).normal(size=(12, 50)).astype(np.float32)
    found = gather(lambda: ({"x": sample} for sample in values), parts=4)
    others = values[np.arange(12) % 4 != 1]

    without = found.without(1)["x"]

    assert (without.low, without.high) == (others.min(), others.max())
    assert without.average_high == pytest.approx(others.max(axis=1).mean())
    assert without.counts.sum() == others.size
    counted = np.histogram(others, bins=BINS, range=(values.min(), values.max()))[0]
    assert np.abs(np.cumsum(without.counts - counted)).max() <= 1  # a value on an edge may fall to either side


def test_a_way_is_judged_on_samples_it_was_not_made_from() -> None:
    feeds: Feeds = {"x": np.arange(40.0)}

    def quantize(way: float, fold: int) -> bytes:
        return np.array([way, fold]).tobytes()

    def run(model: bytes, held: Feeds) -> Iterator[list[Array]]:
        way, fold = np.frombuffer(model)
        assert set(held["x"]) == set(np.arange(fold, 40.0, FOLDS))
        return ([sample * way] for sample in held["x"])

    errors = judge([1.0, 1.5], quantize, run, lambda held: ([sample] for sample in held["x"]), feeds)

    # error of 1.5 x: sqrt(mean (x / 2)^2) / std(x) over 0..39
    assert errors == pytest.approx([0.0, np.sqrt(np.mean((np.arange(40.0) / 2) ** 2)) / np.std(np.arange(40.0))])


def test_what_comes_first_wins_a_draw() -> None:
    assert first_good([1.1, 1.0]) == 0
    assert first_good([1.2, 1.0]) == 1
    assert first_good([float("inf"), 2.0]) == 1


def test_errors_gathered_sample_by_sample_are_those_of_all_at_once() -> None:
    wanted = np.random.default_rng(7).normal(size=(50, 9)) + 1000.0
    got = wanted + np.random.default_rng(8).normal(size=wanted.shape)
    differences = Differences()

    for a, b in zip(wanted, got, strict=True):
        differences.add([a], [b])

    assert differences.error() == pytest.approx(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())


def test_an_output_that_is_not_finite_is_infinitely_wrong() -> None:
    assert output_error([np.array([0.0, 1.0])], [np.array([0.0, np.nan])]) == float("inf")


def peak_of_quantizing(count: int) -> int:
    """The most memory that quantizing a network with pictures for outputs takes, samples left out: bytes."""
    rng = np.random.default_rng(11)
    kernel = rng.normal(size=(8, 1, 3, 3)).astype(np.float32)
    model = onnx_model(
        [helper.make_node("Conv", ["x", "k"], ["y"], pads=[1] * 4)], {"k": kernel}, {"x": [1, 1, 24, 24]}, {"y": [1, 8, 24, 24]}
    )
    feeds = {"x": rng.normal(size=(count, 1, 24, 24)).astype(np.float32)}
    tracemalloc.start()
    try:
        smaller_onnx(model, "int8", feeds)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    peak_of_quantizing(40)  # imports, caches

    few, many = peak_of_quantizing(40), peak_of_quantizing(160)

    output_bytes = 8 * 24 * 24 * 4
    assert many - few < 20 * output_bytes  # 120 more samples; all their outputs would be 120 times as much, or more


def test_samples_on_disk_are_those_that_were_written(tmp_path: Path) -> None:
    arrays: list[Array] = [
        np.arange(24, dtype=np.float32).reshape(4, 3, 2), np.asfortranarray(np.arange(8).reshape(4, 2)), np.ones(2, bool),
    ]  # fmt: skip
    write_arrays(tmp_path / "s.npz", arrays)

    found = map_arrays(tmp_path / "s.npz", ["a", "b", "c"])

    for got, written in zip(found.values(), arrays, strict=True):
        assert got.dtype == written.dtype
        assert np.array_equal(got, written)
    assert isinstance(found["a"], np.memmap)
