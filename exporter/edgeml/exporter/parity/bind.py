"""Which tensor of an artifact stands for which tensor of the signature: found by name and shape, proved by value.

Converters rename, reorder and transpose; two outputs of one shape swap silently. So every possible assignment is a candidate,
the one that the names suggest comes first, and the artifact is run on real samples until one gives what the source gave. Where
none does but the tensors can be assigned in one way only, with their axes as they are, there is nothing to tell apart: that way
is taken, and `compare` judges its values.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.runtime.backends import Array, Backend, RawTensor
from edgeml.wire.errors import ParityError
from edgeml.wire.manifest import BATCH, Binding, DType, Signature, TensorSpec

PROOF_SAMPLES: Final = 8
TOLERANCE: Final = 0.5  # rms error over std; an unrelated tensor of the same spread has 1.4, the worst healthy int8 seen 0.18
SURE: Final = 1e-2  # no better assignment is looked for
CANDIDATE_LIMIT: Final = 512  # input assignments tried; the names put the likely ones first
MAX_RANK: Final = 6  # axes; more orders than 5! are not tried

_AFFIXES = re.compile(r"^(serving_default_|StatefulPartitionedCall_?|model/|args?_)+|(:\d+)$")


@dataclass(frozen=True, slots=True)
class _Option:
    """One way to read a raw tensor as a tensor of the signature; `permute` as in `Binding`."""

    spec: TensorSpec
    raw: RawTensor
    index: int
    permute: tuple[int, ...] | None

    def rank(self) -> tuple[int, int]:
        """Plausibility, best first: how well the names match, then the fewest moved axes."""
        return _name_distance(self.spec.name, self.raw.name), 0 if self.permute is None else 1 + _moves(self.permute)

    def binding(self) -> Binding:
        axes: tuple[int | str, ...] = self.spec.shape
        if self.permute is not None:
            axes = tuple(axes[axis] for axis in self.permute)
        if len(axes) != len(self.raw.shape):  # axes of size 1 come or go; an open one can only be the batch
            axes = (BATCH,) * len(self.raw.shape)
        shape = tuple(axes[i] if size is None else size for i, size in enumerate(self.raw.shape))
        dtype: DType = str(self.raw.dtype)  # type: ignore[assignment]  # engines give numeric tensors only
        return Binding(self.spec.name, self.raw.name, self.index, dtype, shape, self.raw.quantization, self.permute)


@dataclass(frozen=True, slots=True)
class _Fit:
    inputs: tuple[_Option, ...]
    outputs: tuple[_Option, ...]
    error: float  # of the worst output, rms over std


def bind(
    backend: Backend,
    signature: Signature,
    inputs: Mapping[str, Array],
    reference: Mapping[str, Array],
    *,
    tolerance: float = TOLERANCE,
) -> tuple[tuple[Binding, ...], tuple[Binding, ...]]:
    """Bindings of a backend's inputs (in its order) and outputs (in the signature's order).

    Args:
        backend: the artifact, loaded.
        signature: what the application sees.
        inputs: real samples (n, ...) as `Samples.inputs`.
        reference: the source's outputs for them (n, ...).
        tolerance: the largest rms error over std that counts as a proof.

    Raises:
        ParityError: nothing fits; the closest candidate and its error are named.
    """
    count = len(next(iter(inputs.values())))
    picked = np.unique(np.linspace(0, count - 1, min(PROOF_SAMPLES, count)).astype(int))
    samples = {name: values[picked] for name, values in inputs.items()}
    truth = {name: values[picked] for name, values in reference.items()}
    output_options = [_options(spec, backend.outputs, _one(spec, truth)) for spec in signature.outputs]
    for spec, options in zip(signature.outputs, output_options, strict=True):
        if not options:
            raise _no_tensor("output", spec, backend.outputs)
    assignments = list(itertools.islice(_input_assignments(backend, signature, samples), CANDIDATE_LIMIT))
    best: _Fit | None = None
    for assignment in assignments:
        got = _run(backend, assignment, samples, len(picked))
        fit = _match_outputs(assignment, output_options, got, truth)
        if fit is not None and (best is None or fit.error < best.error):
            best = fit
        if best is not None and best.error <= SURE:
            break
    if best is None:
        raise ParityError(
            "no one-to-one assignment of tensors", expected=_names(signature.outputs), got=_raw_names(backend.outputs)
        )
    if best.error > tolerance:
        best = _only_way(assignments, output_options) or best
    if best.error > tolerance:
        raise _not_proved(best, tolerance, len(assignments))
    return tuple(option.binding() for option in best.inputs), tuple(option.binding() for option in best.outputs)


def _only_way(assignments: Sequence[tuple[_Option, ...]], outputs: Sequence[Sequence[_Option]]) -> _Fit | None:
    """The assignment without moved axes, if tensors alone leave no choice; its error is not held against it."""
    plain = [choice for choice in assignments if all(option.permute is None for option in choice)]
    tensors = {tuple(option.spec.name for option in choice) for choice in assignments}
    if len(tensors) > 1 or not plain or any(len({option.index for option in options}) > 1 for options in outputs):
        return None
    straight = [option for options in outputs for option in options if option.permute is None]
    return _Fit(plain[0], tuple(straight), 0.0) if len(straight) == len(outputs) else None


def _input_assignments(backend: Backend, signature: Signature, samples: Mapping[str, Array]) -> Iterator[tuple[_Option, ...]]:
    """Each way to feed every input of the backend from a different input of the signature, the likely ones first."""
    if len(backend.inputs) != len(signature.inputs):
        raise ParityError(
            "the artifact has other inputs than the signature",
            expected=_names(signature.inputs),
            got=_raw_names(backend.inputs),
            hint="inputs that the model does not use are dropped by converters: take them out of the source",
        )
    per_raw: list[list[_Option]] = []
    for index, raw in enumerate(backend.inputs):
        found = [o for spec in signature.inputs for o in _options(spec, [raw], _one(spec, samples), index)]
        if not found:
            raise _no_spec(raw, signature.inputs)
        per_raw.append(sorted(found, key=_Option.rank))
    complete = (
        choice
        for choice in itertools.islice(itertools.product(*per_raw), CANDIDATE_LIMIT * 64)
        if len({option.spec.name for option in choice}) == len(choice)
    )
    ranked = sorted(complete, key=lambda choice: tuple(map(sum, zip(*(o.rank() for o in choice), strict=True))))
    yield from ranked


def _options(spec: TensorSpec, tensors: Sequence[RawTensor], shape: tuple[int, ...], first_index: int = 0) -> list[_Option]:
    """The tensors, and orders of axes, that can hold a value of `shape`."""
    return [
        _Option(spec, raw, index, permute)
        for index, raw in enumerate(tensors, first_index)
        if _holds(raw, spec)
        for permute in _orders(shape, raw.shape, fixed_first=spec.has_batch)
    ]


def _holds(raw: RawTensor, spec: TensorSpec) -> bool:
    kind = np.dtype(spec.dtype).kind
    if kind == "f":
        return raw.dtype.kind == "f" or raw.quantization is not None
    if kind == "b":
        return raw.dtype.kind == "b"
    return raw.dtype.kind in "iu"


def _orders(shape: tuple[int, ...], raw: tuple[int | None, ...], *, fixed_first: bool) -> Iterator[tuple[int, ...] | None]:
    """The identity as `None`, then each other order of axes under which `shape` fits `raw`."""

    def fits(order: Sequence[int]) -> bool:
        return all(size is None or shape[axis] == size for axis, size in zip(order, raw, strict=True))

    if len(shape) != len(raw):
        fixed = [size for size in raw if size is not None]
        if [size for size in fixed if size > 1] == [size for size in shape if size > 1] and len(raw) - len(fixed) < 2:
            yield None
        return
    identity = tuple(range(len(shape)))
    if fits(identity):
        yield None
    movable = identity[1:] if fixed_first else identity
    if len(movable) > MAX_RANK - 1 or sum(size > 1 for size in shape) < 2:
        return
    seen = {_moved(identity, shape)}
    orders = sorted((identity[:1] if fixed_first else ()) + rest for rest in itertools.permutations(movable))
    for order in sorted(orders, key=_moves):
        # Orders that differ only in where axes of size 1 go are the same bytes: one of them is enough.
        if order != identity and fits(order) and (moved := _moved(order, shape)) not in seen:
            seen.add(moved)
            yield order


def _moved(order: Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in order if shape[axis] > 1)


def _moves(permute: Sequence[int]) -> int:
    """How many pairs of axes changed order: NCHW to NHWC moves 2, an exchange of height and width on top 1 more."""
    return sum(a > b for a, b in itertools.combinations(permute, 2))


def _one(spec: TensorSpec, values: Mapping[str, Array]) -> tuple[int, ...]:
    """The shape of one call's tensor."""
    sample = values[spec.name].shape[1:]
    return (1, *sample) if spec.has_batch else sample


