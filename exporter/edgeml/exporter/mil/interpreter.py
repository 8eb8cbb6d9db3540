"""Runs an ML program with reference semantics on torch's CPU kernels.

Loading binds every operation once: names become slots of one list, constants become Python values, unknown operations are
refused. Running is a loop over prepared steps. float16 values are kept in float32 tensors and rounded to float16 after every
operation: what storage loses is lost, what an accumulator loses is the device's own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from edgeml.exporter.mil.ops import OPERATIONS
from edgeml.exporter.mil.program import (
    Argument,
    Block,
    Constant,
    ListType,
    Named,
    Operation,
    Program,
    Ref,
    StateType,
    TensorType,
)
from edgeml.exporter.mil.registry import Known, Parameter
from edgeml.exporter.mil.values import Cell
from edgeml.runtime.backends import Array
from edgeml.wire.errors import EngineError, ModelError, UnsupportedError

LOOP_LIMIT: Final = 1_000_000  # a loop longer than this is a broken condition, not a model
_TORCH: Final[Mapping[str, torch.dtype]] = {
    "bool": torch.bool, "float16": torch.float32, "float32": torch.float32, "float64": torch.float64,
    "int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64, "uint8": torch.uint8,
    "uint16": torch.int32, "uint32": torch.int64, "uint1": torch.uint8, "uint2": torch.uint8, "uint3": torch.uint8,
    "uint4": torch.uint8, "uint6": torch.uint8, "int4": torch.int8,
}  # fmt: skip
_FAILURES: Final = (RuntimeError, ValueError, IndexError, TypeError, KeyError, OverflowError)

Slots = list[Any]
Watch = Callable[[str, Tensor], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One bound operation: reads slots, writes slots."""

    operation: Operation
    call: Callable[[Slots], tuple[Any, ...]]
    results: tuple[tuple[int, Callable[[Any], Any]], ...]  # slot, and what brings a result to its declared type
    done_with: tuple[int, ...] = ()


@dataclass(slots=True)
class _Scope:
    """Names seen so far: slots of computed values and the values of constants."""

    slots: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    counter: list[int] = field(default_factory=lambda: [0])

    def inner(self) -> _Scope:
        return _Scope(dict(self.slots), dict(self.constants), self.counter)

    def define(self, name: str) -> int:
        self.counter[0] += 1
        self.constants.pop(name, None)
        self.slots[name] = self.counter[0] - 1
        return self.slots[name]


@dataclass(frozen=True, slots=True)
class _Part:
    """A bound block: where its inputs go, its steps, how its outputs are read."""

    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Callable[[Slots], Any], ...]

    def run(self, slots: Slots, values: Sequence[Any], watch: Watch | None = None) -> tuple[Any, ...]:
        for slot, value in zip(self.inputs, values, strict=True):
            slots[slot] = value
        for step in self.steps:
            _execute(step, slots, watch)
        return tuple(read(slots) for read in self.outputs)


