"""Attention and rotary embedding of the standard operator set."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeml.exporter.importer.elementwise import softmax_over
from edgeml.exporter.importer.registry import Node, operator, torch_dtype


@operator("RotaryEmbedding")
def rotary_embedding(node: Node, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """Rotates pairs of features by position (Su et al. 2021), over halves or interleaved."""
    heads = node.get("num_heads", 0)
    folded = x.ndim == 3
    t = x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) if folded else x
    size = node.get("rotary_embedding_dim", 0) or t.shape[-1]
    turned, rest = t[..., :size], t[..., size:]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[..., : size // 2].unsqueeze(1), sin[..., : size // 2].unsqueeze(1)
    if node.get("interleaved", 0):
        even, odd = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        turned = torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
    result = torch.cat([turned, rest], -1)
    return result.transpose(1, 2).reshape(x.shape) if folded else result


@operator("Attention")
def attention(
    node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
    past_v: Tensor | None = None, lengths: Tensor | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """softmax(scale * Q K^T + mask) V, with grouped heads, cache, causal mask and soft cap."""
    folded, batch = q.ndim == 3, q.shape[0]
    if folded:
        q = q.reshape(batch, q.shape[1], node.get("q_num_heads"), -1).transpose(1, 2)
        k = k.reshape(batch, k.shape[1], node.get("kv_num_heads"), -1).transpose(1, 2)
        v = v.reshape(batch, v.shape[1], node.get("kv_num_heads"), -1).transpose(1, 2)
    before = 0 if past_k is None else past_k.shape[2]
    k = k if past_k is None else torch.cat([past_k, k], 2)
    v = v if past_v is None else torch.cat([past_v, v], 2)
    present = (k, v)
    groups = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    root = torch.tensor(node.get("scale") or q.shape[-1] ** -0.5, dtype=torch.float64).sqrt().to(q.dtype)
    scores = product(q * root, (keys * root).transpose(-1, -2))
    mode, cap = node.get("qk_matmul_output_mode", 0), node.get("softcap", 0.0)
    raw = scores
    scores = cap * torch.tanh(scores / cap) if cap else scores
    bias = _bias(node, mask, lengths, scores, before)
    masked = scores if bias is None else scores + bias
    precision = node.get("softmax_precision")  # that of the queries if not told
    weights = softmax_over(masked if precision is None else masked.to(torch_dtype(node, precision)), -1)
    if bias is not None:  # a query that may see no key gets zeros, not NaN
        blind = torch.isneginf(bias.amax(-1, keepdim=True))
        weights = torch.where(blind, torch.zeros_like(weights), weights)
    y = product(weights.to(q.dtype), values)
    if folded:
        y = y.transpose(1, 2).reshape(batch, y.shape[2], -1)
    shown = {0: raw, 1: scores, 2: masked, 3: weights.to(q.dtype)}[mode]
    return y, *present, shown


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product; float16 is summed in float32 and rounded once, whatever this machine's kernel would do."""
    return (a.float() @ b.float()).to(a.dtype) if a.dtype == torch.float16 else a @ b


def _bias(node: Node, mask: Tensor | None, lengths: Tensor | None, scores: Tensor, before: int) -> Tensor | None:
    """What is added to the scores: 0 where a query may look, -inf where it may not."""
    queries, keys = scores.shape[-2:]
    parts: list[Tensor] = []
    if mask is not None:
        additive = _hidden(~mask, scores) if mask.dtype == torch.bool else mask
        if additive.shape[-1] < keys:
            gap = torch.full((*additive.shape[:-1], keys - additive.shape[-1]), -torch.inf, dtype=additive.dtype)
            additive = torch.cat([additive, gap], -1)
        parts.append(additive)
    # A query's own position: after the cache; with an external cache, aligned to each row's last valid key.
    offset = torch.tensor(before) if lengths is None else (lengths.reshape(-1, 1, 1, 1) - queries)
    distance = torch.arange(queries)[:, None] + offset - torch.arange(keys)[None, :]
    left, right = node.get("left_window_size", -1), node.get("right_window_size", -1)
    if node.get("is_causal", 0):
        parts.append(_hidden(distance < 0, scores))
    if left >= 0:
        parts.append(_hidden(distance > left, scores))
    if right >= 0:
        parts.append(_hidden(-distance > right, scores))
    if lengths is not None:
        parts.append(_hidden(torch.arange(keys)[None, :] >= lengths[:, None], scores)[:, None, None])
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _hidden(where: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(where.shape, dtype=like.dtype).masked_fill(where, -torch.inf)
