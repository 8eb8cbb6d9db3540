"""Cases of element-wise operations, activations, reductions and matrix products; expected values by numpy and scipy."""

# ruff: noqa: E501, FBT003 - one case a line reads as a table; numpy's keepdims is a flag

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from edgeml.runtime.backends import Array
from tests.unit.mil_builder import Case, case

RNG = np.random.default_rng(7)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
Y = RNG.normal(size=(3, 1)).astype(np.float32)
POSITIVE = (np.abs(X) + 0.1).astype(np.float32)
UNIT = (np.tanh(X) * 0.9).astype(np.float32)
IMAGE = RNG.normal(size=(1, 3, 5, 4)).astype(np.float32)
WHOLE = np.array([[7, -7, 3], [-3, 5, 0]], np.int32)
DIVISOR = np.array([[2, 2, -2], [2, -3, 5]], np.int32)
TRUTH = np.array([[True, False, True], [False, False, True]])


def _unary(op: str, x: Array, expect: Callable[[Array], Any], **more: Any) -> Case:
    return case(op, lambda mb, a: getattr(mb, op)(x=a, **more), x, expect)


def _binary(op: str, x: Array, y: Array, expect: Callable[[Array, Array], Any], label: str = "") -> Case:
    return case(op, lambda mb, a, b: getattr(mb, op)(x=a, y=b), (x, y), expect, label)


def _softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


UNARY = [
    _unary("abs", X, np.abs),
    _unary("acos", UNIT, np.arccos),
    _unary("asin", UNIT, np.arcsin),
    _unary("atan", X, np.arctan),
    _unary("atanh", UNIT, np.arctanh),
    _unary("ceil", X, np.ceil),
    _unary("cos", X, np.cos),
    _unary("cosh", X, np.cosh),
    _unary("erf", X, special.erf),
    _unary("exp", X, np.exp),
    _unary("exp2", X, np.exp2),
    _unary("floor", X, np.floor),
    _unary("identity", X, np.copy),
    _unary("inverse", POSITIVE, lambda x: 1 / (x + 0.01), epsilon=0.01),
    _unary("log", POSITIVE, lambda x: np.log(x + 0.5), epsilon=0.5),
    _unary("logical_not", TRUTH, np.logical_not),
    _unary("round", np.array([0.5, 1.5, -2.5, 2.6], np.float32), lambda _: np.array([0, 2, -2, 3], np.float32)),
    _unary("rsqrt", POSITIVE, lambda x: (x + 0.5) ** -0.5, epsilon=0.5),
    _unary("sign", X, np.sign),
    _unary("sin", X, np.sin),
    _unary("sinh", X, np.sinh),
    _unary("sqrt", POSITIVE, np.sqrt),
    _unary("square", X, np.square),
    _unary("tan", UNIT, np.tan),
    _unary("tanh", X, np.tanh),
    _unary("threshold", X, lambda x: np.maximum(x, 0.25), alpha=0.25),
    _unary("clip", X, lambda x: np.clip(x, -0.5, 0.75), alpha=-0.5, beta=0.75),
]
CAST = [
    case("cast", lambda mb, a: mb.cast(x=a, dtype="int32"), X * 3, lambda x: np.trunc(x).astype(np.int32), "to-int32"),
    case("cast", lambda mb, a: mb.cast(x=a, dtype="bool"), WHOLE, lambda x: x != 0, "to-bool"),
    case("cast", lambda mb, a: mb.cast(x=a, dtype="fp32"), WHOLE, lambda x: x.astype(np.float32), "to-fp32"),
    case("cast", lambda mb, a: mb.cast(x=a, dtype="fp16"), X, lambda x: x.astype(np.float16), "to-fp16"),
]
BINARY = [
    _binary("add", X, Y, np.add),
    _binary("sub", X, Y, np.subtract),
    _binary("mul", X, Y, np.multiply),
    _binary("real_div", X, Y, np.divide),
    _binary("floor_div", X, Y, np.floor_divide),
    _binary("floor_div", WHOLE, DIVISOR, np.floor_divide, "int32"),
    _binary("mod", X, Y, np.mod),
    _binary("mod", WHOLE, DIVISOR, np.mod, "int32"),
    _binary("pow", POSITIVE, Y, np.power),
    _binary("maximum", X, Y, np.maximum),
    _binary("minimum", X, Y, np.minimum),
    _binary("equal", WHOLE, DIVISOR, np.equal),
    _binary("not_equal", WHOLE, DIVISOR, np.not_equal),
    _binary("greater", X, Y, np.greater),
    _binary("greater_equal", WHOLE, WHOLE.T[:1].repeat(2, 0)[:, :1], np.greater_equal),
    _binary("less", X, Y, np.less),
    _binary("less_equal", X, Y, np.less_equal),
    _binary("logical_and", TRUTH, ~TRUTH[::-1], np.logical_and),
    _binary("logical_or", TRUTH, ~TRUTH[::-1], np.logical_or),
    _binary("logical_xor", TRUTH, ~TRUTH[::-1], np.logical_xor),
    case("select", lambda mb, c, a, b: mb.select(cond=c, a=a, b=b), (TRUTH, X[0, :2, :3], -X[0, :2, :3]), np.where),
]
SLOPES = np.array([0.1, 0.2, 0.3], np.float32)
ACTIVATIONS = [
    _unary("relu", X, lambda x: np.where(x > 0, x, 0)),
    _unary("relu6", X * 5, lambda x: np.clip(x, 0, 6)),
    _unary("leaky_relu", X, lambda x: np.where(x < 0, 0.3 * x, x), alpha=0.3),
    _unary("prelu", IMAGE, lambda x: np.where(x < 0, x * SLOPES[:, None, None], x), alpha=SLOPES),
    _unary("thresholded_relu", X, lambda x: np.where(x < 0.5, 0, x), alpha=0.5),
    _unary("clamped_relu", X * 3, lambda x: np.minimum(1.5, np.where(x < 0, 0.5 * x, x)), alpha=0.5, beta=1.5),
    _unary("elu", X, lambda x: np.where(x < 0, 1.5 * np.expm1(x), x), alpha=1.5),
    _unary("gelu", X, lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2)))),
    case("gelu", lambda mb, a: mb.gelu(x=a, mode="TANH_APPROXIMATION"), X,
         lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), "tanh"),
    case("gelu", lambda mb, a: mb.gelu(x=a, mode="SIGMOID_APPROXIMATION"), X, lambda x: x / (1 + np.exp(-1.702 * x)), "sigmoid"),
    _unary("sigmoid", X, special.expit),
    _unary("sigmoid_hard", X * 5, lambda x: np.clip(0.2 * x + 0.4, 0, 1), alpha=0.2, beta=0.4),
    _unary("silu", X, lambda x: x * special.expit(x)),
    _unary("softplus", X * 20, lambda x: np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)),
    _unary("softplus_parametric", IMAGE, lambda x: SLOPES[:, None, None] * np.log1p(np.exp(2 * SLOPES[:, None, None] * x)),
           alpha=SLOPES, beta=2 * SLOPES),
    _unary("softsign", X, lambda x: x / (1 + np.abs(x))),
    _unary("softmax", X, lambda x: _softmax(x, 1), axis=1),
    _unary("scaled_tanh", X, lambda x: 1.5 * np.tanh(0.5 * x), alpha=1.5, beta=0.5),
    _unary("linear_activation", X, lambda x: 1.5 * x + 0.5, alpha=1.5, beta=0.5),
]  # fmt: skip