def _run(backend: Backend, assignment: Sequence[_Option], samples: Mapping[str, Array], count: int) -> list[Array]:
    """The backend's raw outputs for the samples, dequantized: per output (n, *raw shape)."""
    calls = []
    for sample in range(count):
        feed = []
        for option in assignment:
            value = samples[option.spec.name][sample]
            value = value[None] if option.spec.has_batch else value
            if option.permute is not None:
                value = value.transpose(option.permute)
            if value.ndim != len(option.raw.shape):
                value = value.reshape([1 if size is None else size for size in option.raw.shape])
            feed.append(np.asarray(_to_raw(value, option.raw), order="C"))
        calls.append(backend.run(feed))
    return [_from_raw(np.stack(values), raw) for values, raw in zip(zip(*calls, strict=True), backend.outputs, strict=True)]


def _to_raw(value: Array, raw: RawTensor) -> Array:
    if raw.quantization is None or value.dtype.kind != "f":
        return value.astype(raw.dtype)
    limits = np.iinfo(raw.dtype)
    stored = np.round(value / raw.quantization.scale) + raw.quantization.zero_point
    return np.clip(stored, limits.min, limits.max).astype(raw.dtype)


def _from_raw(values: Array, raw: RawTensor) -> Array:
    if raw.quantization is None:
        return values.astype(np.float64)
    return (values.astype(np.float64) - raw.quantization.zero_point) * raw.quantization.scale


