"""Rounds weights so that a layer's outputs, not its weights, move least.

Rounding each weight to the nearest code is best only if inputs are independent. Here weights are rounded one input after the
other, and the error of each is made up for by those not yet rounded, as the inputs' covariance allows (GPTQ: Frantar et al.,
2022, after Hassibi's optimal brain surgeon). What is left of the mean goes into the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeml.exporter.quantize.layers import Floats, Moments

Places = slice | NDArray[np.int64]
Nearest = Callable[[Floats, Places, Places], Floats]
"""The nearest value that can be stored, for weights of these rows and columns."""

DAMPING: Final = 0.1  # of the mean variance, added to every input: few samples span few directions
LIMIT: Final = 127
LIMIT4: Final = 7
LEAST_SCALE: Final = 1e-4
TINY: Final = 1e-30  # for a layer of zeros
PALETTE_ROUNDS: Final = 100
PALETTE_BINS: Final = 1024
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
    errors = [
        np.sum((np.clip(np.round(cut / steps), -LIMIT4, LIMIT4) * steps - cut) ** 2, axis=2) for steps in tried[..., None]
    ]
    best = np.argmin(np.stack(errors), axis=0)
    found: Floats = np.take_along_axis(tried, best[None], axis=0)[0]
    return found


def spread(scales: Floats, block: int, inputs: int) -> Floats:
    """Block scales (outputs, blocks) as one scale per weight, (outputs, inputs)."""
    return np.repeat(scales, block, axis=1)[:, :inputs]


def round_layer(
    weights: Floats, seen: Moments, *, block: int | None = None, pinned: bool = False
) -> tuple[Floats, Floats, Floats]:
    """(rounded weights, their scales, what to add to the bias) for weights (output channels, …) of a layer with `seen` inputs.

    Rounded weights are codes * scale; output channels are split evenly over the groups of `seen`. Eight bits with a scale per
    output channel, or with `block` four bits with scales (outputs, blocks) as `block_scales` gives them. `pinned` keeps the
    largest weight of each scale at the largest code, so that whoever finds scales anew finds the same.
    """
    flat = weights.reshape(len(weights), -1)
    if block is None:
        scales, limit = scales_of(weights), LIMIT
        grid = np.broadcast_to(scales[:, None], flat.shape)
    else:
        scales, limit = block_scales(flat, block), LIMIT4
        grid = spread(scales, block, flat.shape[1])
    fixed = np.where(_largest(flat, block or flat.shape[1]), np.sign(flat) * limit * grid, np.nan) if pinned else None

    def nearest(values: Floats, rows: Places, columns: Places) -> Floats:
        steps = grid[rows, columns]
        found: Floats = np.clip(np.round(values / steps), -limit, limit) * steps
        return found if fixed is None else np.where(np.isnan(fixed[rows, columns]), found, fixed[rows, columns])

    rounded, shift = _by_group(flat, seen, nearest)
    return rounded.reshape(weights.shape), scales, shift


def round_to_palette(weights: Floats, seen: Moments, size: int) -> tuple[Floats, Floats]:
    """(weights as values of a palette that k-means finds, what to add to the bias); the values are float16 ones."""
    flat = weights.reshape(len(weights), -1)
    palette = palette_of(flat, size)
    middles = (palette[1:] + palette[:-1]) / 2

    def nearest(values: Floats, rows: Places, columns: Places) -> Floats:  # noqa: ARG001 - all weights share the palette
        found: Floats = palette[np.searchsorted(middles, values)]
        return found

    rounded, shift = _by_group(flat, seen, nearest)
    return rounded.reshape(weights.shape), shift


def palette_of(weights: Floats, size: int) -> Floats:
    """At most `size` values, ascending, that are near to all weights: the better of two that k-means finds (Lloyd, 1957).

    One starts with even distances; the other as many values do best, as dense as the cube root of the weights' density (Panter
    and Dite, 1951).
    """
    values = np.sort(weights.ravel())
    counts, edges = np.histogram(values, bins=PALETTE_BINS)
    filled = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    shares = (np.arange(size) + 0.5) / size
    starts = (np.interp(shares * filled[-1], filled, edges), edges[0] + shares * (edges[-1] - edges[0]))
    return min((_settled(values, start) for start in starts), key=lambda palette: _palette_error(values, palette))


def _settled(values: Floats, palette: Floats) -> Floats:
    """The palette after k-means on ascending values: groups lose those that nothing is nearest to."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    for _ in range(PALETTE_ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(values, (palette[1:] + palette[:-1]) / 2), [len(values)]])
        counts = np.diff(ends)
        means = np.diff(sums[ends])[counts > 0] / counts[counts > 0]
        if len(means) == len(palette) and np.allclose(means, palette, rtol=1e-6, atol=0.0):
            break
        palette = means
    return np.unique(palette.astype(np.float16)).astype(np.float64)


