"""What a model is fed, in counters: bins of the manifest's reference, and cheap signs that the data itself is broken.

A call costs some microseconds whatever the input's size: every `stride`-th element of at most `ROWS` samples is looked at. What
does not fit the signature is left alone; the session refuses it with the reason.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeml.runtime.backends import Array
from edgeml.wire.manifest import Reference, Signature, TensorSpec
from edgeml.wire.sketches import Histogram, InputSketch

ROWS: Final = 4  # samples of a batch that are looked at, evenly spaced


class InputCounter:
    """Counts one input. `look` may be called from any thread, `take` empties it."""

    def __init__(self, spec: TensorSpec, histogram: Histogram, limits: tuple[float, float], stride: int) -> None:
        self.name = spec.name
        self._dtype = np.dtype(spec.dtype)
        self._rank, self._batched = len(spec.shape), spec.has_batch
        self._stride = stride
        lowest, highest = min(limits[0], histogram.edges[0]), max(limits[1], histogram.edges[-1])
        # the first and the last bin get one beyond, for what lies outside the reference's range; NaN falls behind the last
        self._edges: NDArray[Any] = np.asarray([lowest, *histogram.edges, np.nextafter(highest, np.inf)])
        self._is_float = self._dtype.kind == "f"
        self._last: Any = None  # of an input of one element
        self._lock = threading.Lock()
        self._clear()

    def look(self, array: object) -> None:
        """Count what one call is fed; anything but an array of the signature's dtype and rank is left alone."""
        if not isinstance(array, np.ndarray) or array.dtype != self._dtype or array.size == 0:
            return
        missing = self._rank - array.ndim
        if missing not in {0, self._batched}:
            return
        rows = len(array) if self._batched and missing == 0 else 1
        values = array.reshape(rows, -1)[:: -(-rows // ROWS), :: self._stride]
        counts = np.bincount(np.searchsorted(self._edges, values.ravel(), side="right"), minlength=len(self._edges) + 1)
        outside = int(counts[0] + counts[-1])
        nan = int(np.isnan(values).sum()) if self._is_float and counts[-1] else 0
        constant = self._constant(values, int(counts.max()))
        with self._lock:
            self._counts += counts
            self._calls += len(values)
            self._outside += outside - nan
            self._nan += nan
            self._constant_calls += constant

    def take(self) -> InputSketch:
        """What was counted since the last time."""
        with self._lock:
            counts, calls, nan = self._counts.tolist(), self._calls, self._nan
            outside, constant = self._outside, self._constant_calls
            self._clear()
        inner = counts[1:-1]
        inner[0] += counts[0]
        inner[-1] += counts[-1] - nan
        return InputSketch(calls=calls, counts=tuple(inner), nan=nan, outside=outside, constant=constant)

    def _constant(self, values: Array, fullest: int) -> int:
        """How many of the samples say nothing: all elements the same; of one element, the same as in the call before."""
        elements = values.shape[1]
        if elements == 1:
            value, before = values[-1, 0], self._last
            self._last = value
            return int(len(values) == 1 and value == before)
        if fullest < elements:  # each sample has elements in several bins
            return 0
        return int((values == values[:, :1]).all(axis=1).sum())

    def _clear(self) -> None:
        self._counts = np.zeros(len(self._edges) + 1, np.int64)
        self._calls = self._nan = self._outside = self._constant_calls = 0


class InputWatch:
    """The counters of all inputs that the reference has bins for; an input that never varied at export has none."""

    def __init__(self, signature: Signature, reference: Reference | None) -> None:
        self.counters = tuple(
            InputCounter(spec, reference.inputs[spec.name], reference.ranges[spec.name], reference.strides.get(spec.name, 1))
            for spec in signature.inputs
            if reference is not None and spec.name in reference.inputs and spec.name in reference.ranges
        )

    def look(self, inputs: Mapping[str, Array]) -> None:
        for counter in self.counters:
            counter.look(inputs.get(counter.name))

    def take(self) -> dict[str, InputSketch]:
        """A sketch by input."""
        return {counter.name: counter.take() for counter in self.counters}
