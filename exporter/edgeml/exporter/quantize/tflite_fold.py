"""A TFLite graph made ready for int8, as `fold` does it for ONNX: arithmetic by channel inside the layers, no idle transposes.

Converters from torch leave a one-dimensional convolution's batch normalization behind two moves, as a multiplication and an
addition that would be rounded by themselves, and let layers share one bias of zeros, which then cannot be corrected.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeml.exporter.source.tflite_graphs import pack_model, parse_model, schema
from edgeml.runtime.backends import Array

LAYERS: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
MOVES: Final = ("RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS")
ARITHMETIC: Final = ("ADD", "SUB", "MUL", "DIV")
MOST_VALUES: Final = 1 << 24  # of a tensor that is traced through moves

Numbers = NDArray[np.int64]


def ready_tflite(model: bytes) -> bytes:
    """The file with everything folded; the very bytes if there is nothing to fold."""
    graph = _Graph(parse_model(model))
    changed = graph.separate_biases()
    while graph.join_one_elu() or graph.fold_one() or graph.drop_one_idle_move():
        changed = True
    if not changed:
        return bytes(model)
    graph.drop_unused()
    return pack_model(graph.parsed)


@dataclass(slots=True)
class _Chain:
    """A tensor's way through operators that only move values, each read by nothing else."""

    start: int
    moves: list[Any] = field(default_factory=list)

    @property
    def end(self) -> int:
        return int(self.moves[-1].outputs[0]) if self.moves else self.start


