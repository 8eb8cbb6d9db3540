"""Reference sketches: how the source behaved on the evaluation samples, in histograms that devices and fleet count on with.

Edges are frozen here and travel in the manifest. They stand at quantiles, so that each bin holds about as many samples and a
shift of any part of the distribution moves counts; the 5 % quantile of the confidence is always among them, since it is what
"unusually unsure" is measured by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeml.exporter.parity.answers import probabilities
from edgeml.exporter.parity.compare import Outputs
from edgeml.exporter.samples import Samples
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import PostProcessing, Reference
from edgeml.wire.sketches import Histogram

CONFIDENCE_BINS: Final = 20  # one for each 5 %
INPUT_BINS: Final = 16
LEAST_EDGES: Final = 4  # fewer distinct quantiles see no shift; evenly spaced edges fill up
INPUT_VALUES: Final = 1_000_000  # of one input, enough for quantiles to three digits

_COARSEST: Final = 1e-6  # two edges nearer than this (relative to the largest) are one


def make_reference(samples: Samples, outputs: Outputs, post: PostProcessing | None) -> Reference:
    """Sketches of `samples` and of the source's outputs (n, ...) for them.

    Confidence is the largest probability after `post`; class counts are of the top-1 class. Both are left out where `post` is
    `None`. Input histograms count every element of every sample; for large inputs, of evenly spaced samples.
    """
    inputs = {name: _of_values(_thinned(values), INPUT_BINS) for name, values in samples.inputs.items()}
    kept = {name: histogram for name, histogram in inputs.items() if histogram is not None}
    if post is None:
        return Reference(n=len(samples), inputs=kept)
    rows = probabilities(post, outputs)
    return Reference(
        n=len(samples),
        confidence=_histogram(rows.max(axis=1), confidence_edges(rows.max(axis=1), classes=rows.shape[1])),
        classes=tuple(int(count) for count in np.bincount(rows.argmax(axis=1), minlength=rows.shape[1])),
        inputs=kept,
    )


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


def _thinned(values: Array) -> NDArray[np.float64]:
    """Finite elements of as many evenly spaced samples as `INPUT_VALUES` allows."""
    per_sample = max(1, int(np.prod(values.shape[1:])))
    count = max(1, min(len(values), INPUT_VALUES // per_sample))
    chosen = values[np.unique(np.linspace(0, len(values) - 1, count).astype(int))].astype(np.float64).ravel()
    return np.asarray(chosen[np.isfinite(chosen)])


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
