"""Rounds weights so that a layer's outputs, not its weights, move least.

Rounding each weight to the nearest code is best only if inputs are independent. Here weights are rounded one input after the
other, and the error of each is made up for by those not yet rounded, as the inputs' covariance allows (GPTQ: Frantar et al.,
2022, after Hassibi's optimal brain surgeon). What is left of the mean goes into the bias.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeml.exporter.quantize.layers import Floats, Moments

DAMPING: Final = 0.1  # of the mean variance, added to every input: few samples span few directions
LIMIT: Final = 127
LIMIT4: Final = 7
LEAST_SCALE: Final = 1e-4
TINY: Final = 1e-30  # for a layer of zeros
CLIPS: Final = np.linspace(1.0, 0.6, 9)  # of a block's largest magnitude, tried for 4 bits: 5 % apart


def scales_of(weights: Floats) -> Floats:
    """One scale per output channel: largest magnitude / 127, no less than LEAST_SCALE of the layer's largest scale.

    A channel of zeros still has a bias, which is stored in steps of scale * input scale and must neither vanish nor overflow.
    float32 values, as files keep them.
    """
    scales = np.abs(weights.reshape(len(weights), -1)).max(axis=1) / LIMIT
    least = max(float(scales.max(initial=0.0)) * LEAST_SCALE, TINY)
    found: Floats = np.maximum(scales, least).astype(np.float32).astype(np.float64)
    return found


def block_scales(weights: Floats, block: int) -> Floats:
    """One scale for each `block` inputs of each output, (outputs, blocks), for codes from -7 to 7.

    Sixteen levels are few: each scale is the one of CLIPS * largest magnitude / 7 that rounds the block's weights with the
    least squared error.
    """
    outputs, inputs = weights.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block))
    padded[:, :inputs] = weights
    cut = padded.reshape(outputs, blocks, block)
    largest = np.maximum(np.abs(cut).max(axis=2), TINY)
    tried = (largest[None] * CLIPS[:, None, None] / LIMIT4).astype(np.float32).astype(np.float64)
    errors = [np.sum((_nearest(cut, scales[:, :, None], LIMIT4) - cut) ** 2, axis=2) for scales in tried]
    best = np.argmin(np.stack(errors), axis=0)
    found: Floats = np.take_along_axis(tried, best[None], axis=0)[0]
    return found


def spread(scales: Floats, block: int, inputs: int) -> Floats:
    """Block scales (outputs, blocks) as one scale per weight, (outputs, inputs)."""
    return np.repeat(scales, block, axis=1)[:, :inputs]


def round_layer(weights: Floats, seen: Moments, *, block: int | None = None) -> tuple[Floats, Floats, Floats]:
    """(rounded weights, their scales, what to add to the bias) for weights (output channels, …) of a layer with `seen` inputs.

    Rounded weights are codes * scale; output channels are split evenly over the groups of `seen`. Eight bits with a scale per
    output channel, or with `block` four bits with scales (outputs, blocks) as `block_scales` gives them.
    """
    groups = len(seen.mean)
    flat = weights.reshape(len(weights), -1)
    if block is None:
        scales, limit = scales_of(weights), LIMIT
        grid = np.broadcast_to(scales[:, None], flat.shape)
    else:
        scales, limit = block_scales(flat, block), LIMIT4
        grid = spread(scales, block, flat.shape[1])
    apart, grids = (values.reshape(groups, len(weights) // groups, -1) for values in (flat, grid))
    rounded = np.stack([_rounded(apart[g], grids[g], seen.covariance[g], limit) for g in range(groups)])
    shift = np.einsum("goi,gi->go", apart - rounded, seen.mean).ravel()
    return rounded.reshape(weights.shape), scales, shift


def _nearest(weights: Floats, grid: Floats, limit: int) -> Floats:
    nearest: Floats = np.clip(np.round(weights / grid), -limit, limit) * grid
    return nearest


def _rounded(weights: Floats, grid: Floats, covariance: Floats, limit: int) -> Floats:
    """Weights (outputs, inputs) as multiples of `grid`, inputs of largest variance first."""
    nearest = _nearest(weights, grid, limit)
    if not covariance.size:
        return nearest
    variance = np.diag(covariance)
    damping = DAMPING * float(variance.mean())
    if damping <= 0.0 or not np.isfinite(covariance).all():
        return nearest
    order = np.argsort(-variance, kind="stable")
    damped = covariance[np.ix_(order, order)] + damping * np.eye(len(order))
    # Row i of the upper factor of the inverse holds how input i's error is shared out among the inputs after it.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, steps, result = weights[:, order].copy(), grid[:, order], np.empty_like(weights)
    for i in range(len(order)):
        result[:, i] = _nearest(left[:, i], steps[:, i], limit)
        error = (left[:, i] - result[:, i]) / upper[i, i]
        left[:, i + 1 :] -= np.outer(error, upper[i, i + 1 :])
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    rounded = result[:, back]
    return np.where(_loss(weights - rounded, covariance) <= _loss(weights - nearest, covariance), rounded.T, nearest.T).T


def _loss(error: Floats, covariance: Floats) -> Floats:
    """The variance of each output's error."""
    lost: Floats = np.sum((error @ covariance) * error, axis=1)
    return lost
