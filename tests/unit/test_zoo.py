"""The zoo's models are what they say: kept apart from what judges them, and found by what they are made of."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest

from benchmarks.zoo import pictures, registry, sounds
from benchmarks.zoo.metrics import both_read
from benchmarks.zoo.recipe import FILES, Recipe
from benchmarks.zoo.registry import ZOO
from benchmarks.zoo.results import summary
from benchmarks.zoo.running import BUDGET, Cell, Line, contradiction
from benchmarks.zoo.samples import Samples, Splits, find
from benchmarks.zoo.scores import explained, found, overlap, retrieved, top1, top1_left

LEAST_EVALUATED = 800

needs_data = pytest.mark.skipif(
    find("fsdd.npz") is None or find("cifar10_jpeg1000.npz") is None,
    reason="no fsdd.npz and cifar10_jpeg1000.npz here (EDGEML_DATA)",
)


def test_the_zoo_has_twenty_models_of_every_kind_of_source() -> None:
    assert len(ZOO) == len(registry.MADE) >= 20
    assert {recipe.kind for recipe in ZOO.values()} == set(FILES)
    assert sum(recipe.published for recipe in ZOO.values()) == 6


@pytest.mark.parametrize("recipe", [one for one in ZOO.values() if not one.published], ids=lambda recipe: recipe.name)
def test_a_recipe_names_a_network_that_exists(recipe: Recipe) -> None:
    module, _, name = recipe.net.partition(":")
    assert callable(getattr(importlib.import_module(f"benchmarks.zoo.{module}"), name))


def test_another_seed_or_network_is_another_recipe() -> None:
    one = ZOO["sound-gru"]
    others = [dataclasses.replace(one, seed=2), dataclasses.replace(one, epochs=1), ZOO["sound-lstm"], ZOO["sound-crnn"]]
    assert len({one.digest(), *(other.digest() for other in others)}) == 5
    assert one.digest() == dataclasses.replace(one, what="in other words").digest()


@needs_data
@pytest.mark.parametrize("make", [sounds.as_mfcc, sounds.as_stretched, pictures.flat_digits], ids=lambda make: make.__name__)
def test_nothing_that_judges_was_trained_or_calibrated_with(make: object) -> None:
    assert callable(make)
    splits = make()
    assert isinstance(splits, Splits)
    parts = [part for part in (splits.train, splits.calibrate, splits.evaluate) if part is not None]
    assert len(parts) == 3
    assert len(parts[2]) >= LEAST_EVALUATED
    for kind in (Samples.digests, lambda part: part.origins):
        sets = [kind(part) for part in parts]
        assert all(sets)
        assert len(set().union(*sets)) == sum(map(len, sets))


@needs_data
def test_scenes_share_no_digit_and_no_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SCENES", dict.fromkeys(pictures.SCENES, 300))
    pictures.scenes.cache_clear()
    sets = [pictures.scenes(name, side=32, least=22, most=30).origins for name in pictures.SCENES]
    pictures.scenes.cache_clear()
    assert all(len(origins) > 100 for origins in sets)
    assert len(frozenset().union(*sets)) == sum(map(len, sets))


@needs_data
def test_a_box_surrounds_its_digit() -> None:
    made = pictures.scenes("calibrate", side=64, least=20, most=40)
    for mask, box in list(zip(made.mask, made.box, strict=True))[:20]:
        x0, y0, x1, y1 = box.astype(int)
        assert (mask > 0.4).sum() == (mask[y0:y1, x0:x1] > 0.4).sum() > 0
        assert 0 <= x0 < x1 <= 64
        assert 0 <= y0 < y1 <= 64


def test_scores_of_answers_worked_out_by_hand() -> None:
    x = {"x": np.zeros((2, 1), np.float32)}
    classes = Samples(x, np.array([1, 0]))
    answers = np.array([[0.1, 0.9], [0.2, 0.8]])
    assert top1(answers, classes, answers).tolist() == [1, 0]
    masks = Samples(x, np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.float32))
    assert overlap(np.array([[0.9, 0.1, 0.9, 0.1], [0.9, 0.1, 0.1, 0.1]]), masks, answers).tolist() == [1 / 3, 1]
    targets = Samples(x, np.array([[0.0, 2.0], [2.0, 0.0]]))
    assert explained(np.array([[0.0, 2.0], [1.0, 1.0]]), targets, answers).tolist() == [1, 0]


def test_a_found_digit_needs_its_class_and_half_its_box() -> None:
    labels = np.array([[0, 0, 100, 100, 1]] * 3, np.float32)
    right = [[0, 5], [0, 5], [100, 9], [60, 9], [0.1, 0], [0.9, 0.2]]  # (box and two scores, two cells): the first cell is best
    wrong_class = [*right[:4], [0.95, 0], [0.9, 0.2]]
    wrong_box = [[0, 5], [0, 5], [49, 9], [100, 9], *right[4:]]
    got = np.array([right, wrong_class, wrong_box], np.float64)
    assert found(got, Samples({"x": labels}, labels), got).tolist() == [1, 0, 0]


def test_the_nearest_other_sample_decides_a_retrieval() -> None:
    got = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [0.2, 0.8]])
    labels = np.array([0, 0, 1, 1, 0])
    assert retrieved(got, Samples({"x": got}, labels), got).tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("got", "said", "expected"),
    [
        ([[0.0, 1.0], [1.0, 0.0]], 1.0, None),
        ([[0.0, 1.0], [0.0, 1.0]], 1.0, "top1_accuracy is 0.5000"),
        ([[0.0, np.nan], [1.0, 0.0]], 1.0, "not finite"),
    ],
    ids=["as said", "another value", "not finite"],
)
def test_a_verdict_that_the_bare_engine_denies_is_a_silent_failure(
    got: list[list[float]], said: float, expected: str | None
) -> None:
    samples = Samples({"x": np.zeros((2, 1))}, np.array([1, 0]))
    cell = Cell("onnx", "int8", "pass", metric="top1_accuracy", value=said, own_drop=0.0)
    denied = contradiction(cell, np.array(got), np.array(got), samples)
    assert denied is None if expected is None else denied is not None and denied.startswith(expected)


def test_a_drop_that_only_the_zoos_own_score_sees_is_a_silent_failure() -> None:
    cell = Cell("onnx", "int8", "pass", metric="r2_to_source", value=0.999, own_drop=BUDGET + 0.1)
    assert "own score" in str(contradiction(cell, np.zeros((2, 3)), np.zeros((2, 3)), Samples({"x": np.zeros((2, 1))}, None)))


def test_the_summary_counts_what_passed_within_its_bound() -> None:
    def int8(format_: str, drop: float, upper: float, status: str) -> Cell:
        return Cell(format_, "int8", status, bytes=30, drop=drop, upper95=upper)

    whole = [Cell(format_, "fp32", "pass", bytes=100) for format_ in ("onnx", "tflite")]
    good = Line("a", "", "c", 0.9, 0.1, 1, 0, 1.0, [*whole, int8("onnx", 0.1, 0.5, "pass"), int8("tflite", 0.2, 0.9, "pass")])
    bad = Line("b", "", "c", 0.9, 0.1, 1, 4, 1.0, [int8("onnx", 3.0, 4.0, "fail"), int8("tflite", 0.4, 1.4, "inconclusive")])
    told = summary([good, bad])
    assert (told["pass_share"], told["worst_drop"], told["size_ratio"], told["silent_failures"]) == (0.5, 3.0, 0.3, 0)
    assert told["not_passed"] == ["b onnx: fail", "b tflite: inconclusive"]


def test_two_digits_are_both_read_or_not() -> None:
    left, right = np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([[0.9, 0.1], [0.2, 0.8]])
    labels = np.array([[1, 0], [1, 0]])
    assert both_read({"left": left, "right": right}, labels.astype(np.float64)).tolist() == [1, 0]
    assert top1_left(left, Samples({"x": left}, labels), left).tolist() == [1, 1]


@needs_data
def test_a_scene_of_two_digits_is_two_scenes_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SCENES", dict.fromkeys(pictures.SCENES, 20))
    pictures.scenes.cache_clear()
    made, one = pictures.two_digits().calibrate, pictures.scenes("calibrate", side=32, least=22, most=30)
    pictures.scenes.cache_clear()
    assert made.labels is not None
    assert made.inputs["x"].shape == (20, 3, 32, 64)
    left, right = made.inputs["x"][..., :32], made.inputs["x"][..., 32:]
    np.testing.assert_array_equal(left.transpose(0, 2, 3, 1), one.image)
    for image, digit in zip(right.transpose(0, 2, 3, 1), made.labels[:, 1], strict=True):
        assert digit in one.digit[(one.image == image).all(axis=(1, 2, 3))]
