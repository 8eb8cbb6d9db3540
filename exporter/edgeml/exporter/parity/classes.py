"""Which classes an artifact loses, and what it answers instead: a small drop over all may be a large one of a few.

Many classes are looked at, and one of them is worst by chance alone. So each class has its own bounds, and beside them a
p-value that counts how many were looked at (Holm, "A simple sequentially rejective multiple test procedure", 1979).
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from edgeml.exporter.parity.intervals import drop_upper, needed_samples
from edgeml.exporter.parity.metrics import Floats, class_scores, threshold, top1
from edgeml.runtime.backends import Array

LISTED: Final = 20  # classes with the largest drops
CONFUSIONS: Final = 200  # pairs of classes
POINTS: Final = 100.0


class ClassDrop(msgspec.Struct, frozen=True):
    """One class's samples: those with its label, or without labels those that the source gave it.

    `lost` are right in the source and wrong in the artifact, `won` the other way; `drop` in points with its one-sided 95 %
    bounds. `p_holm` is the exact one-sided McNemar test's p-value that there is no drop, times Holm's factor. `needed_n`
    samples of this class would decide the budget; `None` where it is decided or none would.
    """

    index: int
    n: int
    lost: int
    won: int
    drop: float
    lower95: float
    upper95: float
    p_holm: float
    needed_n: int | None = None


class Confusion(msgspec.Struct, frozen=True):
    """`count` samples that the source gives class `source` and the artifact class `artifact`; `lost` of them it had right."""

    source: int
    artifact: int
    count: int
    lost: int = 0
    won: int = 0


class ClassEvidence(msgspec.Struct, frozen=True):
    """`drops` are the `LISTED` worst of `classes` classes, `confusion` the most frequent of `disagreements` disagreements."""

    classes: int
    drops: tuple[ClassDrop, ...]
    disagreements: int
    confusion: tuple[Confusion, ...]


def class_evidence(reference: Array, got: Array, labels: Array | None, budget: float | None) -> ClassEvidence | None:
    """By class, from two outputs with class scores (n, ...); `labels` are class numbers or not used. `None`: no scores."""
    truth, mine = class_scores(reference), class_scores(got)
    if truth is None or mine is None:
        return None
    cut = threshold(reference)
    before, after = top1(truth, cut), top1(mine, cut)
    own = labels if labels is not None and labels.dtype.kind == "i" and labels.ndim == 1 else before
    was, now = before == own, after == own
    counted = []
    for index in np.unique(own).tolist():
        members = own == index
        lost, won = int((was & ~now & members).sum()), int((~was & now & members).sum())
        counted.append((int(index), int(members.sum()), lost, won))
    adjusted = holm(np.asarray([mcnemar(lost, won) for _, _, lost, won in counted]))
    worst = sorted(zip(counted, adjusted, strict=True), key=lambda pair: (_negative_drop(pair[0]), pair[0]))
    drops = tuple(_drop(counts, p, budget) for counts, p in worst[:LISTED] if counts[2] or counts[3])
    differ = before != after
    pairs, numbers = np.unique(np.stack([before[differ], after[differ]], axis=1), axis=0, return_counts=True)
    ordered = sorted(zip(pairs.tolist(), numbers.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))[:CONFUSIONS]
    confusion = []
    for (source, artifact), number in ordered:
        here = (before == source) & (after == artifact)
        confusion.append(Confusion(source, artifact, number, int((was & ~now & here).sum()), int((~was & now & here).sum())))
    return ClassEvidence(len(counted), drops, int(differ.sum()), tuple(confusion))


def mcnemar(lost: int, won: int) -> float:
    """The exact one-sided p-value of "no drop": P(X >= lost) for X ~ Binomial(lost + won, 1/2); 1 if nothing changed.

    (McNemar, Psychometrika 12, 1947, with the binomial in place of the normal distribution.)
    """
    from scipy.stats import binom  # takes a second to import

    return float(binom.sf(lost - 1, lost + won, 0.5)) if lost + won else 1.0


def holm(values: Floats) -> list[float]:
    """p-values for having looked at all m: the k-th smallest times m - k + 1, never below the one before, at most 1."""
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def _negative_drop(counts: tuple[int, int, int, int]) -> float:
    _, n, lost, won = counts
    return (won - lost) / n


def _drop(counts: tuple[int, int, int, int], p_holm: float, budget: float | None) -> ClassDrop:
    index, n, lost, won = counts
    points, upper = POINTS * (lost - won) / n, POINTS * drop_upper(lost, won, n)
    undecided = budget is not None and points <= budget < upper
    return ClassDrop(
        index=index,
        n=n,
        lost=lost,
        won=won,
        drop=points,
        lower95=-POINTS * drop_upper(won, lost, n),
        upper95=upper,
        p_holm=p_holm,
        needed_n=needed_samples(lost, won, n, budget / POINTS) if undecided and budget is not None else None,
    )
