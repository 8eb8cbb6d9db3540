"""Which ONNX operators the importer knows, and the function for each.

A handler takes the node and its inputs in ONNX order (`None` for one left out), and gives a tensor or a tuple:

    @operator("Reshape", static=(1,))
    def reshape(node: Node, x: Tensor, shape: Static) -> Tensor: ...

Inputs at `static` positions arrive as numpy arrays: sizes, axes and pads that shape the computation. All else is a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeml.wire.errors import UnsupportedError

Static = NDArray[Any]
Value = Tensor | Static
Result = Tensor | Sequence[Tensor | None]
Handler = Callable[..., Result]
H = TypeVar("H", bound=Handler)

DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Operator:
    name: str
    run: Handler
    static: frozenset[int]
    subgraphs: bool


@dataclass(frozen=True, slots=True)
class Node:
    """One ONNX node: its attributes as Python values, and the opset version of its domain."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    scope: Mapping[str, Value] = field(default_factory=dict)  # outer values, for nodes that hold graphs

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def ints(self, name: str) -> list[int] | None:
        value = self.attributes.get(name)
        return None if value is None else [int(v) for v in value]

    def refuse(self, what: str) -> UnsupportedError:
        where = f" (node {self.name!r})" if self.name else ""
        return UnsupportedError(f"ONNX operator {self.operator!r}{where}: {what}")


_OPERATORS: dict[str, Operator] = {}


def operator(*names: str, static: Sequence[int] = (), subgraphs: bool = False) -> Callable[[H], H]:
    """Registers a handler for the ONNX operators called `names`."""

    def register(handler: H) -> H:
        for name in names:
            if name in _OPERATORS:
                raise AssertionError(f"{name} is registered twice")
            _OPERATORS[name] = Operator(name, handler, frozenset(static), subgraphs)
        return handler

    return register


def find(domain: str, name: str) -> Operator | None:
    return _OPERATORS.get(name) if domain in DEFAULT_DOMAINS else None


def supported_operators() -> tuple[str, ...]:
    """Names of the operators the importer knows, sorted; all of them once the package is imported."""
    return tuple(sorted(_OPERATORS))


def refuse_data(node: Node, what: str) -> None:
    """Refuse what depends on data while a converter looks on: a trace would keep the example's own value for ever.

    Raises:
        UnsupportedError: a converter does; without one the value is simply used.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]  # public, and without annotations
    if tracing or torch.compiler.is_compiling():
        raise node.refuse(f"{what} depends on data, and only ONNX can follow it")


_DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}


def torch_dtype(node: Node, elem_type: int) -> torch.dtype:
    """The torch dtype of an ONNX element type.

    Raises:
        UnsupportedError: 4-bit, 8-bit float, complex and string types.
    """
    if elem_type not in _DTYPES:
        from onnx import TensorProto

        raise node.refuse(f"element type {TensorProto.DataType.Name(elem_type)} is not supported")
    return _DTYPES[elem_type]


def ints(value: Static | None) -> list[int]:
    return [] if value is None else [int(v) for v in np.asarray(value).reshape(-1)]
