"""Comparisons, booleans and bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeml.exporter.importer.registry import Node, operator

_UNSIGNED = {torch.uint16, torch.uint32, torch.uint64}

_COMPARE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip


def _register(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def run(_node: Node, a: Tensor, b: Tensor) -> Tensor:
        if a.dtype in _UNSIGNED:
            result = function(a.to(torch.int64), b.to(torch.int64))
            return result if result.dtype == torch.bool else result.to(a.dtype)
        return function(a, b)


for _name, _function in _COMPARE.items():
    _register(_name, _function)


@operator("Not")
def negate(_node: Node, x: Tensor) -> Tensor:
    return torch.logical_not(x)


@operator("BitwiseNot")
def bitwise_not(_node: Node, x: Tensor) -> Tensor:
    return (~x.to(torch.int64)).to(x.dtype) if x.dtype in _UNSIGNED else torch.bitwise_not(x)


@operator("BitShift")
def bit_shift(node: Node, x: Tensor, by: Tensor) -> Tensor:
    wide, count = x.to(torch.int64), by.to(torch.int64)
    if x.dtype == torch.uint64:
        # int64 arithmetic shifts drag the sign along: clear what came in from the left.
        shifted = wide >> count
        mask = torch.where(count > 0, (torch.ones_like(wide) << (64 - count)) - 1, torch.full_like(wide, -1))
        return (wide << count if node.get("direction") == "LEFT" else shifted & mask).to(x.dtype)
    return (wide << count if node.get("direction") == "LEFT" else wide >> count).to(x.dtype)


@operator("Where")
def where(_node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@operator("IsNaN")
def is_nan(_node: Node, x: Tensor) -> Tensor:
    return torch.isnan(x)


@operator("IsInf")
def is_inf(node: Node, x: Tensor) -> Tensor:
    found = torch.isinf(x)
    if not node.get("detect_negative", 1):
        found = found & (x > 0)
    if not node.get("detect_positive", 1):
        found = found & (x < 0)
    return found
