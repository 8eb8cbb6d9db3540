"""Operators that take a state and give the next one: a causal convolution, and attention as a recurrence."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeml.exporter.importer.registry import Node, operator


@operator("CausalConvWithState")
def causal_conv(
    node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, past: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A depthwise convolution (batch, channels, length) that sees the past; the state is the last kernel - 1 columns."""
    kernel, activation = weight.shape[2], node.get("activation", "none")
    past = x.new_zeros(*x.shape[:2], kernel - 1) if past is None else past
    seen = torch.cat([past, x], 2)
    y = torch.nn.functional.conv1d(seen, weight, bias, groups=x.shape[1])
    if activation in {"silu", "swish"}:
        y = (y.float() * torch.sigmoid(y.float())).to(x.dtype)
    elif activation != "none":
        raise node.refuse(f"activation {activation!r}")
    return y, seen[:, :, seen.shape[2] - (kernel - 1) :]


@operator("LinearAttention")
def linear_attention(
    node: Node, query: Tensor, key: Tensor, value: Tensor, past: Tensor | None = None, decay: Tensor | None = None,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A matrix S of (key, value) features that each step decays, is written to, and is read by the query.

    S <- exp(g) S + k (beta (v - S' k))', y = scale S' q; without the delta rule v is written as it is (S. Yang and others,
    "Gated Delta Networks", 2024).
    """
    heads, groups = node.get("kv_num_heads"), node.get("q_num_heads") // node.get("kv_num_heads")
    batch, length = query.shape[:2]
    q, k, v = (_heads(x, count) for x, count in ((query, heads * groups), (key, heads), (value, heads)))
    scale = node.get("scale", 0.0) or q.shape[-1] ** -0.5
    state = q.new_zeros(batch, heads, k.shape[-1], v.shape[-1]) if past is None else past.float()
    g = None if decay is None else _heads(decay, heads)
    b = None if beta is None else beta.reshape(batch, length, beta.shape[-1], 1).transpose(1, 2).float()
    steps = []
    for i in range(length):
        if g is not None:
            state = state * torch.exp(g[:, :, i, :, None])
        written = v[:, :, i]
        if b is not None:
            written = b[:, :, i] * (written - (state * k[:, :, i, :, None]).sum(2))
        state = state + k[:, :, i, :, None] * written[:, :, None, :]
        steps.append(scale * (state.repeat_interleave(groups, 1) * q[:, :, i, :, None]).sum(2))
    y = torch.stack(steps, 1).reshape(batch, length, -1)
    return y.to(query.dtype), state.to(query.dtype if past is None else past.dtype)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * features) as float32 (batch, heads, length, features)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2).float()
