"""Metrics that are no mean over samples: the area under the ROC curve, and F1. Each for many draws of the samples at once.

`weights` (draws, n) says how often each sample is drawn; ones give the metric itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeml.exporter.parity.intervals import Statistic
from edgeml.exporter.parity.metrics import Floats

Classes = NDArray[np.int64]


def area_under_curve(probabilities: Floats, labels: Classes) -> Statistic:
    """The area under the ROC curve: how often a random sample of a class scores above a random one of the others.

    AUC = (sum over pairs of [p > q] + [p = q] / 2) / (positives * negatives) (Hanley and McNeil, Radiology 143, 1982). Two
    classes: that of class 1. More: one against the rest, the mean over the classes that occur (as `roc_auc_score` of
    scikit-learn does with multi_class="ovr", average="macro", where every class occurs). `probabilities` (n, classes).
    """
    every = [1] if probabilities.shape[1] == 2 else [c for c in np.unique(labels).tolist() if (labels != c).any()]
    parts = [_one_against_rest(probabilities[:, c], labels == c) for c in every]

    def areas(weights: Floats) -> Floats:
        return np.asarray(np.mean([part(weights) for part in parts], axis=0))

    return areas


def _one_against_rest(scores: Floats, positive: NDArray[np.bool_]) -> Statistic:
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)  # of each run of equal scores
    is_positive = positive[order]

    def area(weights: Floats) -> Floats:
        drawn = weights[:, order]
        above = np.add.reduceat(drawn * is_positive, starts, axis=1)
        below = np.add.reduceat(drawn * ~is_positive, starts, axis=1)
        beaten = np.cumsum(below, axis=1) - below / 2
        return np.asarray((above * beaten).sum(axis=1) / (above.sum(axis=1) * below.sum(axis=1)))

    return area


def f1(chosen: Classes, labels: Classes, classes: Sequence[int]) -> Statistic:
    """F1 = 2 TP / (2 TP + FP + FN) of each of `classes`, and their mean; 0 for a class that is neither there nor chosen.

    (van Rijsbergen, "Information Retrieval", 1979; the mean is scikit-learn's average="macro".)
    """
    mine = np.stack([chosen == c for c in classes], axis=1).astype(np.float64)
    true = np.stack([labels == c for c in classes], axis=1).astype(np.float64)

    def scores(weights: Floats) -> Floats:
        hits = weights @ (mine * true)
        total = weights @ mine + weights @ true  # 2 TP + FP + FN
        return np.asarray(np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0).mean(axis=1))

    return scores
