"""Calibration and evaluation samples from an `.npz` file.

    np.savez("eval.npz", x=images, y=classes)        # one input
    np.savez("eval.npz", audio=a, state=s, y=classes)  # one array per input name

The first axis of every array counts samples; a sample is what one call is fed, with or without a leading batch axis of 1.
Labels stand in `y`; arrays of other names are left unread. What a value may become on its way to the model's input:

- integers stay integers, and must fit: `int64` tokens feed an `int32` input, 300 does not feed `uint8`;
- a float input takes any float, and integers that it holds exactly (`uint8` pictures feed a `float32` input as 0.0 … 255.0,
  *not* scaled to 0 … 1);
- floats never become integers.

The file is hostile until proved otherwise: nothing is unpickled, and no memory is taken on a header's word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.npz import LIMIT_BYTES, read_npz
from edgeml.wire.errors import InputError, PlanError
from edgeml.wire.manifest import BATCH, DataSet, Signature, TensorSpec

LABELS: Final = "y"
SINGLE_INPUT: Final = "x"


@dataclass(frozen=True, slots=True)
class Samples:
    """`n` samples: `inputs[name]` is (n, *sample shape) in the input's dtype, without a batch axis of 1.

    `labels` is int64 (n,) for classes, float64 (n, ...) for targets, `None` if the file has none.
    """

    inputs: dict[str, Array]
    labels: Array | None
    sha256: str
    steps: int = 1

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def feeds(self, signature: Signature) -> Iterator[dict[str, Array]]:
        """What one call is fed, sample after sample: the batch axis of 1 is put back where the signature has one."""
        for index in range(len(self)):
            yield {
                spec.name: self.inputs[spec.name][index : index + 1]
                if spec.has_batch
                else np.asarray(self.inputs[spec.name][index])
                for spec in signature.inputs
            }

    def take(self, indices: Sequence[int]) -> Samples:
        """The samples at `indices`, in that order."""
        at = np.asarray(indices, dtype=np.int64)
        return make_samples(
            {name: values[at] for name, values in self.inputs.items()}, None if self.labels is None else self.labels[at]
        )

    def overlap(self, other: Samples) -> int:
        """How many samples of this set the other one holds too, by content; labels do not count."""
        theirs = set(other._hashes())
        return sum(digest in theirs for digest in self._hashes())

    def distinct(self) -> int:
        """How many samples differ from each other, by content; labels do not count."""
        return len(set(self._hashes()))

    def describe(self, other: Samples | None = None) -> DataSet:
        """This set as a manifest names it, with its overlap with `other`."""
        return DataSet(count=len(self), sha256=self.sha256, overlap=self.overlap(other) if other is not None else 0)

    def _hashes(self) -> Iterator[bytes]:
        names = sorted(self.inputs)
        for index in range(len(self)):
            digest = hashlib.sha256()
            for name in names:
                _hash_array(digest, name, self.inputs[name][index])
            yield digest.digest()


def make_samples(inputs: Mapping[str, Array], labels: Array | None = None, *, steps: int = 1) -> Samples:
    """Samples from arrays that are already as the signature wants them, `steps` of them a sequence."""
    digest = hashlib.sha256()
    for name in sorted(inputs):
        _hash_array(digest, name, inputs[name])
    if labels is not None:
        _hash_array(digest, LABELS, labels)
    return Samples(dict(inputs), labels, digest.hexdigest(), steps)


def load_samples(
    path: Path | str,
    signature: Signature,
    *,
    allow_nan: bool = False,
    any_labels: bool = False,
    limit_bytes: int = LIMIT_BYTES,
) -> Samples:
    """Read samples for a model.

    Args:
        path: the `.npz` file.
        signature: whose inputs are fed.
        allow_nan: NaN marks a missing value (scikit-learn pipelines with an imputer); infinities never pass.
        any_labels: integer labels may have any shape (n, ...), for a metric of the user's own.
        limit_bytes: what the arrays that are read may take together.

    Raises:
        PlanError: not an `.npz`, damaged, hostile, or not what the signature's inputs take.
    """
    path = Path(path)
    keys = {spec.name: [spec.name] for spec in signature.inputs}
    if len(signature.inputs) == 1:
        keys[signature.inputs[0].name].append(SINGLE_INPUT)
    wanted = {key for options in keys.values() for key in options} | {LABELS}
    try:
        arrays = read_npz(path, wanted, limit_bytes=limit_bytes)
    except InputError as error:
        raise PlanError(error.what, expected=error.expected, got=error.got, hint=error.hint) from error
    inputs = {}
    for spec in signature.inputs:
        key = next((key for key in keys[spec.name] if key in arrays.found), None)
        if key is None:
            raise PlanError(
                f"{path.name}: no array for input {spec.name!r}",
                expected=" or ".join(map(repr, dict.fromkeys(keys[spec.name]))),
                got=", ".join(map(repr, arrays.names)) or "no arrays",
                hint="name one array after each input",
            )
        inputs[spec.name] = _fit(arrays.found[key], spec, f"{path.name}: {key!r}", allow_nan=allow_nan)
    counts = {name: len(values) for name, values in inputs.items()}
    if len(set(counts.values())) > 1:
        raise PlanError(f"{path.name}: inputs have different numbers of samples", got=str(counts), hint="first axis = samples")
    labels = arrays.found.get(LABELS) if all(spec.name != LABELS for spec in signature.inputs) else None
    return make_samples(inputs, _fit_labels(labels, next(iter(counts.values())), path.name, any_shape=any_labels))


def _fit(values: Array, spec: TensorSpec, what: str, *, allow_nan: bool) -> Array:
    """`values` as (n, *sample shape) of the input's dtype."""
    if values.ndim == 0 or len(values) == 0:
        raise PlanError(f"{what} holds no samples", expected=_shape_text(spec), got=str(values.shape))
    sample = spec.shape[1:] if spec.has_batch else spec.shape
    if spec.has_batch and values.ndim == len(sample) + 2 and values.shape[1] == 1:
        values = values[:, 0]
    if not _matches(values.shape[1:], sample):
        raise PlanError(
            f"{what} does not fit input {spec.name!r}",
            expected=_shape_text(spec),
            got=str(values.shape),
            hint=_shape_hint(values.shape, sample),
        )
    return np.ascontiguousarray(_cast(values, np.dtype(spec.dtype), what, spec.name, allow_nan=allow_nan))


