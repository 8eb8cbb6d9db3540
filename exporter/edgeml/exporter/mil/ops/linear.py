"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.mil.registry import Tensors, operation


@operation("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`; weight: (C_out, C_in)."""
    return functional.linear(x, weight, bias)


@operation("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Batched, leading axes broadcast; a vector is never transposed."""
    left = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
    right = y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y
    return torch.matmul(left, right)


@operation("einsum")
def einsum(values: Tensors, equation: str) -> Tensor:
    result: Tensor = torch.einsum(equation, *values)
    return result
