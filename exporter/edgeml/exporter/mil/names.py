"""Names in an ML program made canonical: inner values by operation and position, inputs and outputs as the caller wants them.

coremltools names values by counters that a process keeps and by source paths that fill a third of a small model's program.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from edgeml.wire.errors import ModelError

RESERVED: Final = frozenset(
    {
        *("any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string", "state"),
        *("bf16", "fp16", "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    }
)
"""Words of MIL's own text, which Core ML's compiler does not take for names."""


def identifier(name: str) -> str:
    """The name as Core ML allows it: letters, digits and underscores, no digit first, no word of the language."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    if plain in RESERVED:
        return f"{plain}_"
    return f"_{plain}" if not plain or plain[0].isdigit() else plain


def rename(model: Any, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> None:
    """Rename in place. `inputs` and `outputs`, if given, are the new names in the order of the model's description.

    Raises:
        ModelError: the program uses a name it does not define, or the counts differ.
    """
    names = _features(model.description.input, inputs)
    told = _features(model.description.output, outputs, taken=set(names.values()))
    for function in model.mlProgram.functions.values():
        for item in function.inputs:
            item.name = names.setdefault(item.name, item.name)
        namer = _Namer({**told, **names}, taken={*names.values(), *told.values()})
        for block in function.block_specializations.values():
            namer.block(block, dict(names))


def _features(features: Any, wanted: Sequence[str], taken: set[str] | None = None) -> dict[str, str]:
    """{old: new} of inputs or outputs, which are renamed in the description."""
    if wanted and len(wanted) != len(features):
        raise ModelError("inputs or outputs of the Core ML model", expected=str(len(wanted)), got=str(len(features)))
    used = set(taken or ())
    names: dict[str, str] = {}
    for feature, name in zip(features, wanted or [feature.name for feature in features], strict=True):
        new = _free(identifier(name), used)
        names[feature.name] = new
        feature.name = new
    return names


class _Namer:
    """Gives every value of a function a name; `fixed` ones keep theirs."""

    def __init__(self, fixed: dict[str, str], taken: set[str]) -> None:
        self._fixed = fixed
        self._taken = taken
        self._counts: dict[str, int] = {}

    def block(self, block: Any, scope: dict[str, str]) -> None:
        for item in block.inputs:
            item.name = self._define(item.name, "loop", scope)
        for operation in block.operations:
            self._operation(operation, scope)
        block.outputs[:] = [_known(name, scope) for name in block.outputs]

    def _operation(self, operation: Any, scope: dict[str, str]) -> None:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    binding.name = _known(binding.name, scope)
        for inner in operation.blocks:
            self.block(inner, dict(scope))
        for item in operation.outputs:
            item.name = self._define(item.name, operation.type, scope)
        if operation.outputs and "name" in operation.attributes:
            operation.attributes["name"].immediateValue.tensor.strings.values[:] = [operation.outputs[0].name]

    def _define(self, name: str, stem: str, scope: dict[str, str]) -> str:
        if name in self._fixed and name not in scope:
            scope[name] = self._fixed[name]
            return scope[name]
        while True:
            count = self._counts[stem] = self._counts.get(stem, -1) + 1
            new = f"{stem}_{count}"
            if new not in self._taken:
                break
        scope[name] = new
        return new


def _known(name: str, scope: dict[str, str]) -> str:
    if name not in scope:
        raise ModelError(f"Core ML program uses {name!r} before it is computed")
    return scope[name]


def _free(name: str, used: set[str]) -> str:
    candidate, number = name, 1
    while candidate in used:
        candidate, number = f"{name}_{number}", number + 1
    used.add(candidate)
    return candidate
