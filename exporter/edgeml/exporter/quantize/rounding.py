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
LEAST_SCALE: Final = 1e-4
TINY: Final = 1e-30  # for a layer of zeros


def scales_of(weights: Floats) -> Floats:
    """One scale per output channel: largest magnitude / 127, no less than LEAST_SCALE of the layer's largest scale.

    A channel of zeros still has a bias, which is stored in steps of scale * input scale and must neither vanish nor overflow.
    float32 values, as files keep them.
    """
    scales = np.abs(weights.reshape(len(weights), -1)).max(axis=1) / LIMIT
    least = max(float(scales.max(initial=0.0)) * LEAST_SCALE, TINY)
    found: Floats = np.maximum(scales, least).astype(np.float32).astype(np.float64)
    return found


def round_layer(weights: Floats, seen: Moments) -> tuple[Floats, Floats, Floats]:
    """(rounded weights, their scales, what to add to the bias) for weights (output channels, …) of a layer with `seen` inputs.

    Rounded weights are codes * scale; output channels are split evenly over the groups of `seen`.
    """
    groups = len(seen.mean)
    scales = scales_of(weights)
    flat = weights.reshape(groups, len(weights) // groups, -1)
    grid = scales.reshape(groups, -1)
    rounded = np.stack([_rounded(flat[g], grid[g], seen.covariance[g]) for g in range(groups)])
    shift = np.einsum("goi,gi->go", flat - rounded, seen.mean).ravel()
    return rounded.reshape(weights.shape), scales, shift


def _rounded(weights: Floats, scales: Floats, covariance: Floats) -> Floats:
    """Weights (outputs, inputs) on the grid of `scales`, inputs of largest variance first."""
    nearest = np.clip(np.round(weights / scales[:, None]), -LIMIT, LIMIT) * scales[:, None]
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
    left, result = weights[:, order].copy(), np.empty_like(weights)
    for i in range(len(order)):
        result[:, i] = np.clip(np.round(left[:, i] / scales), -LIMIT, LIMIT) * scales
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
