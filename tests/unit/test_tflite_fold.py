"""What a converter from torch leaves of two one-dimensional convolutions, before and after it is made ready for int8."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest

from edgeml.exporter.convert.tflite import canonical
from edgeml.exporter.quantize.tflite_fold import ready_tflite
from edgeml.exporter.quantize.tflite_network import TfliteNetwork
from edgeml.exporter.source.tflite_graphs import pack_model, parse_model, schema
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.wire.manifest import Signature, TensorSpec
from tests.unit.bundles import tflite_buffer, tflite_tensor

CHANNELS: Final = 4
LENGTH: Final = 6
WRAPPER: Final = "edgeml.exporter.source.torch.flatten.<locals>.Flat"
RNG: Final = np.random.default_rng(5)
CONSTANTS: Final[dict[str, Array]] = {
    "w1": RNG.normal(size=(CHANNELS, 1, 3, CHANNELS)).astype(np.float32),
    "w2": RNG.normal(size=(CHANNELS, 1, 3, CHANNELS)).astype(np.float32),
    "zero": np.zeros(CHANNELS, np.float32),
    "there": np.array([0, 3, 1, 2], np.int32),
    "back": np.array([0, 2, 3, 1], np.int32),
    "flat": np.array([1, CHANNELS, LENGTH], np.int32),
    "deep": np.array([1, CHANNELS, 1, LENGTH], np.int32),
    "gain": RNG.uniform(0.5, 2.0, size=(1, CHANNELS, 1)).astype(np.float32),
    "shift": RNG.normal(size=(1, CHANNELS, 1)).astype(np.float32),
    "nought": np.zeros(1, np.float32),
    "one": np.ones(1, np.float32),
}
WIDE: Final = [1, 1, LENGTH, CHANNELS]
SHAPES: Final = {
    "x": WIDE, "c": WIDE, "c_moved": [1, CHANNELS, 1, LENGTH], "c_flat": [1, CHANNELS, LENGTH], "scaled": [1, CHANNELS, LENGTH],
    "r": [1, CHANNELS, LENGTH], "r_deep": [1, CHANNELS, 1, LENGTH], "r_back": WIDE, "y": WIDE,
    "power": WIDE, "less": WIDE, "positive": WIDE,
}  # fmt: skip
STEPS: Final = [
    ("CONV_2D", ["x", "w1", "zero"], "c"),
    ("TRANSPOSE", ["c", "there"], "c_moved"),
    ("RESHAPE", ["c_moved", "flat"], "c_flat"),
    ("MUL", ["c_flat", "gain"], "scaled"),
    ("ADD", ["scaled", "shift"], "r"),
    ("RESHAPE", ["r", "deep"], "r_deep"),
    ("TRANSPOSE", ["r_deep", "back"], "r_back"),
    ("CONV_2D", ["r_back", "w2", "zero"], "y"),
]
ELU: Final = [
    ("EXP", ["x"], "power"),
    ("SUB", ["power", "one"], "less"),
    ("GREATER_EQUAL", ["x", "nought"], "positive"),
    ("SELECT_V2", ["positive", "x", "less"], "y"),
]


def written(outputs: tuple[str, ...] = ("y",), steps: list[tuple[str, list[str], str]] = STEPS) -> bytes:
    names = schema()
    model, graph = names.ModelT(), names.SubGraphT()
    tensors = [*SHAPES, *CONSTANTS]
    graph.tensors = [
        tflite_tensor(names, name, SHAPES.get(name) or list(CONSTANTS[name].shape), max(0, i - len(SHAPES) + 1))
        for i, name in enumerate(tensors)
    ]
    for name, tensor in zip(tensors, graph.tensors, strict=True):
        if name in CONSTANTS and CONSTANTS[name].dtype == np.int32:
            tensor.type = names.TensorType.INT32
        if name == "positive":
            tensor.type = names.TensorType.BOOL
    kinds = list(dict.fromkeys(kind for kind, _, _ in steps))
    graph.inputs, graph.outputs = [tensors.index("x")], [tensors.index(name) for name in outputs]
    graph.operators = []
    for kind, inputs, output in steps:
        operator = names.OperatorT()
        operator.opcodeIndex = kinds.index(kind)
        operator.inputs, operator.outputs = [tensors.index(name) for name in inputs], [tensors.index(output)]
        operator.builtinOptionsType, operator.builtinOptions = _options(names, kind)
        graph.operators.append(operator)
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes = []
    for kind in kinds:
        code = names.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(names.BuiltinOperator, kind)
        model.operatorCodes.append(code)
    model.buffers = [tflite_buffer(names, b""), *(tflite_buffer(names, values.tobytes()) for values in CONSTANTS.values())]
    return pack_model(model)


def _options(names: Any, kind: str) -> tuple[int, Any]:
    if kind == "CONV_2D":
        options = names.Conv2DOptionsT()
        options.padding, options.strideW, options.strideH = names.Padding.SAME, 1, 1
        return names.BuiltinOptions.Conv2DOptions, options
    if kind == "ADD":
        options = names.AddOptionsT()
        options.fusedActivationFunction = names.ActivationFunctionType.RELU
        return names.BuiltinOptions.AddOptions, options
    if kind == "MUL":
        return names.BuiltinOptions.MulOptions, names.MulOptionsT()
    if kind == "SUB":
        return names.BuiltinOptions.SubOptions, names.SubOptionsT()
    return names.BuiltinOptions.NONE, None


def run(model: bytes, x: Array) -> list[Array]:
    return open_tflite(model, EngineOptions(kernels="exact")).run([x])


def kinds(model: bytes) -> list[str]:
    names = {value: name for name, value in vars(schema().BuiltinOperator).items() if isinstance(value, int)}
    parsed = parse_model(model)
    return [names[parsed.operatorCodes[operator.opcodeIndex].builtinCode] for operator in parsed.subgraphs[0].operators]


def test_a_normalization_behind_moves_folds_into_its_convolution_and_the_moves_go() -> None:
    x = RNG.normal(size=WIDE).astype(np.float32)

    ready = ready_tflite(written())

    assert kinds(ready) == ["CONV_2D", "CONV_2D"]
    assert run(ready, x)[0] == pytest.approx(run(written(), x)[0], abs=1e-5)


def test_layers_that_shared_a_bias_get_one_each_and_can_be_rounded() -> None:
    assert not TfliteNetwork(written()).layers

    layers = TfliteNetwork(ready_tflite(written())).layers

    assert len({layer.bias for layer in layers}) == 2


@pytest.mark.parametrize("seen", ["c", "scaled", "r"])
def test_what_is_seen_outside_stays_what_it_was(seen: str) -> None:
    x = RNG.normal(size=WIDE).astype(np.float32)
    model = written(("y", seen))

    for got, wanted in zip(run(ready_tflite(model), x), run(model, x), strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)


def test_an_exponential_linear_unit_becomes_one_operator_without_an_exponential_that_overflows() -> None:
    x = np.linspace(-200, 200, LENGTH * CHANNELS).astype(np.float32).reshape(WIDE)
    model = written(steps=ELU)

    ready = ready_tflite(model)

    assert kinds(ready) == ["ELU"]
    assert run(ready, x)[0] == pytest.approx(np.where(x > 0, x, np.expm1(np.minimum(x, 0))), abs=1e-5)


@pytest.mark.parametrize("seen", ["power", "less"])
def test_an_exponential_that_something_reads_stays(seen: str) -> None:
    assert kinds(ready_tflite(written(("y", seen), ELU))) == [kind for kind, _, _ in ELU]


def test_a_model_with_nothing_to_fold_keeps_its_bytes() -> None:
    ready = ready_tflite(written())

    assert ready_tflite(ready) == ready


@pytest.mark.parametrize(
    ("given", "short"),
    [
        (f"{WRAPPER}/nets.Net_inner/nets._Block_6/torch.nn.modules.conv.Conv2d_0_1", "inner/6/0_1"),
        (WRAPPER, WRAPPER),
        ("StatefulPartitionedCall/a/Relu;b/BiasAdd;6468;b/Conv2D1", "b/Conv2D1"),
        ("arith.constant6", "arith.constant6"),
    ],
)
def test_inner_tensors_bear_the_names_of_the_modules_that_made_them(given: str, short: str) -> None:
    signature = Signature((TensorSpec("x", "float32", tuple(WIDE)),), (TensorSpec("y", "float32", tuple(WIDE)),))
    parsed = parse_model(written())
    parsed.subgraphs[0].tensors[1].name = given.encode()

    names = [tensor.name.decode() for tensor in parse_model(canonical(pack_model(parsed), signature)).subgraphs[0].tensors]

    assert names[:3] == ["x", short, "c_moved"]
