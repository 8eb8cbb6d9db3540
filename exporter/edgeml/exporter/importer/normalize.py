"""Normalisations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgeml.exporter.importer.registry import Node, operator, torch_dtype


@operator("BatchNormalization")
def batch_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, ...]:
    epsilon = node.get("epsilon", 1e-5)
    if not node.get("training_mode", 0):
        return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    now_mean, now_variance = x.mean(axes), x.var(axes, unbiased=False)
    keep = node.get("momentum", 0.9)
    y = functional.batch_norm(x, now_mean, now_variance, scale, bias, training=False, eps=epsilon)
    return y, mean * keep + now_mean * (1 - keep), variance * keep + now_variance * (1 - keep)


@operator("InstanceNormalization")
def instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
    axis, epsilon = node.get("axis", -1) % x.ndim, node.get("epsilon", 1e-5)
    if len(node.outputs) == 1 and scale.shape == x.shape[axis:]:
        return functional.layer_norm(x, list(x.shape[axis:]), scale, bias, epsilon)
    over = list(range(axis, x.ndim))
    mean = x.mean(over, keepdim=True)
    inverse = torch.rsqrt(((x - mean) ** 2).mean(over, keepdim=True) + epsilon)
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


@operator("RMSNormalization")
def rms_normalization(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    over = list(range(node.get("axis", -1) % x.ndim, x.ndim))
    wide = x.to(torch_dtype(node, node.get("stash_type", 1)))
    return (wide * torch.rsqrt((wide**2).mean(over, keepdim=True) + node.get("epsilon", 1e-5))).to(x.dtype) * scale


@operator("GroupNormalization")
def group_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, epsilon = node.get("num_groups"), node.get("epsilon", 1e-5)
    if scale.shape[0] == x.shape[1]:
        return functional.group_norm(x, groups, scale, bias, epsilon)
    # Before opset 21 scale and bias were per group.
    each = x.shape[1] // groups
    return functional.group_norm(x, groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


@operator("LRN")
def lrn(node: Node, x: Tensor) -> Tensor:
    size, alpha = node.get("size"), node.get("alpha", 1e-4)
    squares = functional.pad((x * x).unsqueeze(1), [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2])
    window = sum((squares.narrow(2, i, x.shape[1]) for i in range(size)), torch.zeros(())).squeeze(1)
    scaled: Tensor = (node.get("bias", 1.0) + alpha / size * window) ** node.get("beta", 0.75)
    return x / scaled


@operator("LpNormalization")
def lp_normalization(node: Node, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, node.get("p", 2), dim=node.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node, x: Tensor) -> Tensor:
    axes = node.ints("axes") or [0, 2, 3]
    mean = x.mean(axes, keepdim=True)
    deviation = torch.sqrt((x * x).mean(axes, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)