class _Graph:
    """The main graph of a parsed model, changed in place."""

    def __init__(self, parsed: Any) -> None:
        names = schema()
        self.parsed, self.graph = parsed, parsed.subgraphs[0]
        self.kinds = {value: name for name, value in vars(names.BuiltinOperator).items() if isinstance(value, int)}
        self.float32, self.plain = names.TensorType.FLOAT32, names.ActivationFunctionType.NONE

    def kind(self, operator: Any) -> str:
        code = self.parsed.operatorCodes[operator.opcodeIndex]
        kind: str = self.kinds.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")
        return kind

    def shape(self, index: int) -> tuple[int, ...]:
        found = self.graph.tensors[index].shape
        return () if found is None else tuple(map(int, found))

    def constant(self, index: int) -> Array | None:
        """A float32 constant's values."""
        tensor = self.graph.tensors[index]
        data = self.parsed.buffers[tensor.buffer].data
        if tensor.type != self.float32 or data is None or not len(data):
            return None
        return np.frombuffer(bytes(data), np.float32).reshape(self.shape(index))

    def store(self, index: int, values: Array) -> None:
        stored = np.ascontiguousarray(values, np.float32)
        self.parsed.buffers[self.graph.tensors[index].buffer].data = np.frombuffer(stored.tobytes(), np.uint8)

    def readers(self) -> dict[int, list[Any]]:
        """Tensor -> operators that read it; an output of the graph is read by `None`."""
        found: dict[int, list[Any]] = {}
        for operator in self.graph.operators:
            for index in operator.inputs:
                found.setdefault(int(index), []).append(operator)
        for index in self.graph.outputs:
            found.setdefault(int(index), []).append(None)
        return found

    def uses(self) -> Counter[int]:
        """Buffer -> how often operators of the whole file read it."""
        return Counter(
            int(graph.tensors[index].buffer)
            for graph in self.parsed.subgraphs
            for operator in graph.operators
            for index in operator.inputs
            if index >= 0
        )

    def separate_biases(self) -> bool:
        """Give each layer that has weights of its own a bias of its own, too."""
        uses, changed = self.uses(), False
        for operator in self.graph.operators:
            if self.kind(operator) not in LAYERS or len(operator.inputs) < 3 or operator.inputs[2] < 0:
                continue
            weights, bias = int(operator.inputs[1]), int(operator.inputs[2])
            values = self.constant(bias)
            if self.constant(weights) is None or values is None:
                continue
            own = self.graph.tensors[bias].buffer
            if uses[self.graph.tensors[weights].buffer] == 1 and uses[own] > 1:
                operator.inputs = np.array([*operator.inputs[:2], self.add(values, bias)], np.int32)
                uses[own] -= 1
                changed = True
        return changed

    def add(self, values: Array, like: int) -> int:
        """A new constant beside `like`; gives its position."""
        names = schema()
        buffer, tensor = names.BufferT(), names.TensorT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.parsed.buffers.append(buffer)
        kind = names.TensorType.FLOAT32 if values.dtype == np.float32 else names.TensorType.INT32
        tensor.shape, tensor.type, tensor.buffer = np.array(values.shape, np.int32), kind, len(self.parsed.buffers) - 1
        tensor.name = self.graph.tensors[like].name + f"/{len(self.graph.tensors)}".encode()
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def chain(self, start: int, readers: dict[int, list[Any]]) -> _Chain:
        found = _Chain(start)
        while len(after := readers.get(found.end, [])) == 1 and after[0] is not None and self.kind(after[0]) in MOVES:
            if int(after[0].inputs[0]) != found.end:
                break
            found.moves.append(after[0])
        return found

    def moved(self, values: Numbers, moves: list[Any]) -> Numbers | None:
        """What moves make of numbers in the shape of the first one's input."""
        for move in moves:
            if self.kind(move) == "TRANSPOSE":
                order = self.parsed.buffers[self.graph.tensors[int(move.inputs[1])].buffer].data
                if order is None:
                    return None
                values = values.transpose(np.frombuffer(bytes(order), np.int32))
            shape = self.shape(int(move.outputs[0]))
            if int(np.prod(shape)) != values.size:
                return None
            values = values.reshape(shape)
        return values

    def fold_one(self) -> bool:
        """Fold one operation by channel into the layer before it, be it behind moves."""
        readers, uses = self.readers(), self.uses()
        for layer in self.graph.operators:
            if self.kind(layer) not in LAYERS or layer.builtinOptions.fusedActivationFunction != self.plain:
                continue
            if len(layer.inputs) < 3 or layer.inputs[2] < 0:
                continue
            constants = [int(index) for index in layer.inputs[1:3]]
            if any(self.constant(index) is None or uses[self.graph.tensors[index].buffer] != 1 for index in constants):
                continue
            chain = self.chain(int(layer.outputs[0]), readers)
            after = readers.get(chain.end, [])
            if len(after) == 1 and after[0] is not None and self.absorb(layer, chain, after[0]):
                return True
        return False

    def absorb(self, layer: Any, chain: _Chain, operation: Any) -> bool:
        kind = self.kind(operation)
        if kind not in ARITHMETIC or len(operation.inputs) != 2:
            return False
        first, second = map(int, operation.inputs)
        if first != chain.end and kind in {"SUB", "DIV"}:
            return False
        operand = self.constant(second if first == chain.end else first)
        shape = self.shape(chain.start)
        if operand is None or not shape or int(np.prod(shape)) > MOST_VALUES:
            return False
        numbers = self.moved(np.broadcast_to(np.arange(shape[-1]), shape), chain.moves)
        if numbers is None or self.shape(int(operation.outputs[0])) != numbers.shape:
            return False
        factors = _by_channel(operand, numbers, shape[-1])
        if factors is None or (kind == "DIV" and not factors.all()):
            return False
        gain = {"MUL": factors, "DIV": 1 / factors}.get(kind, np.ones(1)) if kind in {"MUL", "DIV"} else np.ones(1)
        shift = {"ADD": factors, "SUB": -factors}.get(kind, np.zeros(1))
        weights, bias = (int(index) for index in layer.inputs[1:3])
        stored, added = self.constant(weights), self.constant(bias)
        if stored is None or added is None:
            return False
        last = self.kind(layer) == "DEPTHWISE_CONV_2D"  # whose output channels come last; others' come first
        along = gain if last or gain.size == 1 else gain.reshape(-1, *[1] * (stored.ndim - 1))
        self.store(weights, stored.astype(np.float64) * along)
        self.store(bias, added.astype(np.float64) * gain + shift)
        layer.builtinOptions.fusedActivationFunction = operation.builtinOptions.fusedActivationFunction
        result = int(operation.outputs[0])
        for number, operator in enumerate((layer, *chain.moves)):
            self.graph.tensors[int(operator.outputs[0])].name = self.graph.tensors[result].name + f"/before{number}".encode()
        (chain.moves[-1] if chain.moves else layer).outputs = np.array([result], np.int32)
        self.remove([operation])
        return True

    def join_one_elu(self) -> bool:
        """Make one operator of `x > 0 ? x : exp(x) - 1`: exp(x) of a large x, which nothing needs, overflows."""
        makers = {int(operator.outputs[0]): operator for operator in self.graph.operators if len(operator.outputs)}
        readers = self.readers()
        for choice in self.graph.operators:
            if self.kind(choice) not in {"SELECT", "SELECT_V2"}:
                continue
            condition, value, other = map(int, choice.inputs)
            asked, less = makers.get(condition), makers.get(other)
            if (
                asked is None
                or less is None
                or self.kind(asked) not in {"GREATER", "GREATER_EQUAL"}
                or self.kind(less) != "SUB"
            ):
                continue
            power = makers.get(int(less.inputs[0]))
            if power is None or self.kind(power) != "EXP" or int(power.inputs[0]) != value or int(asked.inputs[0]) != value:
                continue
            inner = (asked, less, power)
            alone = all(len(readers[int(one.outputs[0])]) == 1 for one in inner)
            if alone and self.is_all(int(asked.inputs[1]), 0.0) and self.is_all(int(less.inputs[1]), 1.0):
                choice.opcodeIndex, choice.inputs = self.elu(), np.array([value], np.int32)
                choice.builtinOptions, choice.builtinOptionsType = None, schema().BuiltinOptions.NONE
                self.remove(list(inner))
                return True
        return False

    def is_all(self, index: int, number: float) -> bool:
        values = self.constant(index)
        return values is not None and bool((values == number).all())

    def elu(self) -> int:
        """The position of ELU among the file's operator codes, where it is now."""
        code = schema().OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema().BuiltinOperator.ELU
        code.version = 1
        self.parsed.operatorCodes.append(code)
        return len(self.parsed.operatorCodes) - 1

    def drop_one_idle_move(self) -> bool:
        """Replace moves that together leave the values where they are: by nothing, or by one that only changes the shape."""
        readers = self.readers()
        makers = {int(index) for operator in self.graph.operators if self.kind(operator) in MOVES for index in operator.outputs}
        for start in sorted({int(operator.inputs[0]) for operator in self.graph.operators if self.kind(operator) in MOVES}):
            if start in makers and len(readers.get(start, [])) == 1:
                continue  # in the middle of a chain
            for first in [reader for reader in readers[start] if reader is not None and self.kind(reader) in MOVES]:
                chain = self.chain(int(first.outputs[0]), readers)
                if self.drop_idle(start, [first, *chain.moves]):
                    return True
        return False

    def drop_idle(self, start: int, moves: list[Any]) -> bool:
        shape = self.shape(start)
        size = int(np.prod(shape))
        if not shape or size > MOST_VALUES or self.graph.tensors[start].shapeSignature is not None:
            return False
        for count in range(len(moves), 0, -1):
            numbers = self.moved(np.arange(size).reshape(shape), moves[:count])
            if numbers is None or not np.array_equal(numbers.ravel(), np.arange(size)):
                continue
            end = int(moves[count - 1].outputs[0])
            if numbers.shape == shape and end not in map(int, self.graph.outputs):
                for operator in self.graph.operators:
                    operator.inputs = np.array([start if index == end else index for index in operator.inputs], np.int32)
                self.remove(moves[:count])
                return True
            reshape = next((move for move in moves[:count] if self.kind(move) == "RESHAPE"), None)
            if count > 1 and reshape is not None:
                self.reshape(reshape, start, end)
                self.remove([move for move in moves[:count] if move is not reshape])
                return True
        return False

    def reshape(self, operator: Any, start: int, end: int) -> None:
        wanted = np.array(self.shape(end), np.int32)
        operator.inputs = np.array([start, self.add(wanted, end)], np.int32)
        operator.outputs = np.array([end], np.int32)
        if operator.builtinOptions is not None:
            operator.builtinOptions.newShape = wanted

    def remove(self, operators: list[Any]) -> None:
        gone = set(map(id, operators))
        self.graph.operators = [operator for operator in self.graph.operators if id(operator) not in gone]

    def drop_unused(self) -> None:
        """Leave out tensors that nothing names any more; buffers stay until the file is written small."""
        used = {int(index) for operator in self.graph.operators for index in (*operator.inputs, *operator.outputs)}
        used |= {int(index) for index in (*self.graph.inputs, *self.graph.outputs)}
        signatures = [one for one in self.parsed.signatureDefs or () if one.subgraphIndex == 0]
        entries = [entry for one in signatures for entry in (*(one.inputs or ()), *(one.outputs or ()))]
        used |= {entry.tensorIndex for entry in entries}
        places = {old: new for new, old in enumerate(sorted(used - {-1}))} | {-1: -1}
        self.graph.tensors = [self.graph.tensors[old] for old in sorted(used - {-1})]
        for operator in self.graph.operators:
            operator.inputs = np.array([places[int(index)] for index in operator.inputs], np.int32)
            operator.outputs = np.array([places[int(index)] for index in operator.outputs], np.int32)
        self.graph.inputs = np.array([places[int(index)] for index in self.graph.inputs], np.int32)
        self.graph.outputs = np.array([places[int(index)] for index in self.graph.outputs], np.int32)
        for entry in entries:
            entry.tensorIndex = places[entry.tensorIndex]


def _by_channel(operand: Array, numbers: Numbers, channels: int) -> Array | None:
    """A broadcast constant as one value per channel, where `numbers` says which channel each value belongs to."""
    try:
        spread = np.broadcast_to(operand, numbers.shape).astype(np.float64)
    except ValueError:
        return None
    found = np.zeros(channels)
    found[numbers] = spread
    return found if np.array_equal(found[numbers], spread) else None
