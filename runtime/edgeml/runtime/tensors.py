"""How a named tensor crosses between the signature and an engine: checked, laid out, quantized, all planned beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeml.runtime.backends import Array
from edgeml.wire.errors import EngineError, InputError, ModelError
from edgeml.wire.manifest import BATCH, Binding, Quantization, TensorSpec

Convert = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class InputPlan:
    """How one named input reaches the engine."""

    spec: TensorSpec
    dtype: np.dtype[Any]
    rank: int
    batched: bool
    sizes: tuple[tuple[int, int], ...]  # (axis, size) that are fixed
    names: tuple[tuple[int, str], ...]  # (axis, name) that must agree over all inputs
    bound: tuple[tuple[int, int], ...]  # (axis, size) of named axes that this model file has at one size
    convert: Convert | None

    def check(self, array: Array, given: Array, axes: dict[str, int]) -> None:
        """Hold an array with all its axes to the signature; `given` is what the caller handed in.

        `axes` collects the sizes of named axes.

        Raises:
            InputError: says expected and got.
        """
        shape = array.shape
        if len(shape) != self.rank:
            raise self.misfit(given)
        for axis, size in self.sizes:
            if shape[axis] != size:
                raise self.misfit(given)
        for axis, size in self.bound:
            if shape[axis] != size:
                raise InputError(
                    f"input {self.spec.name!r}: axis {self.spec.shape[axis]!r}",
                    expected=f"{size}, at which this artifact is fixed",
                    got=str(shape[axis]),
                    hint="give that size, or choose an artifact with free axes (ONNX)",
                )
        for axis, name in self.names:
            size = shape[axis]
            if size == 0:
                raise self.misfit(given)
            if axes.setdefault(name, size) != size:
                raise InputError(f"input {self.spec.name!r}: axis {name!r}", expected=f"{axes[name]}, as before", got=str(size))

    def misfit(self, array: object) -> InputError:
        """What is wrong with an array that does not fit."""
        spec = self.spec
        where, expected = f"input {spec.name!r}", f"{spec.dtype} {shape_text(spec.shape)}"
        if not isinstance(array, np.ndarray):
            way_out = f"wrap it in numpy.asarray(…, dtype=numpy.{spec.dtype})"
            return InputError(where, expected=f"a numpy array, {expected}", got=type(array).__name__, hint=way_out)
        hint: str | None = None
        if array.dtype != self.dtype:
            hint = f"convert it with .astype(numpy.{spec.dtype})"
        elif 0 in array.shape:
            hint = "give at least one sample"
        return InputError(where, expected=expected, got=f"{array.dtype} {shape_text(array.shape)}", hint=hint)


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """How one engine output becomes a named one."""

    spec: TensorSpec
    name: str
    index: int
    rank: int
    batched: bool
    sizes: tuple[tuple[int, int], ...]  # (axis, size) that are fixed
    convert: Convert | None

    def take(self, raw: Sequence[Array]) -> Array:
        """This output among the engine's.

        Raises:
            EngineError: its shape is not the signature's.
        """
        array = raw[self.index]
        if self.convert is not None:
            array = self.convert(array)
        shape = array.shape
        if len(shape) == self.rank:
            for axis, size in self.sizes:
                if shape[axis] != size:
                    break
            else:
                return array
        raise EngineError(f"shape of output {self.name!r}", expected=shape_text(self.spec.shape), got=shape_text(shape))


def shape_text(shape: Sequence[int | str]) -> str:
    """`(batch, 32, 32, 3)`."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def plan_input(spec: TensorSpec, binding: Binding) -> InputPlan:
    return InputPlan(
        spec=spec,
        dtype=np.dtype(spec.dtype),
        rank=len(spec.shape),
        batched=spec.has_batch,
        sizes=_sizes(spec),
        names=tuple((axis, size) for axis, size in enumerate(spec.shape) if isinstance(size, str)),
        bound=tuple(_bound(spec, binding)),
        convert=_chain(_input_steps(spec, binding)),
    )


def plan_output(spec: TensorSpec, binding: Binding) -> OutputPlan:
    convert = _chain(_output_steps(spec, binding))
    return OutputPlan(spec, spec.name, binding.index, len(spec.shape), spec.has_batch, _sizes(spec), convert)


def _bound(spec: TensorSpec, binding: Binding) -> Iterator[tuple[int, int]]:
    if len(binding.shape) != len(spec.shape):
        return
    for axis, name in enumerate(spec.shape):
        size = binding.shape[binding.permute.index(axis) if binding.permute is not None else axis]
        if isinstance(name, str) and name != BATCH and isinstance(size, int):
            yield axis, size


def _sizes(spec: TensorSpec) -> tuple[tuple[int, int], ...]:
    return tuple((axis, size) for axis, size in enumerate(spec.shape) if isinstance(size, int))