def _reduce(op: str, x: Array, expect: Callable[[Array, Any, bool], Any]) -> list[Case]:
    return [
        case(
            op, lambda mb, a: getattr(mb, op)(x=a, axes=[0, -1], keep_dims=True), x, lambda v: expect(v, (0, 2), True), "keep"
        ),
        case(op, lambda mb, a: getattr(mb, op)(x=a, axes=[1]), x, lambda v: expect(v, (1,), False), "drop"),
    ]


REDUCTIONS = [
    *_reduce("reduce_l1_norm", X, lambda x, axes, keep: np.abs(x).sum(axes, keepdims=keep)),
    *_reduce("reduce_l2_norm", X, lambda x, axes, keep: np.sqrt((x**2).sum(axes, keepdims=keep))),
    *_reduce("reduce_log_sum", POSITIVE, lambda x, axes, keep: np.log(x.sum(axes, keepdims=keep))),
    *_reduce("reduce_log_sum_exp", X, lambda x, axes, keep: special.logsumexp(x, axes, keepdims=keep)),
    *_reduce("reduce_max", X, lambda x, axes, keep: x.max(axes, keepdims=keep)),
    *_reduce("reduce_mean", X, lambda x, axes, keep: x.mean(axes, keepdims=keep)),
    *_reduce("reduce_min", X, lambda x, axes, keep: x.min(axes, keepdims=keep)),
    *_reduce("reduce_prod", X, lambda x, axes, keep: x.prod(axes, keepdims=keep)),
    *_reduce("reduce_sum", X, lambda x, axes, keep: x.sum(axes, keepdims=keep)),
    *_reduce("reduce_sum_square", X, lambda x, axes, keep: (x**2).sum(axes, keepdims=keep)),
    case("reduce_argmax", lambda mb, a: mb.reduce_argmax(x=a, axis=1), X, lambda x: x.argmax(1)),
    case("reduce_argmin", lambda mb, a: mb.reduce_argmin(x=a, axis=-1, keep_dims=True), X, lambda x: x.argmin(-1)[..., None]),
    case("reduce_sum", lambda mb, a: mb.reduce_sum(x=a, axes=[1]), WHOLE, lambda x: x.sum(1), "int32"),
]
LEFT = RNG.normal(size=(2, 3, 4)).astype(np.float32)
RIGHT = RNG.normal(size=(2, 5, 4)).astype(np.float32)
TURNED = RNG.normal(size=(4, 3, 5)).astype(np.float32)
WEIGHT = RNG.normal(size=(6, 4)).astype(np.float32)
BIAS = RNG.normal(size=6).astype(np.float32)
LINEAR = [
    case("matmul", lambda mb, a, b: mb.matmul(x=a, y=b, transpose_y=True), (LEFT, RIGHT), lambda a, b: a @ b.transpose(0, 2, 1)),
    case("matmul", lambda mb, a, b: mb.matmul(x=a, y=b, transpose_x=True), (LEFT, LEFT[:1]),
         lambda a, b: a.transpose(0, 2, 1) @ b, "broadcast"),
    case("linear", lambda mb, a: mb.linear(x=a, weight=WEIGHT, bias=BIAS), LEFT, lambda a: a @ WEIGHT.T + BIAS),
    case("linear", lambda mb, a: mb.linear(x=a, weight=WEIGHT), LEFT, lambda a: a @ WEIGHT.T, "no-bias"),
    case("einsum", lambda mb, a, b: mb.einsum(values=[a, b], equation="chw,whr->chr"), (LEFT, TURNED),
         lambda a, b: (a[..., None] * b.transpose(1, 0, 2)).sum(2)),
]  # fmt: skip
CASES = [*UNARY, *CAST, *BINARY, *ACTIVATIONS, *REDUCTIONS, *LINEAR]
