"""Cases of convolution, pooling, normalisation, recurrence, images, attention, quantization; expected by loops or torch."""

# ruff: noqa: E501 - one case a line reads as a table

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from edgeml.runtime.backends import Array
from tests.unit.mil_builder import Case, case

RNG = np.random.default_rng(13)
IMAGE = RNG.normal(size=(1, 4, 7, 6)).astype(np.float32)
KERNEL = RNG.normal(size=(6, 2, 3, 2)).astype(np.float32)
BIAS = RNG.normal(size=6).astype(np.float32)
SIGNAL = RNG.normal(size=(1, 3, 9)).astype(np.float32)
VOLUME = RNG.normal(size=(1, 2, 4, 5, 3)).astype(np.float32)


def _convolve(  # noqa: PLR0917 - the operation's own parameters
    x: Array, weight: Array, pads: list[tuple[int, int]], strides: list[int], dilations: list[int], groups: int
) -> Array:
    """The definition, as sums over shifted windows."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    outs, ins, *kernel = weight.shape
    sizes = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], kernel, dilations, strides, strict=True)]
    result = np.zeros((x.shape[0], outs, *sizes))
    for out in range(outs):
        group = out // (outs // groups)
        for where in np.ndindex(*kernel):
            cut = tuple(
                slice(w * d, w * d + (n - 1) * s + 1, s) for w, d, n, s in zip(where, dilations, sizes, strides, strict=True)
            )
            part = x[(slice(None), slice(group * ins, (group + 1) * ins), *cut)]
            result[:, out] += np.einsum("nc...,c->n...", part, weight[(out, slice(None), *where)].astype(np.float64))
    return result


def _conv(label: str, pads: list[tuple[int, int]], strides: list[int], dilations: list[int], **more: Any) -> Case:
    return case(
        "conv",
        lambda mb, a: mb.conv(x=a, weight=KERNEL, bias=BIAS, strides=strides, dilations=dilations, groups=2, **more),
        IMAGE,
        lambda x: _convolve(x, KERNEL, pads, strides, dilations, 2) + BIAS[:, None, None],
        label,
    )


def _spread(x: Array, weight: Array, stride: int) -> Array:
    """Transposed convolution in one dimension as it is defined: each input adds a scaled kernel."""
    ins, outs, width = weight.shape
    result = np.zeros((1, outs, (x.shape[2] - 1) * stride + width))
    for place in range(x.shape[2]):
        for channel in range(ins):
            result[0, :, place * stride : place * stride + width] += x[0, channel, place] * weight[channel]
    return result


UP = RNG.normal(size=(3, 2, 4)).astype(np.float32)
CONVOLUTIONS = [
    _conv("valid", [(0, 0), (0, 0)], [1, 1], [1, 1], pad_type="valid"),
    _conv("same", [(1, 1), (0, 0)], [2, 2], [1, 1], pad_type="same"),
    _conv("same-odd", [(1, 1), (0, 1)], [1, 1], [1, 1], pad_type="same"),
    _conv("same-lower", [(1, 1), (1, 0)], [1, 1], [1, 1], pad_type="same_lower"),
    _conv("custom-dilated", [(2, 1), (0, 3)], [2, 1], [2, 3], pad_type="custom", pad=[2, 1, 0, 3]),
    case("conv", lambda mb, a: mb.conv(x=a, weight=KERNEL[:3, :, :, 0].transpose(0, 2, 1)[:, :3, :2].copy()), SIGNAL,
         lambda x: _convolve(x, KERNEL[:3, :, :, 0].transpose(0, 2, 1)[:, :3, :2], [(0, 0)], [1], [1], 1), "1d"),
    case("conv", lambda mb, a: mb.conv(x=a, weight=KERNEL[:2, :, :2].reshape(2, 2, 2, 2, 1).copy()), VOLUME,
         lambda x: _convolve(x, KERNEL[:2, :, :2].reshape(2, 2, 2, 2, 1), [(0, 0)] * 3, [1] * 3, [1] * 3, 1), "3d"),
    case("conv_transpose", lambda mb, a: mb.conv_transpose(x=a, weight=UP, strides=[2]), SIGNAL, lambda x: _spread(x, UP, 2)),
    case("conv_transpose", lambda mb, a: mb.conv_transpose(x=a, weight=UP, strides=[2], pad_type="custom", pad=[1, 2]), SIGNAL,
         lambda x: _spread(x, UP, 2)[..., 1:-2], "custom"),
    case("conv_transpose", lambda mb, a: mb.conv_transpose(x=a, weight=UP, strides=[2], pad_type="same"), SIGNAL,
         lambda x: _spread(x, UP, 2)[..., 1:-1], "same"),
]  # fmt: skip


def _t(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x))


POOLS = [
    case("max_pool", lambda mb, a: mb.max_pool(x=a, kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]), IMAGE,
         lambda x: functional.max_pool2d(_t(x), (3, 2), 2, 1), "custom"),
    case("max_pool", lambda mb, a: mb.max_pool(x=a, kernel_sizes=[3, 3], strides=[2, 2], pad_type="valid", ceil_mode=True), IMAGE,
         lambda x: functional.max_pool2d(_t(x), 3, 2, ceil_mode=True), "ceil"),
    case("avg_pool", lambda mb, a: mb.avg_pool(x=a, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]), IMAGE,
         lambda x: functional.avg_pool2d(_t(x), 3, 2, 1), "padding-counts"),
    case("avg_pool", lambda mb, a: mb.avg_pool(x=a, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1],
         exclude_padding_from_average=True), IMAGE, lambda x: functional.avg_pool2d(_t(x), 3, 2, 1, count_include_pad=False), "inside-only"),
    case("avg_pool", lambda mb, a: mb.avg_pool(x=a, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True),
         IMAGE, lambda x: functional.avg_pool2d(_t(x), 3, 2, 1, ceil_mode=True), "ceil"),
    case("avg_pool", lambda mb, a: mb.avg_pool(x=a, kernel_sizes=[2], strides=[2], pad_type="same", exclude_padding_from_average=True), SIGNAL,
         lambda x: np.concatenate([x[..., :8].reshape(1, 3, 4, 2).mean(-1), x[..., 8:]], -1), "same-1d"),
    case("l2_pool", lambda mb, a: mb.l2_pool(x=a, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"), IMAGE[:, :, :6],
         lambda x: np.sqrt((x.reshape(1, 4, 3, 2, 3, 2) ** 2).sum((3, 5)))),
]  # fmt: skip
FOUR = np.array([0.5, 1.5, 2.0, 0.1], np.float32)
COLUMN = FOUR[:, None, None]


def _neighbours(x: Array) -> Array:
    """Sum of squares over channels c - 1 .. c + 1."""
    padded = np.pad(x**2, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return np.asarray(padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:])


NORMS = [
    case("batch_norm", lambda mb, a: mb.batch_norm(x=a, mean=FOUR, variance=2 * FOUR, gamma=-FOUR, beta=FOUR, epsilon=1e-3), IMAGE,
         lambda x: -COLUMN * (x - COLUMN) / np.sqrt(2 * COLUMN + 1e-3) + COLUMN),
    case("instance_norm", lambda mb, a: mb.instance_norm(x=a, gamma=FOUR, beta=-FOUR, epsilon=1e-3), IMAGE,
         lambda x: COLUMN * (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-3) - COLUMN),
    case("layer_norm", lambda mb, a: mb.layer_norm(x=a, axes=[-1], gamma=np.arange(6, dtype=np.float32), beta=np.ones(6, np.float32)), IMAGE,
         lambda x: np.arange(6) * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) + 1),
    case("layer_norm", lambda mb, a: mb.layer_norm(x=a, axes=[1, 2, 3]), IMAGE,
         lambda x: (x - x.mean()) / np.sqrt(x.var() + 1e-5), "plain"),
    case("l2_norm", lambda mb, a: mb.l2_norm(x=a, epsilon=1e-4), IMAGE, lambda x: x / np.sqrt((x**2).sum() + 1e-4)),
    case("local_response_norm", lambda mb, a: mb.local_response_norm(x=a, size=3, alpha=0.3, beta=0.5, k=2.0), IMAGE,
         lambda x: x / (2 + 0.1 * _neighbours(x)) ** 0.5),
]  # fmt: skip
STEPS = RNG.normal(size=(5, 2, 3)).astype(np.float32)
H0 = RNG.normal(size=(2, 4)).astype(np.float32)
C0 = RNG.normal(size=(2, 4)).astype(np.float32)
_PARTS = {n: (RNG.normal(size=(n * 4, 3)), RNG.normal(size=(n * 4, 4)), RNG.normal(size=n * 4)) for n in (1, 3, 4)}
GATES: dict[int, tuple[Array, ...]] = {n: tuple(part.astype(np.float32) for part in parts) for n, parts in _PARTS.items()}
BACK = tuple(-part[::-1].copy() for part in GATES[4])


def _torch_lstm(x: Array, layers: list[tuple[Array, ...]], h: Array, c: Array) -> list[Array]:
    """torch's own LSTM, whose gates stand input, forget, cell, output; MIL's input, forget, output, cell."""
    lstm = torch.nn.LSTM(3, 4, bidirectional=len(layers) == 2)
    order = np.r_[0:8, 12:16, 8:12]
    with torch.no_grad():
        for suffix, (w_ih, w_hh, b) in zip(("", "_reverse"), layers, strict=False):
            for name, value in (("weight_ih", w_ih), ("weight_hh", w_hh), ("bias_ih", b), ("bias_hh", 0 * b)):
                getattr(lstm, f"{name}_l0{suffix}").copy_(_t(value[order]))
        start = [_t(np.stack(np.split(part, len(layers), 1))) for part in (h, c)]
        steps, (h_n, c_n) = lstm(_t(x), (start[0], start[1]))
    return [steps.numpy(), np.concatenate(list(h_n.numpy()), 1), np.concatenate(list(c_n.numpy()), 1)]


def _gru(x: Array, h: Array, *, after: bool) -> list[Array]:
    w_ih, w_hh, b = (np.split(part.astype(np.float64), 3) for part in GATES[3])
    out = []
    for step in x:
        r, z = (1 / (1 + np.exp(-(step @ w_ih[i].T + h @ w_hh[i].T + b[i]))) for i in (0, 2))
        inner = r * (h @ w_hh[1].T + b[1]) if after else (r * h) @ w_hh[1].T + b[1]
        h = (1 - z) * np.tanh(step @ w_ih[1].T + inner) + z * h
        out.append(h)
    return [np.stack(out), h]


def _rnn(x: Array, h: Array) -> list[Array]:
    w_ih, w_hh, b = GATES[1]
    out = []
    for step in x[::-1]:
        h = np.maximum(0, step @ w_ih.T + h @ w_hh.T + b)
        out.append(h)
    return [np.stack(out[::-1]), h]


def _weights(n: int, suffix: str = "", parts: tuple[Array, ...] | None = None) -> dict[str, Array]:
    w_ih, w_hh, b = parts or GATES[n]
    return {f"weight_ih{suffix}": w_ih, f"weight_hh{suffix}": w_hh, f"bias{suffix}": b}


H2, C2 = np.concatenate([H0, -H0], 1), np.concatenate([C0, -C0], 1)
RECURRENT = [
    case("lstm", lambda mb, x, h, c: mb.lstm(x=x, initial_h=h, initial_c=c, output_sequence=True, **_weights(4)), (STEPS, H0, C0),
         lambda x, h, c: _torch_lstm(x, [GATES[4]], h, c), "forward"),
    case("lstm", lambda mb, x, h, c: mb.lstm(x=x, initial_h=h, initial_c=c, direction="reverse", **_weights(4)), (STEPS, H0, C0),
         lambda x, h, c: [(r := _torch_lstm(x[::-1].copy(), [GATES[4]], h, c))[1][None], r[1], r[2]], "reverse"),
    case("lstm", lambda mb, x, h, c: mb.lstm(x=x, initial_h=h, initial_c=c, direction="bidirectional", output_sequence=True,
         **_weights(4), **_weights(4, "_back", BACK)), (STEPS, H2, C2), lambda x, h, c: _torch_lstm(x, [GATES[4], BACK], h, c), "bidirectional"),
    case("gru", lambda mb, x, h: mb.gru(x=x, initial_h=h, output_sequence=True, **_weights(3)), (STEPS, H0),
         lambda x, h: _gru(x, h, after=False)),
    case("gru", lambda mb, x, h: mb.gru(x=x, initial_h=h, output_sequence=True, reset_after=True, input_bias=np.zeros(12, np.float32),
         **_weights(3)), (STEPS, H0), lambda x, h: _gru(x, h, after=True), "reset-after", target="iOS18"),
    case("rnn", lambda mb, x, h: mb.rnn(x=x, initial_h=h, output_sequence=True, direction="reverse", activation="relu", **_weights(1)),
         (STEPS, H0), _rnn),
]  # fmt: skip


def _resized(x: Array, size: tuple[int, int], *, align: bool = False) -> Array:
    return functional.interpolate(_t(x), size, mode="bilinear", align_corners=align).numpy()


RAMP = np.array([[[[0.0, 1.0]]]], np.float32).repeat(2, 2)  # a row from 0 to 1: results are the grid points of MIL's own docs
GRIDS = {
    "UNALIGN_CORNERS": [0, 0.1, 0.5, 0.9, 1],
    "STRICT_ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
    "DEFAULT": [0, 0.4, 0.8, 1, 1],
    "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9],
}
BOXES = np.array([[1, 0, 3, 4], [0, 1, 6, 5]], np.float32)
IMAGES = [
    *(
        case("resize_bilinear", lambda mb, a, mode=mode: mb.resize_bilinear(x=a, target_size_height=2, target_size_width=5, sampling_mode=mode),
             RAMP, lambda _, row=row: np.array([[[row, row]]]), mode.lower())
        for mode, row in GRIDS.items()
    ),
    case("resize", lambda mb, a: mb.resize(x=a, shape=[9, 0], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"), IMAGE,
         lambda x: _resized(x, (9, 6))),
    case("resize", lambda mb, a: mb.resize(x=a, shape=[14, 3], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"), IMAGE,
         lambda x: x.repeat(2, 2)[..., ::2], "nearest"),
    case("resize_nearest_neighbor", lambda mb, a: mb.resize_nearest_neighbor(x=a, target_size_height=14, target_size_width=3), IMAGE,
         lambda x: x.repeat(2, 2)[..., ::2]),
    case("upsample_nearest_neighbor", lambda mb, a: mb.upsample_nearest_neighbor(x=a, scale_factor_height=2, scale_factor_width=3), IMAGE,
         lambda x: x.repeat(2, 2).repeat(3, 3)),
    case("upsample_bilinear", lambda mb, a: mb.upsample_bilinear(x=a, scale_factor_height=2, scale_factor_width=3, align_corners=True), IMAGE,
         lambda x: _resized(x, (14, 18), align=True), "corners"),
    case("upsample_bilinear", lambda mb, a: mb.upsample_bilinear(x=a, scale_factor_height=2, scale_factor_width=2, align_corners=False), IMAGE,
         lambda x: _resized(x, (14, 12)), "centres"),
    case("crop", lambda mb, a: mb.crop(x=a, crop_height=[1, 2], crop_width=[0, 3]), IMAGE, lambda x: x[:, :, 1:5, :3]),
    case("crop_resize", lambda mb, a: mb.crop_resize(x=a, boxes=BOXES, box_indices=np.zeros(2, np.int32), target_height=3, target_width=5,
         sampling_mode="ALIGN_CORNERS"), IMAGE,
         lambda x: np.concatenate([_resized(x[:, :, 1:4, 0:5], (3, 5), align=True), _resized(x[:, :, 0:7, 1:6], (3, 5), align=True)])),
    case("crop_resize", lambda mb, a: mb.crop_resize(x=a, roi=BOXES.reshape(2, 1, 4, 1, 1), target_height=3, target_width=5,
         sampling_mode="ALIGN_CORNERS"), IMAGE,
         lambda x: np.stack([_resized(x[:, :, 1:4, 0:5], (3, 5), align=True), _resized(x[:, :, 0:7, 1:6], (3, 5), align=True)]),
         "roi", target="iOS16"),
    case("resample", lambda mb, a: mb.resample(x=a, coordinates=np.array([[[[2, 3], [5, 0]]]], np.float32), sampling_mode="bilinear",
         padding_mode="constant", padding_value=0.0, coordinates_mode="unnormalized", align_corners=True), IMAGE,
         lambda x: np.stack([x[:, :, 3, 2], x[:, :, 0, 5]], -1)[:, :, None]),
    case("affine", lambda mb, a: mb.affine(x=a, transform_matrix=np.array([[-1, 0, 0, 0, 1, 0]], np.float32), output_height=7, output_width=6,
         sampling_mode="bilinear", padding_mode="constant", padding_value=0.0, coordinates_mode="normalized_minus_one_to_one",
         align_corners=True), IMAGE, lambda x: x[..., ::-1]),
]  # fmt: skip
HEADS = RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
SEEN = np.tril(np.ones((5, 5), bool))


def _attention(q: Array, k: Array, v: Array) -> Array:
    scores = np.where(SEEN, np.einsum("bhqe,bhke->bhqk", q, k) / 2, -np.inf)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True) @ v)


SCALES = np.array([0.1, 0.2, 0.05, 0.4], np.float32)
ZEROS = np.array([3, -4, 0, 10], np.int8)
CODES = RNG.integers(-128, 128, size=(1, 4, 7, 6)).astype(np.int8)
QUANTIZED = [
    case("scaled_dot_product_attention", lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=SEEN),
         (HEADS, -HEADS, HEADS * 2), _attention, target="iOS18"),
    case("quantize", lambda mb, a: mb.cast(x=mb.quantize(input=a, scale=SCALES, zero_point=ZEROS, axis=1, output_dtype="int8"), dtype="int32"),
         IMAGE * 9, lambda x: np.clip(np.round(x / SCALES[:, None, None]) + ZEROS[:, None, None], -128, 127).astype(np.int32), fixed=False),
    case("dequantize", lambda mb, a: mb.dequantize(input=mb.cast(x=a, dtype="int8"), scale=SCALES, zero_point=ZEROS, axis=1),
         CODES.astype(np.int32), lambda x: (x - ZEROS[:, None, None].astype(np.float64)) * SCALES[:, None, None], fixed=False),
]  # fmt: skip
CASES = [*CONVOLUTIONS, *POOLS, *NORMS, *RECURRENT, *IMAGES, *QUANTIZED]
