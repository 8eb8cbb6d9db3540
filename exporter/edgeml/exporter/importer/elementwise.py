"""Arithmetic, activations and casts: one output element from the elements at the same place."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.importer.registry import Node, operator, torch_dtype

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan,
    "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "Log": torch.log, "Neg": torch.neg, "Reciprocal": torch.reciprocal, "Relu": torch.relu,
    "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh,
    "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh, "Softplus": functional.softplus, "Softsign": functional.softsign,
    "Mish": functional.mish, "HardSwish": functional.hardswish, "Identity": lambda x: x,
}  # fmt: skip


def _register_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @operator(name)
    def run(_node: Node, x: Tensor) -> Tensor:
        return function(x)


for _name, _function in _UNARY.items():
    _register_unary(_name, _function)


@operator("Add")
def add(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    return _wide(torch.add, a, b)


@operator("Sub")
def sub(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    return _wide(torch.sub, a, b)


@operator("Mul")
def mul(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    return _wide(torch.mul, a, b)


@operator("Div")
def div(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype.is_floating_point:
        return a / b
    return _wide(lambda x, y: torch.div(x, y, rounding_mode="trunc"), a, b)


@operator("Pow")
def power(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype.is_floating_point or b.dtype.is_floating_point:
        return torch.pow(a, b.to(a.dtype) if a.dtype.is_floating_point else b).to(a.dtype)
    return torch.pow(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)


@operator("Mod")
def mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """`fmod=1` keeps the dividend's sign (C), 0 the divisor's (Python)."""
    return _wide(torch.fmod if node.get("fmod", 0) else torch.remainder, a, b)


def _wide(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """torch has few kernels for unsigned 16 to 64 bit integers: compute in int64."""
    if a.dtype in {torch.uint16, torch.uint32, torch.uint64}:
        return function(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)
    return function(a, b)


@operator("Max")
def maximum(_node: Node, *tensors: Tensor) -> Tensor:
    return functools.reduce(lambda a, b: _wide(torch.maximum, a, b), tensors)


@operator("Min")
def minimum(_node: Node, *tensors: Tensor) -> Tensor:
    return functools.reduce(lambda a, b: _wide(torch.minimum, a, b), tensors)


@operator("Sum")
def total(_node: Node, *tensors: Tensor) -> Tensor:
    return functools.reduce(torch.add, tensors)


@operator("Mean")
def mean(_node: Node, *tensors: Tensor) -> Tensor:
    return functools.reduce(torch.add, tensors) / len(tensors)


@operator("Clip")
def clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if node.opset < 11:
        low = None if node.get("min") is None else torch.tensor(node.get("min"), dtype=x.dtype)
        high = None if node.get("max") is None else torch.tensor(node.get("max"), dtype=x.dtype)
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu")
def prelu(_node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


@operator("Elu")
def elu(node: Node, x: Tensor) -> Tensor:
    return functional.elu(x, node.get("alpha", 1.0))


@operator("Celu")
def celu(node: Node, x: Tensor) -> Tensor:
    return functional.celu(x, node.get("alpha", 1.0))


@operator("Selu")
def selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    scaled: Tensor = gamma * (torch.clamp(x, min=0) + alpha * (torch.exp(torch.clamp(x, max=0)) - 1))
    return scaled


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


@operator("Shrink")
def shrink(node: Node, x: Tensor) -> Tensor:
    bias, limit = node.get("bias", 0.0), node.get("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x))).to(x.dtype)


@operator("Gelu")
def gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.get("approximate", "none"))


@operator("Swish")
def swish(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


def softmax_over(x: Tensor, axis: int) -> Tensor:
    """exp(x - max) / sum; float16 is rounded after each step, as the operator's definition says, not once at the end."""
    if x.dtype != torch.float16:
        return torch.softmax(x, dim=axis)
    parts = torch.exp(x - x.amax(axis, keepdim=True))
    return parts / parts.sum(axis, keepdim=True)


@operator("Softmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    return _over_axis(node, x, softmax_over)


@operator("LogSoftmax")
def log_softmax(node: Node, x: Tensor) -> Tensor:
    return _over_axis(node, x, lambda t, axis: torch.log_softmax(t, dim=axis))


@operator("Hardmax")
def hardmax(node: Node, x: Tensor) -> Tensor:
    def first_largest(t: Tensor, axis: int) -> Tensor:
        index = torch.argmax(t, dim=axis, keepdim=True)
        return torch.zeros_like(t).scatter(axis, index, 1.0)

    return _over_axis(node, x, first_largest)


def _over_axis(node: Node, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Before opset 13 the input was flattened to 2-D at `axis`, and `axis` defaulted to 1."""
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % max(x.ndim, 1)
    flat = x.reshape(math.prod(x.shape[:axis]), -1)
    return function(flat, 1).reshape(x.shape)


@operator("Cast")
def cast(node: Node, x: Tensor) -> Tensor:
    return _converted(x, torch_dtype(node, node.get("to")))


@operator("CastLike")
def cast_like(_node: Node, x: Tensor, like: Tensor) -> Tensor:
    return _converted(x, like.dtype)


@operator("BitCast")
def bit_cast(node: Node, x: Tensor) -> Tensor:
    return x.contiguous().view(torch_dtype(node, node.get("to")))


def _converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x != 0 if dtype == torch.bool and x.dtype.is_floating_point else x.to(dtype)


@operator("Dropout")
def dropout(node: Node, x: Tensor, _ratio: Tensor | None = None, training: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if training is not None and bool(training) and (_ratio is None or float(_ratio) > 0):
        raise node.refuse("training mode is not for inference")
    return x, torch.ones_like(x, dtype=torch.bool)


@operator("ConstantOfShape", static=(0,))
def constant_of_shape(node: Node, shape: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
    value = node.get("value")
    filled = np.full([int(s) for s in shape], 0.0 if value is None else value.reshape(-1)[0])
    return torch.from_numpy(filled.astype(np.float32 if value is None else value.dtype))
