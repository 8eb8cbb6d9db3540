"""Activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.mil.registry import operation


@operation("relu")
def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@operation("relu6")
def relu6(x: Tensor) -> Tensor:
    return torch.clamp(x, 0, 6)


@operation("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return functional.leaky_relu(x, alpha)


@operation("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """alpha: one slope a channel (axis 1)."""
    return torch.where(x >= 0, x, x * _per_channel(alpha, x))


@operation("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """`x` where it is at least alpha, else 0."""
    return torch.where(x >= alpha, x, torch.zeros_like(x))


@operation("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(beta, x if x >= 0 else alpha * x)."""
    return torch.clamp_max(functional.leaky_relu(x, alpha), beta)


@operation("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    return functional.elu(x, alpha)


@operation("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """`x * Phi(x)`, or its approximations by tanh and by a sigmoid."""
    if mode.upper() == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if mode.upper() == "TANH_APPROXIMATION" else "none")


@operation("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@operation("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(max(alpha * x + beta, 0), 1)."""
    return torch.clamp(alpha * x + beta, 0, 1)


@operation("silu")
def silu(x: Tensor) -> Tensor:
    return functional.silu(x)


@operation("softplus")
def softplus(x: Tensor) -> Tensor:
    """ln(1 + exp(x)), without torch's linear cut."""
    return torch.logaddexp(x, torch.zeros_like(x))


@operation("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha_c * ln(1 + exp(beta_c * x))."""
    scaled = x * _per_channel(beta, x)
    return _per_channel(alpha, x) * torch.logaddexp(scaled, torch.zeros_like(x))


@operation("softsign")
def softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


@operation("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@operation("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`alpha * tanh(beta * x)`."""
    return alpha * torch.tanh(beta * x)


@operation("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`alpha * x + beta`."""
    return alpha * x + beta


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values of one axis, shaped to stand along axis 1 of x."""
    return values.reshape(1, -1, *[1] * (x.dim() - 2))