def _match_outputs(
    assignment: tuple[_Option, ...], options: Sequence[list[_Option]], got: Sequence[Array], truth: Mapping[str, Array]
) -> _Fit | None:
    """The one-to-one choice of outputs with the least total error (Hungarian method); `None` if there is none."""
    from scipy.optimize import linear_sum_assignment  # takes a second to import

    errors = np.full((len(options), len(got)), np.inf)
    ways: dict[tuple[int, int], _Option] = {}
    for row, candidates in enumerate(options):
        for option in sorted(candidates, key=_Option.rank):
            error = _error(option, got[option.index], truth[option.spec.name])
            if error < errors[row, option.index]:
                errors[row, option.index] = error
                ways[row, option.index] = option
    cost = np.where(np.isfinite(errors), errors, 1e9)
    for (row, column), option in ways.items():
        cost[row, column] += 1e-9 * option.rank()[0]  # names tell equal tensors apart
    rows, columns = linear_sum_assignment(cost)
    pairs = [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]
    if len(pairs) < len(options) or any(pair not in ways for pair in pairs):
        return None
    return _Fit(assignment, tuple(ways[pair] for pair in pairs), float(max(errors[pair] for pair in pairs)))


def _error(option: _Option, got: Array, truth: Array) -> float:
    """Rms error over std; finite even where values are not, so that the closest candidate can be named."""
    if option.permute is not None:
        back = np.argsort(option.permute)
        got = got.transpose(0, *(1 + back))
    want: Array = truth.astype(np.float64)
    if got.size != want.size:  # an axis that may have any size has another one
        return math.inf
    got = got.reshape(want.shape)
    if not np.isfinite(got).all():
        return 1e6
    error = float(np.sqrt(np.mean((got - want) ** 2)))
    unit = float(np.std(want)) or float(np.sqrt(np.mean(want**2))) or 1.0
    return min(error / unit, 1e6)


def _name_distance(spec: str, raw: str) -> int:
    """0: the same name. 1: the same but for what converters put around it. 2: one is part of the other. 3: unlike."""
    if spec == raw:
        return 0
    a, b = normal_name(spec), normal_name(raw)
    if a == b:
        return 1
    return 2 if a and b and (a in b or b in a) else 3


def normal_name(name: str) -> str:
    """`name` without what converters add: `serving_default_x:0` is `x`."""
    previous = None
    while name != previous:
        previous, name = name, _AFFIXES.sub("", name)
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")


def _no_tensor(kind: str, spec: TensorSpec, tensors: Sequence[RawTensor]) -> ParityError:
    return ParityError(
        f"{kind} {spec.name!r}: the artifact has no tensor for it",
        expected=f"{spec.dtype} {spec.shape}",
        got=_raw_names(tensors),
    )


def _no_spec(raw: RawTensor, specs: Sequence[TensorSpec]) -> ParityError:
    return ParityError(
        f"the artifact's input {raw.name!r} fits no input of the signature", expected=_names(specs), got=_raw_names([raw])
    )


def _not_proved(best: _Fit, tolerance: float, tried: int) -> ParityError:
    pairs = ", ".join(f"{o.spec.name!r} <- {o.raw.name!r}" for o in (*best.inputs, *best.outputs))
    return ParityError(
        f"no assignment of tensors gives the source's outputs ({tried} tried)",
        expected=f"rms error at most {tolerance:g} of the standard deviation",
        got=f"{best.error:.3g} for the closest, {pairs}" if math.isfinite(best.error) else pairs,
        hint="the conversion changed the model",
    )


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name!r} {spec.dtype} {spec.shape}" for spec in specs)


def _raw_names(tensors: Sequence[RawTensor]) -> str:
    return ", ".join(f"{raw.name!r} {raw.dtype} {raw.shape}" for raw in tensors)
