"""A small ONNX classifier of which int8 spoils one layer: one of its inputs is in other units, a thousand times larger."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgeml.runtime.backends import Array

INPUTS, WIDTH, CLASSES = 16, 24, 5
LARGE = 1000.0
SPOILED = "h0"
"""What the layer gives that reads the input: one scale for all of it leaves the others nothing. Its weights even them out."""


SPOILED_WEIGHTS = "h1"


@dataclass(frozen=True)
class Weights:
    layers: tuple[Array, ...]

    def __call__(self, x: Array) -> Array:
        """The scores, by numpy in float64."""
        values = x.astype(np.float64)
        for number, weight in enumerate(self.layers):
            values = values @ weight
            if number < len(self.layers) - 1:
                values = np.maximum(values, 0)
        return np.asarray(values)


def weights() -> Weights:
    rng = np.random.default_rng(0)
    sizes = (INPUTS, WIDTH, WIDTH, WIDTH, CLASSES)
    layers = [rng.normal(size=pair).astype(np.float32) / np.float32(pair[0] ** 0.5) for pair in itertools.pairwise(sizes)]
    layers[0][3] /= LARGE
    return Weights(tuple(layers))


def outlying() -> Weights:
    """Weights of which small integers spoil the second layer, SPOILED_WEIGHTS.

    Each of its channels has one weight a thousand times larger than the others. It reads what is always zero, so that it
    changes nothing, but the channel's scale.
    """
    layers = [layer.copy() for layer in weights().layers]
    layers[0][3] *= LARGE
    layers[0][:, 5] = 0
    layers[1][5] = LARGE * 0.2
    return Weights(tuple(layers))


def model(of: Weights | None = None) -> bytes:
    layers = (of or weights()).layers
    nodes, value = [], "x"
    for number in range(len(layers)):
        last = number == len(layers) - 1
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], ["y" if last else f"h{number}"]))
        if not last:
            value = f"t{number}"
            nodes.append(helper.make_node("Relu", [f"h{number}"], [value]))
    constants = {f"w{number}": weight for number, weight in enumerate(layers)}
    constants |= {f"b{number}": np.zeros(weight.shape[1], np.float32) for number, weight in enumerate(layers)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(proto.SerializeToString(deterministic=True))


def samples(count: int, seed: int) -> tuple[Array, Array]:
    """Inputs, and as labels what the model itself says."""
    x = np.random.default_rng(seed).normal(size=(count, INPUTS)).astype(np.float32)
    x[:, 3] *= LARGE
    return x, weights()(x).argmax(axis=1)


def write_outlying(folder: Path) -> None:
    """outlying.onnx, outlying-calib.npz, outlying-eval.npz."""
    (folder / "outlying.onnx").write_bytes(model(outlying()))
    for name, count, seed in (("calib", 100, 1), ("eval", 1000, 2)):
        x = np.random.default_rng(seed).normal(size=(count, INPUTS)).astype(np.float32)
        np.savez(folder / f"outlying-{name}.npz", x=x, y=outlying()(x).argmax(axis=1))


def write(folder: Path, *, calibration: int = 200, evaluation: int = 1000) -> None:
    """bad.onnx, calib.npz, eval.npz."""
    (folder / "bad.onnx").write_bytes(model())
    np.savez(folder / "calib.npz", x=samples(calibration, 1)[0])
    x, y = samples(evaluation, 2)
    np.savez(folder / "eval.npz", x=x, y=y)