def _palette_error(values: Floats, palette: Floats) -> float:
    nearest = palette[np.searchsorted((palette[1:] + palette[:-1]) / 2, values)]
    return float(np.sum((nearest - values) ** 2))


def _largest(flat: Floats, block: int) -> NDArray[np.bool_]:
    """Where the largest magnitude of each `block` inputs of each output stands."""
    outputs, inputs = flat.shape
    found = np.zeros(flat.shape, bool)
    for start in range(0, inputs, block):
        at = start + np.abs(flat[:, start : start + block]).argmax(axis=1)
        found[np.arange(outputs), at] = True
    return found


def _by_group(flat: Floats, seen: Moments, nearest: Nearest) -> tuple[Floats, Floats]:
    """(rounded, shift of the mean) for weights (outputs, inputs) whose outputs are split evenly over the groups."""
    groups = len(seen.mean)
    rounded = _rounded(flat, seen.covariance, nearest)
    shift = np.einsum("goi,gi->go", (flat - rounded).reshape(groups, len(flat) // groups, -1), seen.mean).ravel()
    return rounded, shift


def _rounded(weights: Floats, covariance: Floats, to_nearest: Nearest) -> Floats:
    """Weights (outputs, inputs) rounded, inputs of largest variance first; all groups at once."""
    nearest = to_nearest(weights, slice(None), slice(None))
    if not covariance.size:
        return nearest
    groups, inputs = covariance.shape[:2]
    variance = np.ascontiguousarray(np.diagonal(covariance, axis1=1, axis2=2))
    damping = DAMPING * variance.mean(axis=1)
    known = (damping > 0.0) & np.isfinite(covariance).all(axis=(1, 2))
    if not known.any():
        return nearest
    covariance, damping, number = covariance[known], damping[known], int(known.sum())
    rows = np.arange(len(weights)).reshape(groups, -1)[known].ravel()
    order = np.argsort(-variance[known], axis=1, kind="stable")
    sorted_ = np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2)
    # Row i of the upper factor of the inverse holds how input i's error is shared out among the inputs after it.
    upper = np.linalg.cholesky(np.linalg.inv(sorted_ + damping[:, None, None] * np.eye(inputs))).swapaxes(1, 2)
    before = weights[rows].reshape(number, -1, inputs)
    left = np.take_along_axis(before, order[:, None, :], 2)
    result = np.empty_like(left)
    for i in range(inputs):
        columns = np.repeat(order[:, i], left.shape[1])
        result[:, :, i] = to_nearest(left[:, :, i].ravel(), rows, columns).reshape(number, -1)
        error = (left[:, :, i] - result[:, :, i]) / upper[:, i, i, None]
        left[:, :, i + 1 :] -= error[:, :, None] * upper[:, i, None, i + 1 :]
    rounded = np.take_along_axis(result, np.argsort(order, axis=1)[:, None, :], 2)
    plain = nearest[rows].reshape(before.shape)
    better = _loss(before - rounded, covariance) <= _loss(before - plain, covariance)
    found = nearest.copy()
    found[rows] = np.where(better[:, :, None], rounded, plain).reshape(-1, inputs)
    return found


def _loss(error: Floats, covariance: Floats) -> Floats:
    """The variance of each output's error, (groups, outputs of a group)."""
    lost: Floats = np.sum((error @ covariance) * error, axis=2)
    return lost
