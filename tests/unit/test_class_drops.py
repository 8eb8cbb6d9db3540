"""Drops of single classes, and what is answered instead."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgeml.exporter.parity.classes import class_evidence, holm, mcnemar
from edgeml.runtime.backends import Array


def scores(classes: Array | list[int], count: int = 4) -> Array:
    rows = np.full((len(classes), count), 0.1, np.float32)
    rows[np.arange(len(classes)), classes] = 1 - 0.1 * (count - 1)
    return rows


LABELS = np.repeat([0, 1, 2, 3], 50)
LOSES_TWO = np.where((LABELS == 2) & (np.arange(200) % 50 < 20), 3, LABELS)
"""Twenty of the fifty samples of class 2 become class 3."""


def test_the_class_that_loses_comes_first_with_its_bounds() -> None:
    found = class_evidence(scores(LABELS), scores(LOSES_TWO), LABELS, budget=1.0)

    assert found is not None
    assert [one.index for one in found.drops] == [2]
    (worst,) = found.drops
    assert (found.classes, worst.n, worst.lost, worst.won, worst.drop) == (4, 50, 20, 0, 40.0)
    assert 0 < worst.lower95 < 40 < worst.upper95 < 60
    assert worst.p_holm == pytest.approx(4 * 0.5**20)  # one of four classes that were looked at
    assert worst.needed_n is None


def test_disagreements_are_counted_by_both_classes() -> None:
    found = class_evidence(scores(LABELS), scores(LOSES_TWO), LABELS, budget=1.0)

    assert found is not None
    assert (found.disagreements, [(c.source, c.artifact, c.count, c.lost) for c in found.confusion]) == (20, [(2, 3, 20, 20)])


def test_without_labels_the_source_says_what_is_right() -> None:
    with_labels = class_evidence(scores(LABELS), scores(LOSES_TWO), LABELS, budget=1.0)

    assert class_evidence(scores(LABELS), scores(LOSES_TWO), None, budget=1.0) == with_labels


def test_an_undecided_class_says_how_many_samples_would_decide() -> None:
    labels = np.repeat([0, 1], 100)
    got = labels.copy()
    got[0] = 1

    found = class_evidence(scores(labels), scores(got), labels, budget=3.0)

    assert found is not None
    (one,) = found.drops
    assert one.drop == pytest.approx(1.0)
    assert one.upper95 > 3.0
    assert one.needed_n is not None
    assert one.needed_n > 100


def test_maps_and_sequences_have_no_classes() -> None:
    maps = np.zeros((3, 5, 5), np.float32)
    assert class_evidence(maps, maps, None, budget=1.0) is None


def test_mcnemar_is_the_binomial_test_of_scipy() -> None:
    assert mcnemar(9, 3) == pytest.approx(stats.binomtest(9, 12, 0.5, alternative="greater").pvalue)
    assert mcnemar(0, 0) == 1.0


def test_holm_by_hand() -> None:
    assert holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.9, 0.8])) == [1.0, 1.0]
