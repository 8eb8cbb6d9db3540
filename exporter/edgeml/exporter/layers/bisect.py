"""The smallest piece of a model that is wrong by itself: fed with what the other model computes there, it gives something else.

Between two tensors that both models have lies a piece of the second model. Each is cut out, fed with the *first* model's
values, and held to the first model's result: what noise it was handed no longer counts, only what it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.exporter.layers.difference import Compared, compared_pairs, difference
from edgeml.exporter.layers.match import Pair, match
from edgeml.exporter.layers.measure import largest, signal_to_noise_db
from edgeml.exporter.layers.onnx import OnnxModel
from edgeml.exporter.layers.tflite import TfliteModel
from edgeml.exporter.layers.trace import Model, Operator, Trace
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.wire.errors import UnsupportedError

LEAST_DB: Final[Mapping[str, float]] = {"float32": 60.0, "float64": 60.0, "float16": 40.0}
LEAST_INTEGER_DB: Final = 15.0  # of one operator; healthy int8 ones leave 30 to 45
MOST_PIECES: Final = 24  # cut out and run: those that add most noise


@dataclass(frozen=True, slots=True)
class Piece:
    """A cut: its file, what one call is fed (stored values, by position), and what the first model gives there (n, ...).

    `operators` are the second model's, in order. `got` is what the piece gives, as real numbers like `expected`.
    """

    operators: tuple[Operator, ...]
    model: bytes
    inputs: tuple[tuple[str, Array], ...]
    output: str
    expected: Array
    got: Array
    snr_db: float
    least_db: float

    @property
    def fails(self) -> bool:
        return self.snr_db < self.least_db

    @property
    def max_abs(self) -> float | None:
        return largest(self.expected, self.got)


@dataclass(frozen=True, slots=True)
class _Bench:
    """Cuts pieces of `model`, traced as `b`, and runs each on what the first model gives there; `pairs` by names in `b`."""

    b: Trace
    model: OnnxModel | TfliteModel
    pairs: Mapping[str, Pair]
    compared: Mapping[str, Compared]

    def piece(self, operators: Sequence[Operator], boundary: Sequence[str], name: str, least_db: float | None) -> Piece:
        reals = {source: self._expected(source) for source in boundary}
        expected = self._expected(name)
        if isinstance(self.model, OnnxModel):
            stored = tuple((source, self.model.stored(source, values)) for source, values in reals.items())
            data = self.model.cut({source: values[0] for source, values in stored}, name)
            got = _run_onnx(data, stored)
        else:
            data = self.model.cut(boundary, name)
            stored = tuple((source, self.model.stored(source, values)) for source, values in reals.items())
            got = self.model.real(name, _run_tflite(data, stored))
        bars = [LEAST_DB.get(one.precision, LEAST_INTEGER_DB) for one in operators]
        if any(values.dtype.kind in "iu" for _, values in stored):  # what it is fed is rounded already
            bars.append(LEAST_INTEGER_DB)
        least = min(bars) if least_db is None else least_db
        got = got.reshape(expected.shape)
        return Piece(tuple(operators), data, stored, name, expected, got, signal_to_noise_db(expected, got), least)

    def _expected(self, name: str) -> Array:
        """The first model's values in the second's order of axes, shape and units."""
        return np.ascontiguousarray(self.compared[self.pairs[name].a].expected.reshape(self.b.values[name].shape))


def worst_piece(a: Trace, b: Trace, model: Model, least_db: float | None = None) -> Piece | None:
    """The piece of `model` (traced as `b`) that is farthest below what it is held to; `None` if no tensor is matched.

    `least_db` is the signal to noise that a piece must leave; by its precision if not given.

    Raises:
        UnsupportedError: pieces of this format cannot be cut out.
    """
    if not isinstance(model, OnnxModel | TfliteModel):
        raise UnsupportedError("a Core ML program is not cut into pieces", hint="`edgeml diff` shows where it goes wrong")
    pairs = match(a, b)
    bench = _Bench(b, model, {pair.b: pair for pair in pairs}, compared_pairs(a, b, pairs))
    makers = b.makers()
    adding = {layer.other: layer.own_db for layer in difference(a, b).layers if layer.own_db is not None}
    pieces = []
    for name in sorted(adding, key=lambda name: adding[name])[:MOST_PIECES]:
        operators, boundary = _between(name, bench.pairs, makers)
        if boundary:
            pieces.append(bench.piece(operators, boundary, name, least_db))
    return min(pieces, key=lambda piece: (piece.snr_db - piece.least_db, len(piece.operators)), default=None)


def _between(name: str, pairs: Mapping[str, Pair], makers: Mapping[str, Operator]) -> tuple[list[Operator], list[str]]:
    """The operators between a tensor and the nearest matched ones before it, and those."""
    operators: dict[str, Operator] = {}
    boundary: dict[str, None] = {}
    queue = [name]
    while queue:
        current = queue.pop()
        if current != name and current in pairs:
            boundary[current] = None
            continue
        maker = makers.get(current)
        if maker is None:
            return [], []  # reaches an input that is not matched
        if maker.name not in operators:
            operators[maker.name] = maker
            queue += maker.inputs
    order = list(makers.values())
    return sorted(operators.values(), key=order.index), list(boundary)


def _run_onnx(data: bytes, inputs: Sequence[tuple[str, Array]]) -> Array:
    backend = open_onnx(data, EngineOptions(kernels="reference"))
    at = dict(inputs)
    count = len(inputs[0][1])
    return np.stack([backend.run([at[raw.name][number] for raw in backend.inputs])[0] for number in range(count)])


def _run_tflite(data: bytes, inputs: Sequence[tuple[str, Array]]) -> Array:
    backend = open_tflite(data, EngineOptions(kernels="exact"))
    return np.stack([backend.run([values[number] for _, values in inputs])[0] for number in range(len(inputs[0][1]))])
