"""Which tensor of one model is which of another: by name, by value, by place in the graph; in this order.

- *name*: the same format, the same name, shape and kind of operator.
- *value*: the same shape up to the order of axes (sizes of 1 do not count), and values that correlate; the best pairs first.
- *place*: operators of the same kind whose inputs are matched give the same tensor, however far its values are off. This is how
  a broken layer is still told from a missing one.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from edgeml.exporter.layers.measure import alike, alike_by_channel
from edgeml.exporter.layers.trace import Operator, Trace
from edgeml.runtime.backends import Array

By = Literal["name", "value", "place"]
SURE: Final = 0.9  # correlation; the least of healthy int8 layers seen is 0.97
MOST_ORDERS: Final = 24  # of axes
ELEMENTS: Final = 4096  # of a tensor that are compared to find pairs
LEAST_SAMPLES: Final = 4
CERTAIN: Final = 0.9999
UNLIKELY: Final = 0.2  # even of channels with factors
HAIR: Final = 0.001
PASSING: Final = frozenset(
    {"Rounding", "QUANTIZE", "DEQUANTIZE", "Identity", "Cast", "cast", "CAST", "Relu", "RELU", "relu", "Clip", "RELU6", "relu6",
     "Reshape", "RESHAPE", "reshape", "Flatten", "Squeeze", "SQUEEZE", "squeeze", "Transpose", "TRANSPOSE", "transpose",
     "quantize", "dequantize"}
)  # fmt: skip
"""Operators that one model may have and another leave out, or fuse."""
SAME_KIND: Final = (
    {"Conv", "CONV_2D", "DEPTHWISE_CONV_2D", "conv"},
    {"Gemm", "MatMul", "FULLY_CONNECTED", "BATCH_MATMUL", "linear", "matmul"},
    {"Relu", "RELU", "relu", "RELU6", "Clip", "relu6"},
    {"Add", "ADD", "add"},
    {"Mul", "MUL", "mul"},
    {"Softmax", "SOFTMAX", "softmax"},
    {"AveragePool", "GlobalAveragePool", "AVERAGE_POOL_2D", "MEAN", "ReduceMean", "avg_pool", "reduce_mean"},
    {"MaxPool", "MAX_POOL_2D", "max_pool"},
    {"Concat", "CONCATENATION", "concat"},
    {"Sigmoid", "LOGISTIC", "sigmoid"},
    {"Tanh", "TANH", "tanh"},
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Tensor `a` of the first model is `b` of the second, whose axes after the first are `a`'s in the order `order`."""

    a: str
    b: str
    by: By
    order: tuple[int, ...]

    def as_b(self, values: Array) -> Array:
        """Values (n, ...) of `a` with the axes of `b`, but for sizes of 1."""
        squeezed = _squeezed(values)
        return squeezed.transpose(0, *(axis + 1 for axis in self.order))


def match(a: Trace, b: Trace) -> list[Pair]:
    """Pairs in the order of the first model's operators, the inputs first. Each tensor is in one pair at most."""
    tensors_a, tensors_b = _tensors(a), _tensors(b)
    found = _by_name(a, b, tensors_a, tensors_b) if a.format == b.format else {}
    found |= _by_end(a, b, found)
    found |= _by_value(a, b, [t for t in tensors_a if t not in found], _left(tensors_b, found))
    found |= _by_place(a, b, found)
    return [found[name] for name in tensors_a if name in found]


def _tensors(trace: Trace) -> list[str]:
    names = [*trace.inputs, *(name for operator in trace.operators for name in operator.outputs)]
    return [name for name in dict.fromkeys(names) if name in trace.values and trace.values[name].dtype.kind == "f"]


def _left(names: Sequence[str], found: Mapping[str, Pair]) -> list[str]:
    taken = {pair.b for pair in found.values()}
    return [name for name in names if name not in taken]


def _by_name(a: Trace, b: Trace, tensors_a: Sequence[str], tensors_b: Sequence[str]) -> dict[str, Pair]:
    makers_a, makers_b = a.makers(), b.makers()
    found = {}
    for name in tensors_a:
        if name not in tensors_b or _squeezed(a.values[name]).shape != _squeezed(b.values[name]).shape:
            continue
        kinds = {makers[name].kind if name in makers else "" for makers in (makers_a, makers_b)}
        if len(kinds) == 1:
            found[name] = Pair(name, name, "name", tuple(range(_squeezed(a.values[name]).ndim - 1)))
    return found


def _by_end(a: Trace, b: Trace, found: Mapping[str, Pair]) -> dict[str, Pair]:
    """The only output of one model is the only output of the other."""
    if len(a.outputs) != 1 or len(b.outputs) != 1 or a.outputs[0] not in a.values or b.outputs[0] not in b.values:
        return {}
    (one,), (other,) = a.outputs, b.outputs
    score, order = _best_order(a.values[one], b.values[other])
    free = one not in found and other not in {pair.b for pair in found.values()}
    fits = order or _squeezed(a.values[one]).shape == _squeezed(b.values[other]).shape
    return {one: Pair(one, other, "value" if score >= SURE else "place", order)} if free and fits else {}


