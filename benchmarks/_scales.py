"""Whether an int8 delta would be smaller if the new version were quantized on the old one's scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from edgeml.runtime.backends import Array

LEAST_WEIGHTS: Final = 64  # of a tensor that counts


@dataclass(frozen=True, slots=True)
class Bits:
    """Entropy of a weight's difference, in bits: as quantized, and on the old scales; how far scales moved, in the median."""

    as_is: float
    on_old_scales: float
    scales_moved: float


def bits(old: bytes, new: bytes) -> Bits | None:
    """Of two ONNX files with QDQ pairs; `None` if they have no int8 weights in common."""
    before, after = _weights(old), _weights(new)
    as_is, on_old, moved = [], [], []
    for name in before.keys() & after.keys():
        (a, scale_a), (b, scale_b) = before[name], after[name]
        if a.shape != b.shape or a.size < LEAST_WEIGHTS:
            continue
        ratio = scale_b / scale_a
        as_is.append((b.astype(int) - a).ravel())
        on_old.append((np.clip(np.round(b * ratio), -128, 127).astype(int) - a).ravel())
        moved.append(np.abs(ratio - 1).ravel())
    if not as_is:
        return None
    return Bits(_entropy(np.concatenate(as_is)), _entropy(np.concatenate(on_old)), float(np.median(np.concatenate(moved))))


def _weights(data: bytes) -> dict[str, tuple[Array, Array]]:
    """int8 initializers and their scales, shaped to multiply them."""
    graph = onnx.load_from_string(data).graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in arrays or node.input[1] not in arrays:
            continue
        weight, scale = arrays[node.input[0]], arrays[node.input[1]]
        if weight.dtype == np.int8:
            found[node.input[0]] = weight, _shaped(scale, weight.ndim, _axis(node))
    return found


def _axis(node: Any) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 1)


def _shaped(scale: Array, ndim: int, axis: int) -> Array:
    return scale if scale.size == 1 else scale.reshape([-1 if at == axis % ndim else 1 for at in range(ndim)])


def _entropy(values: Array) -> float:
    _, counts = np.unique(values, return_counts=True)
    shares = counts / values.size
    return float(-(shares * np.log2(shares)).sum())
