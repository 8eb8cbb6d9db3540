"""Core ML layer by layer: the interpreter shows every value it computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from edgeml.exporter.layers.trace import Operator, Trace, as_real, enough, stacked
from edgeml.exporter.mil.backend import open_mil
from edgeml.exporter.mil.interpreter import Interpreter
from edgeml.exporter.mil.package import MODEL, unpack_files
from edgeml.exporter.mil.program import Ref, TensorType, read_program
from edgeml.exporter.mil.schema import parse_model
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.wire.manifest import Format

WIDE = frozenset({"int32", "int64", "uint32", "uint64"})  # axes and shapes beside the codes


class CoremlModel:
    """The main block of a packed ML program."""

    format: Format = "coreml"

    def __init__(self, data: bytes) -> None:
        self.inputs = open_mil(data, EngineOptions()).inputs
        files = unpack_files(data)
        self._program = read_program(parse_model(files[MODEL]), files)
        self._interpreter = Interpreter(self._program)
        self.outputs = tuple(self._program.outputs)
        self.operators = tuple(self._operators())

    def trace(self, calls: Iterable[Sequence[Array]]) -> Trace:
        seen = []
        names = tuple(raw.name for raw in self.inputs)
        wanted = {name for operator in self.operators for name in operator.outputs}
        for tensors in calls:
            call: dict[str, Array] = {name: as_real(value) for name, value in zip(names, tensors, strict=True)}

            def keep(name: str, value: Tensor, call: dict[str, Array] = call) -> None:
                if name in wanted:
                    call[name] = as_real(value.numpy().copy())

            self._interpreter.run(dict(zip(names, tensors, strict=True)), keep)
            seen.append(call)
            if enough(seen):
                break
        return Trace("coreml", self.operators, names, self.outputs, stacked(seen))

    def _operators(self) -> Iterable[Operator]:
        moving = {item.name for item in self._program.inputs}
        unpacked: dict[str, str] = {}  # what a constexpr gives -> the type of its codes
        for op in self._program.body.operations:
            references = [
                argument.name for arguments in op.inputs.values() for argument in arguments if isinstance(argument, Ref)
            ]
            read = [name for name in references if name in moving]
            outputs = tuple(item.name for item in op.outputs)
            if not read:
                if op.type.startswith("constexpr"):
                    kinds = [a.dtype for arguments in op.inputs.values() for a in arguments if not isinstance(a, Ref)]
                    small = sorted(kind for kind in kinds if "int" in kind and kind not in WIDE)
                    unpacked |= dict.fromkeys(outputs, small[0] if small else "int8")
                continue
            moving.update(outputs)
            kind = next((unpacked[name] for name in references if name in unpacked), None)
            given = op.outputs[0].type if op.outputs else None
            precision = kind or (given.dtype if isinstance(given, TensorType) else "float32")
            if outputs:
                yield Operator(outputs[0], op.type, tuple(read), outputs, precision)