class Interpreter:
    """A loaded program. `run` takes and gives arrays by name; states, if it has any, live here until `reset`.

    Raises:
        UnsupportedError: an operation, input or data type it does not know, named; when it is made, not when it runs.
        ModelError: the program contradicts itself.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        scope = _Scope()
        self._inputs = [(item, scope.define(item.name)) for item in program.inputs]
        self._states = {item.name: item.type.tensor for item in program.inputs if isinstance(item.type, StateType)}
        with torch.inference_mode():
            self._body = _bind_block(program.body, scope, program.outputs)
        self._size = scope.counter[0]
        self.inputs: tuple[tuple[str, TensorType], ...] = tuple(
            (item.name, item.type) for item in program.inputs if isinstance(item.type, TensorType)
        )
        self.outputs: tuple[tuple[str, TensorType], ...] = tuple((name, self._output_type(name)) for name in program.outputs)
        self.reset()

    def reset(self) -> None:
        """Sets every state to zeros, as a fresh state is on a device."""
        self._cells = {
            name: Cell(torch.zeros(_fixed(kind.shape), dtype=_torch(kind.dtype))) for name, kind in self._states.items()
        }

    def run(self, inputs: Mapping[str, Array], watch: Watch | None = None) -> dict[str, Array]:
        """One pass. `watch` is told every named tensor as it is computed.

        Raises:
            EngineError: an operation failed, named.
        """
        slots: Slots = [None] * self._size
        with torch.inference_mode():
            for item, slot in self._inputs:
                slots[slot] = self._cells[item.name] if isinstance(item.type, StateType) else _enter(inputs[item.name])
            values = self._body.run(slots, (), watch)
        return {name: _leave(value, kind) for (name, kind), value in zip(self.outputs, values, strict=True)}

    def _output_type(self, name: str) -> TensorType:
        named = [item for op in self._program.body.operations for item in op.outputs if item.name == name]
        named += [item for item in self._program.inputs if item.name == name]
        if not named or not isinstance(named[-1].type, TensorType):
            raise ModelError(f"output {name!r} of the Core ML program is not a tensor it computes")
        return named[-1].type


def _execute(step: Step, slots: Slots, watch: Watch | None) -> None:
    try:
        values = step.call(slots)
        for (slot, settle), value in zip(step.results, values, strict=True):
            slots[slot] = settle(value)
    except EngineError:
        raise
    except _FAILURES as error:
        raise EngineError(f"Core ML operation {step.operation.type!r} ({step.operation.name!r}) failed: {error}") from error
    if watch is not None:
        for named, (slot, _) in zip(step.operation.outputs, step.results, strict=True):
            if isinstance(slots[slot], Tensor):
                watch(named.name, slots[slot])
    for slot in step.done_with:
        slots[slot] = None


def _bind_block(block: Block, scope: _Scope, outputs: Sequence[str]) -> _Part:
    inputs = tuple(scope.define(item.name) for item in block.inputs)
    steps: list[Step] = []
    for op in block.operations:
        step = _bind(op, scope)
        if step is not None:
            steps.append(step)
    return _Part(inputs, tuple(steps), tuple(_reader(_resolve(Ref(name), scope)) for name in outputs))


def _bind(op: Operation, scope: _Scope) -> Step | None:
    """The step for `op`; `None` when it is a constant, which is then known to `scope`."""
    if op.type == "const":
        scope.constants[op.outputs[0].name] = _constant(_only(op, "val"))
        return None
    if op.type in ("while_loop", "cond"):
        return _bind_control(op, scope)
    known = OPERATIONS.get(op.type)
    if known is None:
        raise UnsupportedError(f"Core ML operation {op.type!r} ({op.name!r}) is not supported by the interpreter")
    fixed, moving = _arguments(op, known, scope)
    call = _caller(known, fixed, moving)
    settles = [_settler(item) for item in op.outputs]
    if known.folds:
        if moving:
            raise ModelError(f"Core ML operation {op.type!r} ({op.name!r}) takes only constants")
        for item, settle, value in zip(op.outputs, settles, call([]), strict=True):
            scope.constants[item.name] = settle(value)
        return None
    return Step(op, call, tuple((scope.define(item.name), settle) for item, settle in zip(op.outputs, settles, strict=True)))


Moving = dict[str, Callable[[Slots], Any]]


def _arguments(op: Operation, known: Known, scope: _Scope) -> tuple[dict[str, Any], Moving]:
    """Keyword arguments that never change, and readers of those that do."""
    fixed: dict[str, Any] = {}
    moving: Moving = {}
    for name, arguments in op.inputs.items():
        parameter = known.parameters.get(name)
        if parameter is None:
            raise UnsupportedError(f"input {name!r} of Core ML operation {op.type!r} ({op.name!r}) is not supported")
        values = [_resolve(argument, scope) for argument in arguments]
        if parameter.several:
            moving[name] = _several(values)
        elif len(values) != 1:
            raise ModelError(f"input {name!r} of {op.type!r} ({op.name!r})", expected="one value", got=str(len(values)))
        elif isinstance(values[0], _Slot):
            moving[name] = _single(values[0], parameter)
        else:
            fixed[name] = values[0] if parameter.read is None else parameter.read(values[0])
    missing = [name for name, parameter in known.parameters.items() if not parameter.optional and name not in op.inputs]
    if missing:
        raise ModelError(f"Core ML operation {op.type!r} ({op.name!r}) lacks its input {missing[0]!r}")
    return fixed, moving


@dataclass(frozen=True, slots=True)
class _Slot:
    index: int


def _resolve(argument: Argument, scope: _Scope) -> Any:
    """A slot, or the constant's value."""
    if isinstance(argument, Constant):
        return _constant(argument)
    if argument.name in scope.constants:
        return scope.constants[argument.name]
    if argument.name not in scope.slots:
        raise ModelError(f"Core ML program uses {argument.name!r} before it is computed")
    return _Slot(scope.slots[argument.name])


