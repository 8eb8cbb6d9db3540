"""TFLite with free axes: the model is converted at two sizes of an axis, and what differs between both files follows it.

A converter that is told of a free axis computes shapes as the model runs, which delegates do not take, or fails: litert-torch
does for most models. A file for one size is only that in a few constants: the shape that a RESHAPE gives, the end of a slice.
Those are left open here (-1); the rest the interpreter works out when its inputs are resized. What cannot be left open is
refused by name, and what was is proved by running the artifact at another size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from edgeml.exporter.source.model import SourceRef
from edgeml.exporter.source.tflite_graphs import pack_model, parse_model, schema
from edgeml.runtime.backends import Array
from edgeml.wire.errors import UnsupportedError
from edgeml.wire.manifest import BATCH

Convert = Callable[[SourceRef, int], bytes]
"""The TFLite of a source with named axes as its `sizes` say, for so many samples a call."""

TWO, THREE = 2, 3  # samples: an axis of 1 may be dropped by the converter


def with_free_axes(ref: SourceRef, convert: Convert) -> bytes:
    """The TFLite of `ref` with its `free` axes open, sized for one sample and the samples' sizes unless it is resized.

    Raises:
        UnsupportedError: an operator is made for one size.
    """
    free = [axis.name for axis in ref.free]
    if not free:
        return convert(ref, 1)
    stacked = TWO if BATCH in free else 1
    small = convert(ref, stacked)
    model = parse_model(small)
    for name in free:
        if name == BATCH:
            large = convert(ref, THREE)
        else:
            sizes = tuple((axis, 2 * size if axis == name else size) for axis, size in ref.sizes)
            large = convert(msgspec.structs.replace(ref, sizes=sizes), stacked)
        _Opening(model, parse_model(small), parse_model(large), name).run()
    return pack_model(model)


@dataclass(frozen=True, slots=True)
class _Opening:
    """One axis of `model`: `small` and `large` are what it came from at two sizes."""

    model: Any
    small: Any
    large: Any
    axis: str

    def run(self) -> None:
        graphs = (self.model.subgraphs, self.small.subgraphs, self.large.subgraphs)
        if len({len(each) for each in graphs}) > 1:
            raise self.other_graph()
        for model, small, large in zip(*graphs, strict=True):
            if len(small.tensors) != len(large.tensors) or len(small.operators) != len(large.operators):
                raise self.other_graph()
            _Graph(self, model, small, large).run()

    def stuck(self, named: str) -> UnsupportedError:
        return UnsupportedError(
            f"TFLite operator {named} is made for one size of axis {self.axis!r}", hint=f"leave {self.axis!r} out of --free"
        )

    def other_graph(self) -> UnsupportedError:
        return UnsupportedError(
            f"TFLite's converter makes other operators for each size of axis {self.axis!r}",
            hint=f"leave {self.axis!r} out of --free",
        )


@dataclass(frozen=True, slots=True)
class _Graph:
    """One graph of the three files."""

    file: _Opening
    model: Any
    small: Any
    large: Any

    def run(self) -> None:
        following = frozenset(self._following())
        for index in range(len(self.small.operators)):
            self._operator(index, following)
        for tensors in zip(self.model.tensors, self.small.tensors, self.large.tensors, strict=True):
            self._tensor(*tensors)

    def _following(self) -> Iterator[int]:
        """Tensors whose values stand in the file and follow the axis."""
        for index, (one, other) in enumerate(zip(self.small.tensors, self.large.tensors, strict=True)):
            here, there = self.file.small.buffers[one.buffer].data, self.file.large.buffers[other.buffer].data
            if (here is None) != (there is None):
                raise self.file.other_graph()
            if here is not None and not np.array_equal(here, there):
                yield index

    def _operator(self, index: int, following: frozenset[int]) -> None:
        one, other = self.small.operators[index], self.large.operators[index]
        kind = _kind(self.file.small, one)
        if kind != _kind(self.file.large, other) or _wires(one) != _wires(other):
            raise self.file.other_graph()
        named = f"{kind} ({self.small.tensors[one.outputs[0]].name.decode()!r})"
        shaped = kind == "RESHAPE" and len(one.inputs) > 1  # its options say the shape once more
        if not shaped and _options(one) != _options(other):
            raise self.file.stuck(named)
        for place, tensor in enumerate(one.inputs):
            if tensor not in following:
                continue
            here = _values(self.file.small, self.small.tensors[tensor])
            there = _values(self.file.large, self.large.tensors[tensor])
            options = self.model.operators[index]
            if shaped and place == 1:
                self._leave_open(tensor, here, there, named)
                options.builtinOptions, options.builtinOptionsType = None, 0
            elif kind == "SLICE" and place == 2 and self._reaches_end(one, here):
                self._leave_open(tensor, here, there, named)
            elif kind == "STRIDED_SLICE" and place == 2:
                options.builtinOptions.endMask |= self._ends(one, here, there, named)
            else:
                raise self.file.stuck(named)

    def _leave_open(self, tensor: int, here: Array, there: Array, named: str) -> None:
        """Put -1 where a shape follows the axis: RESHAPE takes what is left, SLICE all to the end."""
        known = _values(self.file.model, self.model.tensors[tensor]).copy()
        places = np.flatnonzero(here != there)
        if len(places) > 1 or (known == -1).sum() > (known[places[0]] == -1):
            raise self.file.stuck(named)
        known[places[0]] = -1
        buffer = schema().BufferT()
        buffer.data = np.frombuffer(known.tobytes(), np.uint8)
        self.file.model.buffers.append(buffer)  # of its own: equal constants share one
        self.model.tensors[tensor].buffer = len(self.file.model.buffers) - 1

    def _reaches_end(self, slicing: Any, sizes: Array) -> bool:
        begin = _values(self.file.small, self.small.tensors[slicing.inputs[1]])
        return bool((begin + sizes == _shape(self.small.tensors[slicing.inputs[0]])).any())

    def _ends(self, slicing: Any, here: Array, there: Array, named: str) -> int:
        """Bits of the axes that are read to their end."""
        shape, mask = _shape(self.small.tensors[slicing.inputs[0]]), 0
        for place in np.flatnonzero(here != there):
            if here[place] != shape[place]:
                raise self.file.stuck(named)
            mask |= 1 << int(place)
        return mask

    def _tensor(self, model: Any, small: Any, large: Any) -> None:
        here, there = _shape(small), _shape(large)
        if len(here) != len(there):
            raise self.file.other_graph()
        if np.array_equal(here, there) or self.file.small.buffers[small.buffer].data is not None:
            return
        signature = np.array(_shape(model) if model.shapeSignature is None else model.shapeSignature, np.int32)
        signature[here != there] = -1
        model.shapeSignature = signature
        if self.file.axis == BATCH:
            model.shape = 2 * here - there  # at one sample, a step below two


def _kind(model: Any, operator: Any) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    return _kinds().get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")


@functools.cache
def _kinds() -> Mapping[int, str]:
    return {number: name for name, number in vars(schema().BuiltinOperator).items() if isinstance(number, int)}


def _wires(operator: Any) -> tuple[list[int], list[int]]:
    return list(operator.inputs), list(operator.outputs)


def _options(operator: Any) -> list[tuple[str, str]]:
    found = []
    for options in (operator.builtinOptions, operator.builtinOptions2):
        if options is not None:
            found += [(name, str(value)) for name, value in vars(options).items()]
    return found


def _values(model: Any, tensor: Any) -> Array:
    data = model.buffers[tensor.buffer].data
    wide = tensor.type == schema().TensorType.INT64
    return np.zeros(0, np.int32) if data is None else np.frombuffer(bytes(data), np.int64 if wide else np.int32)


def _shape(tensor: Any) -> Array:
    return np.zeros(0, np.int32) if tensor.shape is None else np.asarray(tensor.shape, np.int32)
