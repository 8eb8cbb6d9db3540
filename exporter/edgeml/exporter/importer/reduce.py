"""Reductions, running totals and contractions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeml.exporter.importer.registry import Node, Static, ints, operator

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keep)
    return x


def _amax(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        return _empty(x, axes, keep, largest=False)
    return torch.amax(x.to(torch.uint8), axes, keep).to(torch.bool) if x.dtype == torch.bool else torch.amax(x, axes, keep)


def _amin(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        return _empty(x, axes, keep, largest=True)
    return torch.amin(x.to(torch.uint8), axes, keep).to(torch.bool) if x.dtype == torch.bool else torch.amin(x, axes, keep)


def _empty(x: Tensor, axes: list[int], keep: bool, *, largest: bool) -> Tensor:
    """The neutral element: the maximum of nothing is the smallest value there is."""
    neutral = torch.inf if largest else -torch.inf
    if x.dtype == torch.bool:
        neutral = float(largest)
    elif not x.dtype.is_floating_point:
        neutral = torch.iinfo(x.dtype).max if largest else torch.iinfo(x.dtype).min
    return torch.full_like(torch.sum(x, axes, keep), neutral, dtype=x.dtype)


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype),
    "ReduceMean": lambda x, axes, keep: (
        torch.mean(x, axes, keep) if x.is_floating_point() else x.double().mean(axes, keep).to(x.dtype)
    ),
    "ReduceMax": _amax,
    "ReduceMin": _amin,
    "ReduceProd": _prod,
    "ReduceL1": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep, dtype=x.dtype),
    "ReduceL2": lambda x, axes, keep: (
        torch.sqrt(torch.sum(x.float() * x, axes, keep)).to(x.dtype)
        if x.dtype != torch.float64
        else torch.sqrt(torch.sum(x * x, axes, keep))
    ),
    "ReduceLogSum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keep, dtype=x.dtype),
}


def _register(name: str, function: Reduction) -> None:
    @operator(name, static=(1,))
    def run(node: Node, x: Tensor, axes: Static | None = None) -> Tensor:
        wanted = ints(axes) if axes is not None else node.ints("axes") or []
        if not wanted and node.get("noop_with_empty_axes", 0):
            return function(x.unsqueeze(0), [0], False) if name not in {"ReduceMean", "ReduceSum"} else x
        over = [axis % max(x.ndim, 1) for axis in wanted] if wanted else list(range(x.ndim))
        return function(x, over, bool(node.get("keepdims", 1))) if x.ndim else function(x.reshape(1), [0], False)


for _name, _function in _REDUCTIONS.items():
    _register(_name, _function)


@operator("CumSum", static=(1,))
def cum_sum(node: Node, x: Tensor, axis: Static) -> Tensor:
    return _running(node, x, int(axis.reshape(-1)[0]), torch.cumsum, 0)


@operator("CumProd", static=(1,))
def cum_prod(node: Node, x: Tensor, axis: Static) -> Tensor:
    return _running(node, x, int(axis.reshape(-1)[0]), torch.cumprod, 1)


def _running(node: Node, x: Tensor, axis: int, function: Callable[..., Tensor], start: int) -> Tensor:
    backwards = bool(node.get("reverse", 0))
    flipped = torch.flip(x, [axis]) if backwards else x
    result = function(flipped, dim=axis, dtype=x.dtype)
    if node.get("exclusive", 0):
        first = torch.full_like(result.narrow(axis, 0, 1), start)
        result = torch.cat([first, result.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
    return torch.flip(result, [axis]) if backwards else result


@operator("MatMul")
def matmul(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.get("transA", 0) else a
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if c is not None and alpha == beta == 1.0 and c.ndim == 1:
        weight = b if node.get("transB", 0) else b.T
        if c.shape[0] == weight.shape[0]:
            return torch.nn.functional.linear(a, weight, c)
    product = torch.matmul(a, b.T if node.get("transB", 0) else b)
    product = product if alpha == 1.0 else alpha * product
    return product if c is None else product + (c if beta == 1.0 else beta * c)


@operator("Einsum")
def einsum(node: Node, *tensors: Tensor) -> Tensor:
    return torch.einsum(node.get("equation").replace(" ", ""), *tensors)


@operator("Det")
def det(_node: Node, x: Tensor) -> Tensor:
    determinant: Tensor = torch.linalg.det(x)
    return determinant
