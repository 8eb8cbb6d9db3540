"""Operators that litert-torch writes so that inner values overflow, in words that do not."""

from __future__ import annotations

from typing import Any


def bounded_elu(x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """`aten.elu`, and so SELU: scale (max(x, 0) + alpha (exp(input_scale min(x, 0)) - 1)).

    litert-torch chooses between x and exp(x) - 1 after it has computed both: exp(89) is infinite in float32, and one such value
    in calibration leaves no range for int8.
    """
    return scale * (x.clamp(min=0) + alpha * (input_scale * x.clamp(max=0)).expm1())


def bounded_celu(x: Any, alpha: float = 1.0) -> Any:
    """`aten.celu`, which is an ELU of x / alpha below zero."""
    return bounded_elu(x, alpha, 1.0, 1.0 / alpha)