def _input_steps(spec: TensorSpec, binding: Binding) -> list[Convert]:
    """Signature tensor -> engine tensor: lay out, then quantize or convert."""
    steps: list[Convert] = []
    if len(binding.shape) != len(spec.shape):
        steps.append(_reshape(binding.shape, _count(spec)))
    if binding.permute is not None and binding.permute != tuple(range(len(binding.permute))):
        order = binding.permute
        steps.append(lambda array: np.ascontiguousarray(array.transpose(order)))
    if binding.dtype != spec.dtype:
        if binding.quantization is not None and spec.dtype.startswith("float"):
            steps.append(_quantize(spec.name, binding.quantization, np.dtype(binding.dtype)))
        else:
            steps.append(_cast(spec.name, np.dtype(spec.dtype), np.dtype(binding.dtype)))
    return steps


def _output_steps(spec: TensorSpec, binding: Binding) -> list[Convert]:
    """Engine tensor -> signature tensor: dequantize or convert, then lay out."""
    steps: list[Convert] = []
    if binding.dtype != spec.dtype:
        if binding.quantization is not None and spec.dtype.startswith("float"):
            steps.append(_dequantize(binding.quantization, np.dtype(spec.dtype)))
        else:
            steps.append(_cast(spec.name, np.dtype(binding.dtype), np.dtype(spec.dtype)))
    if binding.permute is not None and binding.permute != tuple(range(len(binding.permute))):
        back = tuple(int(axis) for axis in np.argsort(binding.permute))
        steps.append(lambda array: np.ascontiguousarray(array.transpose(back)))
    if len(binding.shape) != len(spec.shape):
        steps.append(_reshape(spec.shape, _count(spec)))
    return steps


def _chain(steps: list[Convert]) -> Convert | None:
    if len(steps) < 2:
        return steps[0] if steps else None

    def run(array: Array) -> Array:
        for step in steps:
            array = step(array)
        return array

    return run


def _count(spec: TensorSpec) -> int | None:
    """Elements of one sample, where every axis but the batch is fixed."""
    sizes = [axis for axis in spec.shape if axis != BATCH]
    fixed = [axis for axis in sizes if isinstance(axis, int)]
    return math.prod(fixed) if len(fixed) == len(sizes) else None


def _reshape(shape: tuple[int | str, ...], count: int | None) -> Convert:
    """Add or drop axes of size 1; a single open axis takes what is left."""
    sizes = [axis if isinstance(axis, int) else -1 for axis in shape]
    if sizes.count(-1) > 1 or count is None:
        raise ModelError("a binding changes the rank of a tensor with several open axes")

    def reshape(array: Array) -> Array:
        try:
            return array.reshape(sizes)
        except ValueError:
            raise ModelError(
                "a binding changes the shape of a tensor", expected=shape_text(shape), got=shape_text(array.shape)
            ) from None

    return reshape


def _quantize(name: str, quantization: Quantization, dtype: np.dtype[Any]) -> Convert:
    """round(x / scale) + zero_point, saturating; halves to even."""
    limits = np.iinfo(dtype)
    least, most = limits.min, limits.max
    exact = np.float64 if dtype.itemsize >= 4 else np.float32  # a float32 does not hold every 32-bit integer
    scale, zero_point = exact(quantization.scale), exact(quantization.zero_point)

    def quantize(array: Array) -> Array:
        try:
            with np.errstate(invalid="raise", over="ignore"):
                stored = np.rint(array / scale)
                stored += zero_point
                np.clip(stored, least, most, out=stored)
                return stored.astype(dtype)
        except FloatingPointError:
            raise InputError(f"input {name!r} holds NaN", expected="finite values", got="NaN") from None

    return quantize


def _dequantize(quantization: Quantization, dtype: np.dtype[Any]) -> Convert:
    """Real value = scale * (stored - zero_point), computed in float32 or wider."""
    exact: Any = np.float64 if dtype == np.float64 else np.float32
    scale, zero_point = exact(quantization.scale), exact(quantization.zero_point)

    def dequantize(array: Array) -> Array:
        real: Array = array.astype(exact)
        if zero_point:
            real -= zero_point
        real *= scale
        return real

    if dtype != np.float16:
        return dequantize

    def narrow(array: Array) -> Array:
        with np.errstate(over="ignore"):  # infinity is for the self-test to find
            return dequantize(array).astype(dtype)

    return narrow


def _cast(name: str, source: np.dtype[Any], target: np.dtype[Any]) -> Convert:
    if source.kind in "iu" and target.kind in "iu" and not np.can_cast(source, target):
        limits = np.iinfo(target)

        def narrow(array: Array) -> Array:
            if array.size and (array.min() < limits.min or array.max() > limits.max):
                raise InputError(f"input {name!r}", expected=f"values that fit {target}", got=f"{array.min()} to {array.max()}")
            return array.astype(target)

        return narrow
    return lambda array: array.astype(target)
