"""The interpreter as an engine: a packed Core ML model behind the device's own backend protocol."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version

import numpy as np
import torch

from edgeml.exporter.mil.flexible import Ends, input_ends
from edgeml.exporter.mil.interpreter import Interpreter
from edgeml.exporter.mil.package import MODEL, unpack_files
from edgeml.exporter.mil.program import Constant, Operation, TensorType, read_program
from edgeml.exporter.mil.schema import parse_model
from edgeml.runtime.backends import Array, Backend, EngineOptions, RawTensor
from edgeml.wire.errors import EngineError


class MilBackend:
    """A Core ML program that the interpreter runs; `emulated`, not what a device computes bit for bit."""

    engine = "mil-interpreter"

    def __init__(self, interpreter: Interpreter, ends: Mapping[str, Ends] = {}) -> None:
        self.version = version("edgeml-toolkit")
        self.interpreter = interpreter
        self._ends = ends
        self.inputs = raw_inputs(interpreter)
        self.outputs = tuple(_raw(name, kind) for name, kind in interpreter.outputs)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once, in the order of `inputs`.

        Raises:
            EngineError: an operation failed, named; or an input is larger or smaller than the model says.
        """
        for raw, value in zip(self.inputs, inputs, strict=True):
            for axis, (size, (least, most)) in enumerate(zip(value.shape, self._ends.get(raw.name, ()), strict=False)):
                if not least <= size <= most:
                    raise EngineError(f"Core ML input {raw.name!r}: axis {axis}", expected=f"{least} to {most}", got=str(size))
        named = {raw.name: value for raw, value in zip(self.inputs, inputs, strict=True)}
        return list(self.interpreter.run(named).values())

    def close(self) -> None:
        """Nothing to give back: memory goes with the object."""


def open_mil(model: bytes, options: EngineOptions) -> Backend:
    """Load a packed Core ML model. `options.threads` sets torch's thread count, which is the whole process's.

    Raises:
        ModelError: not a package, or a program that contradicts itself.
        UnsupportedError: an operation or data type the interpreter does not know, named.
    """
    torch.set_num_threads(options.threads)
    files = unpack_files(model)
    parsed = parse_model(files[MODEL])
    return MilBackend(Interpreter(read_program(parsed, files)), input_ends(parsed))


def load_interpreter(model: bytes) -> Interpreter:
    """The interpreter of a packed model, for those who watch its inner tensors."""
    files = unpack_files(model)
    return Interpreter(read_program(parse_model(files[MODEL]), files))


def raw_inputs(interpreter: Interpreter) -> tuple[RawTensor, ...]:
    return tuple(_raw(name, kind) for name, kind in interpreter.inputs)


def count_operations(model: bytes) -> dict[str, int]:
    """How often each operation stands in a packed model, constants left out."""
    return dict(sorted(Counter(op.type for op in _operations(model) if op.type != "const").items()))


def count_elements(model: bytes) -> dict[str, int]:
    """How many elements of each data type a packed model's constant tensors hold; single numbers and strings left out.

    Indices into a palette count as `palette4` and so on, by the size of the palette.
    """
    counts: Counter[str] = Counter()
    for op in _operations(model):
        if op.type == "constexpr_lut_to_dense":
            kind, number = _palette(op)
            counts[kind] += number
            continue
        for argument in (argument for arguments in op.inputs.values() for argument in arguments):
            if isinstance(argument, Constant) and not isinstance(argument.value, str) and argument.value.ndim:
                counts[argument.dtype] += argument.value.size
    return dict(sorted(counts.items()))


def _palette(op: Operation) -> tuple[str, int]:
    """(kind, elements) of indices: packed in bytes into a flat palette, or from iOS 18 on (*groups, palette, vector)."""
    given = {name: arguments[0].value for name, arguments in op.inputs.items() if isinstance(arguments[0], Constant)}
    lut, indices, shape = (given.get(name) for name in ("lut", "indices", "shape"))
    if not isinstance(lut, np.ndarray) or not isinstance(indices, np.ndarray):
        return "palette", 0
    size = lut.size if isinstance(shape, np.ndarray) else lut.shape[-2]
    return f"palette{math.ceil(math.log2(max(size, 2)))}", int(np.prod(shape)) if isinstance(
        shape, np.ndarray
    ) else indices.size


def _operations(model: bytes) -> Iterator[Operation]:
    files = unpack_files(model)
    blocks = [read_program(parse_model(files[MODEL]), files).body]
    while blocks:
        for op in blocks.pop().operations:
            blocks.extend(op.blocks)
            yield op


def _raw(name: str, kind: TensorType) -> RawTensor:
    return RawTensor(name, np.dtype(kind.dtype), kind.shape)
