"""Normalisation over batches, layers, instances and neighbours."""

# ruff: noqa: PLR0917 - the parameters are the operation's inputs

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.mil.registry import Ints, operation


@operation("batch_norm")
def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


@operation("instance_norm")
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each sample by its own mean and (biased) variance over space."""
    return functional.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


@operation("layer_norm")
def layer_norm(
    x: Tensor, axes: Ints | None = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """`gamma` and `beta` have the shape of the normalised axes."""
    over = sorted(axis % x.dim() for axis in (axes if axes is not None else range(x.dim())))
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    centred = x - x.mean(over, keepdim=True)
    result = centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + epsilon)
    if gamma is not None:
        result = result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


@operation("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """`x / sqrt(s + epsilon)`, s the sum of squares over the last three axes."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@operation("local_response_norm")
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """`x / (k + alpha / size * s) ** beta`, s the sum of squares over `size` neighbouring channels."""
    return functional.local_response_norm(x, size, alpha, beta, k)