def _reader(value: Any) -> Callable[[Slots], Any]:
    if isinstance(value, _Slot):
        index = value.index
        return lambda slots: slots[index]
    return lambda _: value


def _single(slot: _Slot, parameter: Parameter) -> Callable[[Slots], Any]:
    index, read = slot.index, parameter.read
    if read is None:
        return lambda slots: slots[index]
    return lambda slots: read(slots[index])


def _several(values: Sequence[Any]) -> Callable[[Slots], tuple[Any, ...]]:
    readers = tuple(_reader(value) for value in values)
    return lambda slots: tuple(read(slots) for read in readers)


def _caller(known: Known, fixed: Mapping[str, Any], moving: Moving) -> Callable[[Slots], tuple[Any, ...]]:
    function = known.function
    readers = tuple(moving.items())

    def call(slots: Slots) -> tuple[Any, ...]:
        result = function(**fixed, **{name: read(slots) for name, read in readers})
        if isinstance(result, tuple):
            return result
        return () if result is None else (result,)

    return call


def _bind_control(op: Operation, scope: _Scope) -> Step:
    parts = tuple(_bind_block(block, scope.inner(), block.outputs) for block in op.blocks)
    if len(parts) != 2:
        raise ModelError(f"Core ML operation {op.type!r} ({op.name!r})", expected="two blocks", got=str(len(parts)))
    first, second = parts
    name = "pred" if op.type == "cond" else "loop_vars"
    start = _several([_resolve(argument, scope) for argument in op.inputs.get(name, ())])

    def choose(slots: Slots) -> tuple[Any, ...]:
        return (first if bool(start(slots)[0].item()) else second).run(slots, ())

    def repeat(slots: Slots) -> tuple[Any, ...]:
        values = start(slots)
        for _ in range(LOOP_LIMIT):
            if not bool(first.run(slots, values)[0].item()):
                return values
            values = second.run(slots, values)
        raise EngineError(f"Core ML loop {op.name!r} did not end within {LOOP_LIMIT} rounds")

    results = tuple((scope.define(item.name), _settler(item)) for item in op.outputs)
    return Step(op, choose if op.type == "cond" else repeat, results)


def _settler(item: Named) -> Callable[[Any], Any]:
    """What brings an operation's result to its declared type: dtype, float16 rounding, and a check of its shape."""
    kind = item.type
    if isinstance(kind, ListType):
        return lambda value: value
    tensor = kind.tensor if isinstance(kind, StateType) else kind
    want, rounds, shape = _torch(tensor.dtype), tensor.dtype == "float16", tensor.shape
    static = None if None in shape else _fixed(shape)

    def settle(value: Tensor) -> Tensor:
        if value.dtype is not want:
            value = value.to(want)
        if rounds:
            value = value.half().float()
        if static is None or value.shape == static:
            return value
        raise EngineError(f"{item.name!r} has the wrong shape", expected=str(static), got=str(tuple(value.shape)))

    return settle


def _constant(constant: Constant) -> Any:
    return constant.value if isinstance(constant.value, str) else _enter(constant.value)


def _only(op: Operation, name: str) -> Constant:
    arguments = op.inputs.get(name, ())
    if len(arguments) != 1 or not isinstance(arguments[0], Constant):
        raise ModelError(f"Core ML constant {op.name!r} has no value")
    return arguments[0]


def _torch(dtype: str) -> torch.dtype:
    if dtype not in _TORCH:
        raise UnsupportedError(f"Core ML data type {dtype!r} is not supported")
    return _TORCH[dtype]


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    if None in shape:
        raise UnsupportedError(f"a Core ML state of changing shape {shape} is not supported")
    return tuple(size for size in shape if size is not None)


def _enter(value: Array) -> Tensor:
    """A tensor of its own memory that holds the array's values."""
    tensor = torch.from_numpy(np.array(value, order="C"))
    if tensor.dtype in (torch.float16, torch.uint16, torch.uint32):
        return tensor.to({torch.float16: torch.float32, torch.uint16: torch.int32, torch.uint32: torch.int64}[tensor.dtype])
    return tensor


def _leave(value: Tensor, kind: TensorType) -> Array:
    return np.array(value.numpy(), dtype=kind.dtype, order="C")