def _by_value(a: Trace, b: Trace, tensors_a: Sequence[str], tensors_b: Sequence[str]) -> dict[str, Pair]:
    """Greedily the pairs that correlate best; of equals, those at the nearest place in their model."""
    candidates = []
    for i, one in enumerate(tensors_a):
        for j, other in enumerate(tensors_b):
            score, order = _best_order(a.values[one], b.values[other])
            if score >= SURE:
                apart = abs(i / len(tensors_a) - j / len(tensors_b))
                candidates.append((-round(score, 4), apart, i, j, order))
    found: dict[str, Pair] = {}
    taken: set[int] = set()
    for _, _, i, j, order in sorted(candidates):
        if tensors_a[i] not in found and j not in taken:
            taken.add(j)
            found[tensors_a[i]] = Pair(tensors_a[i], tensors_b[j], "value", order)
    return found


def _by_place(a: Trace, b: Trace, found: Mapping[str, Pair]) -> dict[str, Pair]:
    added: dict[str, Pair] = {}
    free = set(_left(_tensors(b), found))
    makers_a, makers_b = a.makers(), b.makers()
    for operator in a.operators:
        for position, name in enumerate(operator.outputs):
            if name in found or name not in a.values or a.values[name].dtype.kind != "f":
                continue
            known = {**found, **added}
            through = {} if operator.kind in PASSING else makers_a
            sources = [_before(source, through, known) for source in operator.inputs if source in a.values]
            pairs = [known[source] for source in sources if source in known]
            if not pairs or len(pairs) < len(sources):
                continue
            taken = {pair.b for pair in known.values()}
            through = {} if operator.kind in PASSING else makers_b
            for other in _readers(b, [pair.b for pair in pairs], operator, through, taken):
                mine = other.outputs[position] if position < len(other.outputs) else ""
                order = _best_order(a.values[name], b.values[mine])[1] if mine in free else None
                if order is not None and (order or _squeezed(a.values[name]).ndim < 2):
                    added[name] = Pair(name, mine, "place", order)
                    free.discard(mine)
                    break
    return added


def _before(name: str, makers: Mapping[str, Operator], known: Collection[str]) -> str:
    """The tensor itself if it is known, else what it is made of by operators that only pass it on."""
    while name not in known and name in makers and makers[name].kind in PASSING and makers[name].inputs:
        name = makers[name].inputs[0]
    return name


def _readers(
    trace: Trace, sources: Sequence[str], like: Operator, makers: Mapping[str, Operator], known: Collection[str]
) -> Iterator[Operator]:
    """Operators of the same kind that read just these tensors, be it through operators that only pass them on."""
    for operator in trace.operators:
        read = [_before(name, makers, known) for name in operator.inputs if name in trace.values]
        if sorted(read) == sorted(sources) and _same_kind(operator.kind, like.kind):
            yield operator


def _same_kind(one: str, other: str) -> bool:
    return one == other or any({one, other} <= kinds for kinds in SAME_KIND)


def _best_order(a: Array, b: Array) -> tuple[float, tuple[int, ...]]:
    """(correlation, order) of the order of axes under which two tensors are most alike; (-1, ()) if none fits."""
    best: tuple[float, tuple[int, ...]] = (-1.0, ())
    for order in _orders(_squeezed(a).shape[1:], _squeezed(b).shape[1:]):
        score = _score(a, b, order)
        if score > best[0] + 1e-6:
            best = score, order
    return best


def _score(a: Array, b: Array, order: Sequence[int]) -> float:
    """Correlation; of channels that may have a factor each, a hair less, so that tensors without such factors come first."""
    turned, other = _thinned(_squeezed(a).transpose(0, *(axis + 1 for axis in order))), _thinned(_squeezed(b))
    plain = alike(turned, other)
    if plain >= CERTAIN or plain < UNLIKELY or turned.ndim < 2:
        return plain
    return max(plain, *(alike_by_channel(turned, other, axis) - HAIR for axis in {1, turned.ndim - 1}))


def _thinned(values: Array) -> Array:
    """Fewer samples, then fewer rows of a picture, until there are few enough elements."""
    while values.size > ELEMENTS and (values.shape[0] > LEAST_SAMPLES or values.ndim > 2):
        longest = 0 if values.shape[0] > LEAST_SAMPLES else int(np.argmax(values.shape[1:])) + 1
        if values.shape[longest] < 4:
            break
        values = values[tuple(slice(None, None, 2) if axis == longest else slice(None) for axis in range(values.ndim))]
    return values


def _orders(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Orders of axes that turn one shape into the other, those that move least first."""
    if sorted(shape) != sorted(wanted):
        return
    fitting = (order for order in itertools.permutations(range(len(shape))) if tuple(shape[axis] for axis in order) == wanted)
    ranked = sorted(
        itertools.islice(fitting, MOST_ORDERS), key=lambda order: sum(x > y for x, y in itertools.combinations(order, 2))
    )
    yield from ranked


def _squeezed(values: Array) -> Array:
    """Without sizes of 1 behind the axis of samples."""
    return values.reshape(len(values), *(size for size in values.shape[1:] if size != 1))
