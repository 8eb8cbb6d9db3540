"""Rounding, equalizing and windows: the parts that every format shares."""

from __future__ import annotations

import numpy as np
import pytest

from edgeml.exporter.quantize.equalize import LEAST_RANGE, scale_factors
from edgeml.exporter.quantize.layers import Layer, Moments, Step, links, windows
from edgeml.exporter.quantize.rounding import LIMIT, LIMIT4, palette_of, round_layer, round_to_palette, scales_of
from edgeml.runtime.backends import Array


def layer(**options: object) -> Layer:
    return Layer(weights="w", bias="b", source="x", output="y", activation="y", inputs=4, **options)  # type: ignore[arg-type]


def naive(x: Array, w: Array, *, stride: int, pad: tuple[int, int], dilation: int, groups: int) -> Array:
    """A convolution of one sample by its definition."""
    channels, height, width = x.shape
    padded = np.zeros((channels, height + sum(pad), width + sum(pad)))
    padded[:, pad[0] : pad[0] + height, pad[0] : pad[0] + width] = x
    span = (w.shape[2] - 1) * dilation + 1
    size = ((height + sum(pad) - span) // stride + 1, (width + sum(pad) - span) // stride + 1)
    y = np.zeros((len(w), *size))
    per_in, per_out = channels // groups, len(w) // groups
    for o in range(len(w)):
        group = padded[o // per_out * per_in : (o // per_out + 1) * per_in]
        for i in range(size[0]):
            for j in range(size[1]):
                rows = slice(i * stride, i * stride + span, dilation)
                columns = slice(j * stride, j * stride + span, dilation)
                y[o, i, j] = np.sum(group[:, rows, columns] * w[o])
    return y


@pytest.mark.parametrize(
    ("stride", "pad", "dilation", "groups"),
    [(1, (0, 0), 1, 1), (2, (1, 1), 1, 1), (1, (0, 1), 2, 1), (1, (1, 1), 1, 4), (2, (0, 1), 1, 2)],
    ids=["plain", "strided", "dilated", "depthwise", "grouped"],
)
def test_weights_times_windows_is_the_convolution(stride: int, pad: tuple[int, int], dilation: int, groups: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 6, 6)), rng.normal(size=(8, 4 // groups, 3, 3))
    one = layer(kernel=(3, 3), strides=(stride, stride), dilations=(dilation, dilation), pads=(pad, pad), groups=groups)

    seen = windows(one, x[np.newaxis])

    got = np.einsum("goi,gpi->gop", w.reshape(groups, 8 // groups, -1), seen).reshape(8, -1)
    assert got == pytest.approx(naive(x, w, stride=stride, pad=pad, dilation=dilation, groups=groups).reshape(8, -1))


def test_many_windows_are_thinned_evenly() -> None:
    seen = windows(layer(), np.arange(1000.0).reshape(1000, 1))

    assert seen.shape == (1, 63, 1)  # every 16th
    assert set(np.diff(seen[0, :, 0])) == {16.0}


def moments_of(x: Array) -> Moments:
    centred = x - x.mean(axis=0)
    return Moments(x.mean(axis=0)[np.newaxis], (centred.T @ centred / len(x))[np.newaxis])


def test_rounded_weights_lie_on_the_grid_of_their_scales() -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(size=(5, 12))

    rounded, scales, _ = round_layer(w, moments_of(rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12))))

    codes = rounded / scales[:, None]
    assert codes == pytest.approx(np.round(codes), abs=1e-6)
    assert np.abs(codes).max() <= LIMIT + 1e-6
    assert scales == pytest.approx(np.abs(w).max(axis=1) / LIMIT, rel=1e-6)


def test_rounding_moves_correlated_outputs_less_than_nearest_does() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2000, 4)) @ rng.normal(size=(4, 16)) + 0.01 * rng.normal(size=(2000, 16))
    w = rng.normal(size=(8, 16))
    nearest = np.round(w / scales_of(w)[:, None]) * scales_of(w)[:, None]

    rounded, _, shift = round_layer(w, moments_of(x))

    def error(q: Array, bias: Array) -> float:
        return float(np.mean((x @ q.T + bias - x @ w.T) ** 2))

    assert error(rounded, shift) < 0.25 * error(nearest, np.zeros(8))


def test_rounding_for_independent_inputs_is_to_the_nearest() -> None:
    w = np.random.default_rng(3).normal(size=(3, 6))
    moments = Moments(np.zeros((1, 6)), np.eye(6)[np.newaxis])

    rounded, scales, shift = round_layer(w, moments)

    assert rounded == pytest.approx(np.round(w / scales[:, None]) * scales[:, None])
    assert shift == pytest.approx(np.zeros(3))


def test_the_mean_of_the_rounding_error_goes_to_the_bias() -> None:
    rng = np.random.default_rng(4)
    w, x = rng.normal(size=(3, 6)), rng.normal(size=(500, 6)) + 7.0

    rounded, _, shift = round_layer(w, moments_of(x))

    assert (x @ rounded.T + shift).mean(axis=0) == pytest.approx((x @ w.T).mean(axis=0))


def test_a_channel_of_zeros_has_a_scale_its_bias_can_be_stored_in() -> None:
    scales = scales_of(np.array([[0.0, 0.0], [1.27, 0.5]]))

    assert scales == pytest.approx([1e-6, 0.01], rel=1e-5)  # a ten-thousandth of the layer's largest


def test_depthwise_channels_are_rounded_each_by_its_own_inputs() -> None:
    rng = np.random.default_rng(5)
    w, x = rng.normal(size=(2, 1, 3, 1)), rng.normal(size=(2, 300, 3)) + np.array([0.0, 5.0])[:, None, None]
    moments = Moments(x.mean(axis=1), np.stack([np.cov(part.T, bias=True) for part in x]))

    rounded, _, shift = round_layer(w, moments)

    assert rounded.shape == w.shape
    for channel in range(2):
        exact, got = x[channel] @ w[channel].ravel(), x[channel] @ rounded[channel].ravel() + shift[channel]
        assert got.mean() == pytest.approx(exact.mean())


def test_scale_factors_go_half_way_and_leave_dead_channels_alone() -> None:
    assert scale_factors(np.array([4.0, 1.0, 16.0])) == pytest.approx([0.5, 0.25, 1.0])
    assert scale_factors(np.array([0.0, 1.0])) == pytest.approx([LEAST_RANGE**0.5, 1.0])
    assert scale_factors(np.zeros(2)) == pytest.approx([1.0, 1.0])


def chain(*, second_reader: bool = False, scalable: bool = True, channels: int = 8) -> tuple[int, Layer]:
    first = Layer("w1", None, "x", "y1", "r1", 3, scalable=scalable, kernel=(1, 1))
    second = Layer("w2", None, "p1", "y2", "y2", channels)
    steps = [Step(("x", "w1"), "y1", first), Step(("r1",), "p1", passes=True), Step(("p1", "w2"), "y2", second)]
    if second_reader:
        steps.append(Step(("r1",), "z"))
    return len(links(steps, ["y2"], {"r1": 8, "p1": 8})), first


def test_layers_are_linked_through_pooling_only_if_nothing_else_reads_between() -> None:
    assert chain()[0] == 1
    assert chain(second_reader=True)[0] == 0
    assert chain(scalable=False)[0] == 0
    assert chain(channels=128)[0] == 0  # flattened pictures: a channel is sixteen inputs


@pytest.mark.parametrize(("size", "best"), [(16, 0.0975), (64, 0.0256)])
def test_a_palette_is_about_as_good_as_can_be_for_normal_weights(size: int, best: float) -> None:
    """The least rms error of `size` values for a normal distribution: Max, 1960; beyond his table sqrt(3^0.5 pi / 2) / size."""
    weights = np.random.default_rng(12).normal(size=40_000)

    palette = palette_of(weights, size)

    nearest = palette[np.abs(weights[:, None] - palette).argmin(axis=1)]
    assert np.sqrt(np.mean((nearest - weights) ** 2)) < 1.05 * best
    assert len(palette) <= size


def test_weights_of_a_palette_move_correlated_outputs_less_than_the_nearest_do() -> None:
    rng = np.random.default_rng(13)
    x = rng.normal(size=(2000, 4)) @ rng.normal(size=(4, 16)) + 0.01 * rng.normal(size=(2000, 16))
    w = rng.normal(size=(8, 16))
    palette = palette_of(w, 16)
    nearest = palette[np.abs(w[..., None] - palette).argmin(axis=-1)]

    rounded, shift = round_to_palette(w, moments_of(x), 16)

    def error(q: Array, bias: Array) -> float:
        return float(np.mean((x @ q.T + bias - x @ w.T) ** 2))

    assert set(np.unique(rounded)) <= set(palette)
    assert error(rounded, shift) < 0.25 * error(nearest, np.zeros(8))


def test_pinned_weights_let_scales_be_found_again() -> None:
    rng = np.random.default_rng(14)
    w = rng.normal(size=(6, 64))
    seen = moments_of(rng.normal(size=(400, 8)) @ rng.normal(size=(8, 64)))

    eight, scales, _ = round_layer(w, seen, pinned=True)
    four, blocks, _ = round_layer(w, seen, block=32, pinned=True)

    assert np.abs(eight).max(axis=1) / LIMIT == pytest.approx(scales)
    assert np.abs(four).reshape(6, 2, 32).max(axis=2) / LIMIT4 == pytest.approx(blocks)
