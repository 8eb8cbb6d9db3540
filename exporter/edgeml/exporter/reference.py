"""Reference sketches: how the source behaved on the evaluation samples, in histograms that devices and fleet count on with.

Edges are frozen here and travel in the manifest. They stand at quantiles, so that each bin holds about as many samples and a
shift of any part of the distribution moves counts; the 5 % quantile of the confidence is always among them, since it is what
"unusually unsure" is measured by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeml.exporter.chance import make_nulls
from edgeml.exporter.parity.answers import probabilities
from edgeml.exporter.parity.compare import Outputs
from edgeml.exporter.samples import Samples
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import PostProcessing, Reference, edges_id
from edgeml.wire.sketches import Histogram

CONFIDENCE_BINS: Final = 20  # one for each 5 %
INPUT_BINS: Final = 10  # more see smaller details of a shift, and find a shift of the whole later
LEAST_EDGES: Final = 4  # fewer distinct quantiles see no shift; evenly spaced edges fill up
INPUT_VALUES: Final = 1_000_000  # of one input, enough for quantiles to three digits
CALL_ELEMENTS: Final = 256  # of one call that a device counts: a few microseconds
MOST_CLASSES: Final = 1024  # that a device counts

_COARSEST: Final = 1e-6  # two edges nearer than this (relative to the largest) are one


@dataclass(frozen=True, slots=True)
class _Input:
    """One input as a device will count it: every `stride`-th element of a sample. `rows` (samples, elements)."""

    rows: NDArray[np.float64]
    stride: int
    range: tuple[float, float]


def make_reference(samples: Samples, outputs: Outputs, post: PostProcessing | None, *, seed: int = 0) -> Reference:
    """Sketches of `samples` and of the source's outputs (n, ...) for them, and how far chance may carry a device from them.

    Confidence is the largest probability after `post`; class counts are of the top-1 class. Both are left out where `post` is
    `None`. Input histograms count at most `CALL_ELEMENTS` elements of a sample; of very many samples, evenly spaced ones.
    """
    inputs = {name: _as_counted(values) for name, values in samples.inputs.items()}
    sketches = {name: _of_values(one.rows[np.isfinite(one.rows)], INPUT_BINS) for name, one in inputs.items()}
    kept = {name: histogram for name, histogram in sketches.items() if histogram is not None}
    shares = {f"input:{name}": _shares(inputs[name].rows, histogram.edges) for name, histogram in kept.items()}
    strides = {name: inputs[name].stride for name in kept if inputs[name].stride > 1}
    confidence, classes = None, np.zeros(0, np.int64)
    if post is not None:
        rows = probabilities(post, outputs)
        best = rows.max(axis=1)
        confidence = _histogram(best, confidence_edges(best, classes=rows.shape[1]))
        classes = np.bincount(rows.argmax(axis=1), minlength=rows.shape[1])
        shares["confidence"] = _shares(best[:, None], confidence.edges)
        if len(classes) <= MOST_CLASSES:
            shares["classes"] = np.eye(len(classes))[rows.argmax(axis=1)]
    return Reference(
        n=len(samples),
        confidence=confidence,
        classes=tuple(classes.tolist()),
        inputs=kept,
        strides=strides,
        ranges={name: inputs[name].range for name in kept},
        nulls=make_nulls(shares, seed=seed),
        edges_id=edges_id(confidence, kept, strides),
    )


def answer_counts(
    post: PostProcessing, source: Outputs, own: PostProcessing, got: Outputs
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(confidence, class) counts of an artifact's answers by its `own` post-processing, in the source's bins."""
    best = probabilities(post, source)
    edges = confidence_edges(best.max(axis=1), classes=best.shape[1])
    rows = probabilities(own, got)
    classes = np.bincount(rows.argmax(axis=1), minlength=rows.shape[1])
    return _histogram(rows.max(axis=1), edges).counts, tuple(classes.tolist())


def stride_of(elements: int) -> int:
    """How far apart the counted elements of a sample stand.

    Without a common factor with the number of elements, so that no axis (the channels of a picture) is met at one place only.
    """
    stride = max(1, -(-elements // CALL_ELEMENTS))
    while math.gcd(stride, elements) > 1:
        stride += 1
    return stride


def confidence_edges(confidence: NDArray[np.float64], *, classes: int) -> tuple[float, ...]:
    """Strictly growing edges for a confidence in [1 / classes, 1]: its 5 %, 10 %, … 95 % quantiles without repeats.

    A model that is sure of almost everything has few distinct quantiles; evenly spaced edges are added, since what falls there
    is news.
    """
    edges = _quantile_edges(confidence, CONFIDENCE_BINS)
    if len(edges) < LEAST_EDGES:
        lowest = 1 / max(classes, 2)
        edges = (*edges, *(lowest + (1 - lowest) * share for share in (0.2, 0.4, 0.6, 0.8)))
    return _distinct(edges)


def _of_values(values: NDArray[np.float64], bins: int) -> Histogram | None:
    """`None` for an input that never varies: it has no distribution to drift from."""
    if len(values) == 0 or values.min() == values.max():
        return None
    edges = _quantile_edges(values, bins)
    if len(edges) < LEAST_EDGES:
        edges = _distinct([*edges, *np.linspace(values.min(), values.max(), LEAST_EDGES + 2)[1:-1].tolist()])
    return _histogram(values, edges)


def _as_counted(values: Array) -> _Input:
    """Evenly spaced samples, as many as `INPUT_VALUES` allows, and of each the elements that a device counts."""
    flat = values.reshape(len(values), -1)
    stride = stride_of(flat.shape[1])
    per_sample = -(-flat.shape[1] // stride)
    count = max(1, min(len(flat), INPUT_VALUES // per_sample))
    chosen = flat[np.unique(np.linspace(0, len(flat) - 1, count).astype(int)), ::stride].astype(np.float64)
    finite = flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat
    lowest, highest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return _Input(chosen, stride, (lowest, highest))


def _shares(rows: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.float64]:
    """Which share of each row's finite elements falls in each bin: (rows, bins). Rows without any are left out."""
    bins, finite = np.searchsorted(edges, rows, side="right"), np.isfinite(rows)
    counts = np.stack([((bins == i) & finite).sum(axis=1) for i in range(len(edges) + 1)], axis=1)
    counts = counts[counts.sum(axis=1) > 0]
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _quantile_edges(values: NDArray[np.float64], bins: int) -> tuple[float, ...]:
    return _distinct(np.quantile(values, np.arange(1, bins) / bins).tolist())


def _distinct(edges: Sequence[float]) -> tuple[float, ...]:
    """Sorted, to six digits, no two the same or nearly so."""
    tidy = sorted({float(f"{edge:.6g}") for edge in edges})
    gap = _COARSEST * max(map(abs, tidy), default=0.0)
    kept: list[float] = []
    for edge in tidy:
        if not kept or edge - kept[-1] > gap:
            kept.append(edge)
    return tuple(kept)


def _histogram(values: NDArray[np.float64], edges: tuple[float, ...]) -> Histogram:
    """As `Histogram.of`, for arrays: a value on an edge counts above it."""
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return Histogram(edges, tuple(int(count) for count in counts))