def _matches(shape: tuple[int, ...], sample: tuple[int | str, ...]) -> bool:
    def fits(got: int, want: int | str) -> bool:
        return got == (1 if want == BATCH else want) if isinstance(want, int) or want == BATCH else got > 0

    return len(shape) == len(sample) and all(map(fits, shape, sample))


def _shape_text(spec: TensorSpec) -> str:
    sample = spec.shape[1:] if spec.has_batch else spec.shape
    return f"{spec.dtype} ({', '.join(['samples', *map(str, sample)])})"


def _shape_hint(shape: tuple[int, ...], sample: tuple[int | str, ...]) -> str:
    if _matches(shape, sample) or _matches(shape[1:], sample[1:]):
        return "add a first axis that counts samples"
    if len(shape) == len(sample) and sample[-1:] == (1,) and _matches(shape[1:], sample[:-1]):
        return "add a last axis of 1: values[..., None]"
    if sorted(map(str, shape[1:])) == sorted(map(str, sample)):
        return "same axes in another order: transpose them"
    return "give each sample the shape that the model is called with"


def _cast(values: Array, to: np.dtype[Any], what: str, name: str, *, allow_nan: bool) -> Array:
    if values.dtype.kind == "f":
        _refuse_non_finite(values, what, allow_nan=allow_nan)
    if values.dtype == to:
        return values
    refusal = {"expected": str(to), "got": str(values.dtype)}
    if values.dtype.kind == "f" and to.kind != "f":
        raise PlanError(f"{what} does not fit input {name!r}", **refusal, hint=f"round it yourself: .astype({str(to)!r})")
    if to.kind == "b":
        raise PlanError(f"{what} does not fit input {name!r}", **refusal, hint="compare it: values != 0")
    # A float64 is allowed to lose digits, as every caller's float32 does; an integer is not allowed to change.
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(to)
        changed = np.isinf(cast) if values.dtype.kind == "f" else cast.astype(values.dtype) != values
    if to.kind in "iu" and values.dtype.kind in "iu":
        limits = np.iinfo(to)
        changed = (values < limits.min) | (values > limits.max)
    if changed.any():
        at = tuple(int(axis) for axis in np.argwhere(changed)[0])
        raise PlanError(
            f"{what} at {at} does not fit input {name!r}",
            expected=f"a value that {to} holds",
            got=str(values[at]),
            hint=f"bring it into {to} first",
        )
    return cast


def _refuse_non_finite(values: Array, what: str, *, allow_nan: bool) -> None:
    bad = np.isinf(values) if allow_nan else ~np.isfinite(values)
    if bad.any():
        at = tuple(int(axis) for axis in np.argwhere(bad)[0])
        raise PlanError(f"{what} sample {at[0]}", expected="finite numbers", got=f"{values[at]} at {at}", hint="clean the data")


def _fit_labels(labels: Array | None, count: int, what: str, *, any_shape: bool) -> Array | None:
    """Class numbers as int64 (n,), targets as float64 (n, ...)."""
    if labels is None:
        return None
    if labels.ndim == 0 or len(labels) != count:
        raise PlanError(f"{what}: {LABELS!r}", expected=f"{count} labels", got=str(labels.shape), hint="one label per sample")
    if labels.dtype.kind == "f":
        _refuse_non_finite(labels, f"{what}: {LABELS!r}", allow_nan=False)
        return labels.astype(np.float64)
    if labels.ndim > 1 and labels.size != count and not any_shape:
        raise PlanError(
            f"{what}: {LABELS!r}", expected=f"class numbers ({count},)", got=str(labels.shape), hint="one-hot? y.argmax(axis=1)"
        )
    if labels.size and not -(2**62) < int(labels.min()) <= int(labels.max()) < 2**62:
        raise PlanError(f"{what}: {LABELS!r}", expected="class numbers", got=f"{int(labels.max())}")
    return (labels if any_shape else labels.reshape(count)).astype(np.int64)


def _hash_array(digest: Any, name: str, values: Array) -> None:  # hashlib's type has no public name
    """Name, dtype, shape, then the little-endian row-major bytes; lengths first, so that no two arrays share a text."""
    header = f"{len(name)}:{name}:{values.dtype.newbyteorder('<').str}:{values.shape}:"
    digest.update(header.encode())
    digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
