"""Cases of shapes, slices, gathers, scatters, orders and tensor makers; expected values by numpy."""

# ruff: noqa: E501 - one case a line reads as a table

from __future__ import annotations

from typing import Any

import numpy as np

from edgeml.runtime.backends import Array
from tests.unit.mil_builder import case

RNG = np.random.default_rng(11)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
IMAGE = np.arange(2 * 4 * 4 * 6, dtype=np.float32).reshape(2, 4, 4, 6)
WHOLE = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
PICK = np.array([2, 0, -1], np.int32)


def _pixel_shuffle(x: Array, factor: int) -> Array:
    """out[n, c, h * f + i, w * f + j] = x[n, c * f^2 + i * f + j, h, w]."""
    n, channels, height, width = x.shape
    out = np.zeros((n, channels // factor**2, height * factor, width * factor), x.dtype)
    for c in range(channels // factor**2):
        for i in range(factor):
            for j in range(factor):
                out[:, c, i::factor, j::factor] = x[:, c * factor**2 + i * factor + j]
    return out


def _depth_to_space(x: Array, block: int) -> Array:
    """out[n, c, h * b + i, w * b + j] = x[n, (i * b + j) * C + c, h, w]."""
    n, depth, height, width = x.shape
    channels = depth // block**2
    out = np.zeros((n, channels, height * block, width * block), x.dtype)
    for i in range(block):
        for j in range(block):
            out[:, :, i::block, j::block] = x[:, (i * block + j) * channels : (i * block + j + 1) * channels]
    return out


def _space_to_depth(x: Array, block: int) -> Array:
    return np.concatenate([x[:, :, i::block, j::block] for i in range(block) for j in range(block)], 1)


def _space_to_batch(x: Array) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    return np.concatenate([padded[:, :, i::2, j::3] for i in range(2) for j in range(3)])


def _windows(x: Array) -> Array:
    return np.stack([x[:, start : start + 2] for start in (0, 1)], 1)


def _scatter(mode: str, data: Array, places: Any, updates: Array) -> Array:
    out = data.copy()
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}
    function[mode].at(out, places, updates)
    return out


SHAPES = [
    case("reshape", lambda mb, a: mb.reshape(x=a, shape=[4, -1]), X, lambda x: x.reshape(4, 6)),
    case("reshape", lambda mb, a: mb.reshape(x=a, shape=[0, -1]), X, lambda x: x.reshape(3, 8), "zero-copies-from-the-right"),
    case("reshape", lambda mb, a: mb.reshape(x=a, shape=[0, -1, 0, 0]), X, lambda x: x[None], "zero-beyond"),
    case("reshape_like", lambda mb, a, b: mb.reshape_like(x=a, ref_tensors=(b, b), begins=[2, 0], ends=[3, 2], end_masks=[False, False]),
         (X, X), lambda x, _: x.reshape(4, 2, 3)),
    case("flatten2d", lambda mb, a: mb.flatten2d(x=a, axis=-1), X, lambda x: x.reshape(6, 4)),
    case("transpose", lambda mb, a: mb.transpose(x=a, perm=[2, 0, 1]), X, lambda x: x.transpose(2, 0, 1)),
    case("expand_dims", lambda mb, a: mb.expand_dims(x=a, axes=[0, -1]), X, lambda x: x[None, ..., None]),
    case("squeeze", lambda mb, a: mb.squeeze(x=a, axes=[1]), X[:, :1], lambda x: x[:, 0]),
    case("squeeze", lambda mb, a: mb.squeeze(x=a), X[:1, :1], lambda x: x[0, 0], "all"),
    case("concat", lambda mb, a, b: mb.concat(values=(a, b), axis=-1), (X, X[..., :2]), lambda a, b: np.concatenate([a, b], -1)),
    case("concat", lambda mb, a, b: mb.concat(values=(a, b), axis=1, interleave=True), (X, -X),
         lambda a, b: np.stack([a, b], 2).reshape(2, 6, 4), "interleave", fixed=False),
    case("concat", lambda mb, a: mb.concat(values=[mb.gather(x=a, indices=i, axis=0) for i in (2, 0)], axis=0), X[0, 0],
         lambda x: x[[2, 0]], "numbers"),
    case("stack", lambda mb, a, b: mb.stack(values=(a, b), axis=1), (X, -X), lambda a, b: np.stack([a, b], 1)),
    case("split", lambda mb, a: mb.split(x=a, num_splits=2, axis=-1), X, lambda x: np.split(x, 2, -1), "even"),
    case("split", lambda mb, a: mb.split(x=a, split_sizes=[1, 3], axis=2), X, lambda x: [x[..., :1], x[..., 1:]], "sizes"),
    case("tile", lambda mb, a: mb.tile(x=a, reps=[1, 2, 3]), X, lambda x: np.tile(x, (1, 2, 3))),
    case("shape", lambda mb, a: mb.shape(x=a), X, lambda x: np.array(x.shape, np.int32)),
    case("pad", lambda mb, a: mb.pad(x=a, pad=[1, 2, 0, 3], constant_val=2.5), X,
         lambda x: np.pad(x, ((0, 0), (1, 2), (0, 3)), constant_values=2.5), "constant"),
    case("pad", lambda mb, a: mb.pad(x=a, pad=[2, 1, 1, 3], mode="reflect"), X,
         lambda x: np.pad(x, ((0, 0), (2, 1), (1, 3)), "reflect"), "reflect"),
    case("pad", lambda mb, a: mb.pad(x=a, pad=[2, 1, 1, 3], mode="replicate"), X,
         lambda x: np.pad(x, ((0, 0), (2, 1), (1, 3)), "edge"), "replicate"),
    case("reverse", lambda mb, a: mb.reverse(x=a, axes=[0, 2]), X, lambda x: x[::-1, :, ::-1]),
    case("reverse_sequence", lambda mb, a: mb.reverse_sequence(x=a, lengths=[2, 3], seq_axis=1, batch_axis=0), X,
         lambda x: np.stack([x[0, [1, 0, 2]], x[1, [2, 1, 0]]])),
    case("depth_to_space", lambda mb, a: mb.depth_to_space(x=a, block_size=2), IMAGE, lambda x: _depth_to_space(x, 2)),
    case("space_to_depth", lambda mb, a: mb.space_to_depth(x=a, block_size=2), IMAGE, lambda x: _space_to_depth(x, 2)),
    case("pixel_shuffle", lambda mb, a: mb.pixel_shuffle(x=a, upscale_factor=2), IMAGE, lambda x: _pixel_shuffle(x, 2)),
    case("pixel_unshuffle", lambda mb, a: mb.pixel_unshuffle(x=a, downscale_factor=np.uint32(2)), _pixel_shuffle(IMAGE, 2), lambda _: IMAGE),
    case("space_to_batch", lambda mb, a: mb.space_to_batch(x=a, block_shape=[2, 3], paddings=[[1, 1], [0, 0]]), IMAGE, _space_to_batch),
    case("batch_to_space", lambda mb, a: mb.batch_to_space(x=a, block_shape=[2, 3], crops=[[1, 1], [0, 0]]), _space_to_batch(IMAGE),
         lambda _: IMAGE),
    case("sliding_windows", lambda mb, a: mb.sliding_windows(x=a, axis=1, size=2), X, _windows),
]  # fmt: skip
SLICES = [
    case("slice_by_index", lambda mb, a: mb.slice_by_index(x=a, begin=[0, 1, -3], end=[2, 3, -1]), X, lambda x: x[0:2, 1:3, -3:-1]),
    case("slice_by_index", lambda mb, a: mb.slice_by_index(x=a, begin=[1, 0, 3], end=[2, 3, 0], stride=[1, 2, -2]), X,
         lambda x: x[1:2, 0:3:2, 3:0:-2], "strides"),
    case("slice_by_index", lambda mb, a: mb.slice_by_index(x=a, begin=[1, 9, 9], end=[9, 9, 9], begin_mask=[False, True, True],
         end_mask=[False, True, True], squeeze_mask=[True, False, False], stride=[1, 1, -1]), X, lambda x: x[1, :, ::-1], "masks"),
    case("slice_by_index", lambda mb, a, b: mb.slice_by_index(x=a, begin=b, end=[2, 3, 4]), (X, np.array([1, 0, 2], np.int32)),
         lambda x, b: x[b[0]:2, b[1]:3, b[2]:4], "computed"),
    case("slice_by_size", lambda mb, a: mb.slice_by_size(x=a, begin=[0, 1, 2], size=[2, 1, -1]), X, lambda x: x[:, 1:2, 2:]),
    case("slice_update", lambda mb, a, b: mb.slice_update(x=a, update=b, begin=[0, 1, 0], end=[2, 3, 4], stride=[1, 1, 2]),
         (X, -X[:, 1:, :2]), lambda x, u: np.concatenate([x[:, :1], np.stack([u[..., 0], x[:, 1:, 1], u[..., 1], x[:, 1:, 3]], -1)], 1),
         target="iOS18"),
]  # fmt: skip
ROWS = np.array([[0, 2], [1, -1]], np.int32)
GATHERS = [
    case("gather", lambda mb, a: mb.gather(x=a, indices=PICK, axis=1), X, lambda x: x[:, [2, 0, 2]]),
    case("gather", lambda mb, a: mb.gather(x=a, indices=ROWS, axis=2), X, lambda x: x[:, :, ROWS], "matrix"),
    case("gather", lambda mb, a: mb.gather(x=a, indices=ROWS, axis=1, batch_dims=1), X,
         lambda x: np.stack([x[0, [0, 2]], x[1, [1, 2]]]), "batch"),
    case("gather_along_axis", lambda mb, a: mb.gather_along_axis(x=a, indices=WHOLE % 3, axis=1), X,
         lambda x: np.take_along_axis(x, WHOLE % 3, 1)),
    case("gather_nd", lambda mb, a: mb.gather_nd(x=a, indices=ROWS), X, lambda x: np.stack([x[0, 2], x[1, -1]])),
    case("gather_nd", lambda mb, a: mb.gather_nd(x=a, indices=ROWS[..., None], batch_dims=1), X,
         lambda x: np.stack([x[0, [0, 2]], x[1, [1, 2]]]), "batch"),
]  # fmt: skip
TWICE = np.array([2, 0, 2], np.int32)
UPDATES = RNG.uniform(0.5, 2, size=(2, 3, 4)).astype(np.float32)
SCATTERS = [
    *(
        case("scatter", lambda mb, a, u, mode=mode: mb.scatter(data=a, indices=TWICE, updates=u, axis=1, mode=mode), (X, UPDATES),
             lambda x, u, mode=mode: _scatter(mode, x, (slice(None), TWICE), u), mode)
        for mode in ("add", "sub", "mul", "div", "max", "min")
    ),
    case("scatter", lambda mb, a, u: mb.scatter(data=a, indices=PICK[:2], updates=u, axis=1, mode="update"), (X, UPDATES[:, :2]),
         lambda x, u: np.stack([u[:, 1], x[:, 1], u[:, 0]], 1), "update"),
    case("scatter_along_axis", lambda mb, a, u: mb.scatter_along_axis(data=a, indices=WHOLE % 3, updates=u, axis=1, mode="add"), (X, UPDATES),
         lambda x, u: _scatter("add", x, (np.arange(2)[:, None, None], WHOLE % 3, np.arange(4)), u), fixed=False),
    case("scatter_nd", lambda mb, a, u: mb.scatter_nd(data=a, indices=ROWS, updates=u, mode="add"), (X, UPDATES[0, :2]),
         lambda x, u: _scatter("add", x, (np.array([0, 1]), np.array([2, 2])), u)),
]  # fmt: skip
CENTRED = np.array([[[5, 5, 4, 4], [5.5, 5, 4, 4], [20, 5, 4, 4]]], np.float32)
ORDERS = [
    case("argsort", lambda mb, a: mb.argsort(x=a, axis=1), X, lambda x: np.argsort(-x, 1)),
    case("argsort", lambda mb, a: mb.argsort(x=a, ascending=True), X, lambda x: np.argsort(x, -1), "ascending"),
    case("topk", lambda mb, a: mb.topk(x=a, k=2, axis=2), X, lambda x: [-np.sort(-x)[..., :2], np.argsort(-x)[..., :2]]),
    case("topk", lambda mb, a: mb.topk(x=a, k=1, axis=1, ascending=True), X, lambda x: [x.min(1)[:, None], x.argmin(1)[:, None]], "least"),
    case("non_zero", lambda mb, a: mb.non_zero(x=a), np.array([[0, 3, 0], [4, 0, 5]], np.int32), lambda _: np.array([[0, 1], [1, 0], [1, 2]])),
    case("non_maximum_suppression",
         lambda mb, b, s: mb.non_maximum_suppression(boxes=b, scores=s, iou_threshold=0.3, max_boxes=3),
         (CENTRED.transpose(0, 2, 1).copy(), np.array([[[0.6, 0.9, 0.5]]], np.float32)),
         lambda b, _: [np.stack([b[..., 1], b[..., 2], 0 * b[..., 0]], -1), np.array([[[0.9, 0.5, 0]]]), np.array([[1, 2, -1]])]),
    case("non_maximum_suppression",
         lambda mb, b, s: mb.non_maximum_suppression(boxes=b, scores=s, iou_threshold=0.3, score_threshold=0.55, max_boxes=3),
         (CENTRED, np.array([[[0.6], [0.9], [0.5]]], np.float32)),
         lambda b, _: [np.stack([b[0, 1], 0 * b[0, 0], 0 * b[0, 0]])[None], np.array([[[0.9], [0], [0]]]), np.array([[1, -1, -1]]), np.array([1])],
         "threshold", target="iOS15"),
]  # fmt: skip
MAKERS = [
    case("fill", lambda mb, a: mb.fill(shape=mb.shape(x=a), value=2.5), X, lambda x: np.full(x.shape, 2.5)),
    case("fill_like", lambda mb, a: mb.fill_like(ref_tensor=a, value=1.5), X, lambda x: np.full(x.shape, 1.5)),
    case("range_1d", lambda mb, a: mb.range_1d(start=mb.reduce_sum(x=a), end=11, step=3), np.array([1, 1], np.int32),
         lambda _: np.array([2, 5, 8])),
    case("one_hot", lambda mb, a: mb.one_hot(indices=a, one_hot_vector_size=4, axis=0, on_value=2.0, off_value=-1.0), np.array([3, 0], np.int32),
         lambda _: np.array([[-1, 2], [-1, -1], [-1, -1], [2, -1]])),
    case("band_part", lambda mb, a: mb.band_part(x=a, lower=1, upper=0), X, lambda x: np.triu(np.tril(x), -1)),
    case("cumsum", lambda mb, a: mb.cumsum(x=a, axis=1), X, lambda x: x.cumsum(1)),
    case("cumsum", lambda mb, a: mb.cumsum(x=a, axis=1, exclusive=True, reverse=True), X,
         lambda x: x[:, ::-1].cumsum(1)[:, ::-1] - x, "exclusive-reverse", fixed=False),
]  # fmt: skip
CASES = [*SHAPES, *SLICES, *GATHERS, *SCATTERS, *ORDERS, *MAKERS]
