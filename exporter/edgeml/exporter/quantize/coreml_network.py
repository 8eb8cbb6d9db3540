"""The layers of a packed Core ML model, and its weights and biases as arrays that can be replaced.

Replaced constants are told to whoever writes the model next, by name: nothing in the package itself is touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from edgeml.exporter.calibrate.coreml import watch_coreml
from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.calibrate.statistics import Pass
from edgeml.exporter.mil.ops.padding import explicit_pads
from edgeml.exporter.mil.package import MODEL, unpack_files
from edgeml.exporter.mil.program import Constant, Operation, Ref, TensorType, read_program
from edgeml.exporter.mil.schema import parse_model
from edgeml.exporter.quantize.layers import Floats, Layer
from edgeml.runtime.backends import Array


class CoremlNetwork:
    """`model` is the packed float32 model; `replaced` holds the constants that were written.

    `see` is told the tensors of every sample that is watched, so that one run over the samples serves all who look.
    """

    def __init__(self, model: bytes, see: Callable[[Mapping[str, Array]], None] | None = None) -> None:
        self.model, self.replaced, self._see = model, dict[str, Array](), see
        files = unpack_files(model)
        program = read_program(parse_model(files[MODEL]), files)
        operations = program.body.operations
        values = {
            op.outputs[0].name: op.inputs["val"][0].value
            for op in operations
            if op.type == "const" and isinstance(op.inputs["val"][0], Constant)
        }
        self._constants = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        shapes = {
            item.name: item.type.shape
            for item in (*program.inputs, *(item for op in operations for item in op.outputs))
            if isinstance(item.type, TensorType)
        }
        reads = [
            argument.name
            for op in operations
            for given in op.inputs.values()
            for argument in given
            if isinstance(argument, Ref)
        ]
        self.layers = tuple(
            layer for op in operations if (layer := _layer(op, values, shapes)) and reads.count(layer.weights) == 1
        )

    def copy(self) -> Self:
        other = copy.copy(self)
        other.replaced = dict(self.replaced)
        return other

    def read(self, layer: Layer) -> Floats:
        return self._now(layer.weights)

    def write(self, layer: Layer, weights: Floats) -> None:
        self.replaced[layer.weights] = weights.astype(np.float32)

    def read_bias(self, layer: Layer) -> Floats:
        return np.zeros(len(self.read(layer))) if layer.bias is None else self._now(layer.bias)

    def write_bias(self, layer: Layer, bias: Floats) -> None:
        if layer.bias is not None:
            self.replaced[layer.bias] = bias.astype(np.float32)

    def watch(self, feeds: Feeds) -> Pass:
        run, see = watch_coreml(self.model, feeds), self._see
        if see is None:
            return run

        def seen() -> Iterator[Mapping[str, Array]]:
            for tensors in run():
                see(tensors)
                yield tensors

        return seen

    def arrange(self, layer: Layer, tensor: str, values: Array) -> Array:  # noqa: ARG002 - Core ML has the common order
        return values

    def by_layer(self) -> dict[str, dict[str, Array]]:
        """Layer, by what it gives -> its constants that were written."""
        return {
            layer.output: {name: self.replaced[name] for name in (layer.weights, layer.bias) if name in self.replaced}
            for layer in self.layers
        }

    def _now(self, name: str) -> Floats:
        found: Floats = self.replaced.get(name, self._constants[name]).astype(np.float64)
        return found


def replace_constants(program: Any, values: Mapping[str, Array]) -> None:
    """Give constants of a coremltools program other values, by name."""
    from coremltools.converters.mil.mil import Builder

    for block in program.functions.values():
        for op in list(block.operations):
            if op.op_type != "const" or op.outputs[0].name not in values:
                continue
            with block:
                new = Builder.const(val=values[op.outputs[0].name], before_op=op, name=f"{op.name}_rounded")
            block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=new)
            block.remove_ops([op])


def _layer(op: Operation, values: Mapping[str, Any], shapes: Mapping[str, tuple[int | None, ...]]) -> Layer | None:
    """A convolution or dense layer whose weights are a constant."""
    if op.type not in {"conv", "linear"}:
        return None
    given = dict(_names(op))
    weights, source = values.get(given.get("weight", "")), given.get("x", "")
    if not isinstance(weights, np.ndarray) or weights.dtype != np.float32 or source not in shapes:
        return None
    bias = given["bias"] if isinstance(values.get(given.get("bias", "")), np.ndarray) else None
    output = op.outputs[0].name
    names = (given["weight"], bias, source, output, output, int(weights.shape[1]))
    if op.type == "linear":
        return Layer(*names)
    space = shapes[source][2:]
    if any(size is None for size in space):
        return None
    kernel = tuple(int(size) for size in weights.shape[2:])

    def ints(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = values.get(given.get(name, ""))
        return tuple(int(one) for one in np.atleast_1d(value)) if isinstance(value, np.ndarray) else default

    ones = (1,) * len(kernel)
    strides, dilations, groups = ints("strides", ones), ints("dilations", ones), ints("groups", (1,))[0]
    kind = values.get(given.get("pad_type", ""), "valid")
    sizes = tuple(size for size in space if size is not None)
    pads = tuple(explicit_pads(str(kind), ints("pad", ()), sizes, kernel, strides, dilations))
    return Layer(*names, kernel=kernel, strides=strides, dilations=dilations, pads=pads, groups=groups)


def _names(op: Operation) -> Iterator[tuple[str, str]]:
    for name, arguments in op.inputs.items():
        if len(arguments) == 1 and isinstance(arguments[0], Ref):
            yield name, arguments[0].name
