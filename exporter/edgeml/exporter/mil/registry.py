"""Which operations the interpreter knows, and how their functions take arguments.

An operation is a Python function whose parameters carry MIL's own input names; the annotation says what it is given:

    Tensor                        the value; float16 stays in float32 tensors that hold float16 values
    Tensors                       several values
    int, float, bool, str, Ints   a constant or computed tensor, read as Python values
    Values                        whatever a list holds (see `ops/lists.py`)

A default is MIL's default. An input without a parameter is refused when the program is loaded.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from torch import Tensor

Tensors = tuple[Tensor, ...]
Ints = tuple[int, ...]
Result = Tensor | tuple[Any, ...] | None
Read = Callable[[Any], Any]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Parameter:
    """`read` turns a tensor into the Python value asked for; `None` passes it on. `several` takes all arguments."""

    read: Read | None
    several: bool
    optional: bool


@dataclass(frozen=True, slots=True)
class Known:
    """An operation the interpreter can run. `family` is the module that defines it."""

    type: str
    family: str
    function: Callable[..., Any]
    parameters: dict[str, Parameter]
    folds: bool  # takes only constants and gives one: computed once, when the program is loaded


OPERATIONS: Final[dict[str, Known]] = {}


def operation(*types: str, folds: bool = False) -> Callable[[F], F]:
    """Registers a function for operations of these types."""

    def register(function: F) -> F:
        for kind in types:
            assert kind not in OPERATIONS, kind
            family = function.__module__.rsplit(".", 1)[-1]
            OPERATIONS[kind] = Known(kind, family, function, _parameters(function), folds)
        return function

    return register


def _parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    hints = typing.get_type_hints(function)
    return {
        name: _parameter(hints[name], optional=parameter.default is not inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
    }


def _parameter(hint: Any, *, optional: bool) -> Parameter:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    if hint == Tensors:
        return Parameter(None, several=True, optional=optional)
    if hint == Ints or Ints in kinds:
        return Parameter(_ints, several=False, optional=optional)
    reads: dict[Any, Read] = {int: _int, float: _float, bool: _bool, str: str}
    return Parameter(reads.get(kinds[0]), several=False, optional=optional)


def _ints(value: Any) -> Ints:
    if isinstance(value, Sequence):
        return tuple(int(item) for item in value)
    return tuple(int(item) for item in value.reshape(-1).tolist())


def _int(value: Any) -> int:
    return int(value.item())


def _float(value: Any) -> float:
    return float(value.item())


def _bool(value: Any) -> bool:
    return bool(value.item())
