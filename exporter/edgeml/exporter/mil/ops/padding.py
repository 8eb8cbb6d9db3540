"""How much convolution and pooling pad: MIL's words, TensorFlow's arithmetic."""

# ruff: noqa: PLR0917 - the parameters are the operation's inputs

from __future__ import annotations

from collections.abc import Sequence

from edgeml.wire.errors import UnsupportedError

Pads = list[tuple[int, int]]


def explicit_pads(
    pad_type: str,
    pad: Sequence[int],
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Pads:
    """(before, after) for each spatial axis.

    `same` gives ceil(size / stride) outputs, the odd element after (`same_lower`: before).
    """
    rank = len(sizes)
    if pad_type == "valid":
        return [(0, 0)] * rank
    if pad_type == "custom":
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(rank)]
    if pad_type not in ("same", "same_lower"):
        raise UnsupportedError(f"Core ML pad_type {pad_type!r} is not supported")
    pads: Pads = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if pad_type == "same" else (large, small))
    return pads


def torch_pads(pads: Pads) -> list[int]:
    """As `torch.nn.functional.pad` takes them: last axis first."""
    return [width for pair in reversed(pads) for width in pair]
