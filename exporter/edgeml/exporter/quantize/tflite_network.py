"""A TFLite model as a `Network`.

Weights are changed in place in the flatbuffer's bytes: their number stays, so nothing else moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Self

import numpy as np

from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.calibrate.observers import Range
from edgeml.exporter.calibrate.statistics import Pass
from edgeml.exporter.calibrate.tflite import watch_tflite
from edgeml.exporter.quantize.joins import Operation, find_joins
from edgeml.exporter.quantize.layers import Floats, Layer, Step, links
from edgeml.exporter.quantize.rounding import LIMIT, LIMIT4
from edgeml.exporter.quantize.scaled_inputs import scaled_inputs
from edgeml.exporter.quantize.tflite_loops import CONTROL, inner_operators, refuse_whole
from edgeml.exporter.quantize.tflite_recipe import write_static, write_weights
from edgeml.exporter.quantize.tflite_steps import Done, recurrent_steps
from edgeml.runtime.backends import Array, Backend, EngineOptions
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.wire.errors import MissingExtraError

DEVICE: Final = EngineOptions()
LAYERS: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
ARITHMETIC: Final = frozenset({"ADD", "SUB", "MUL", "DIV"})
PASSING: Final = frozenset({"AVERAGE_POOL_2D", "MAX_POOL_2D", "RESHAPE", "MEAN", "SQUEEZE", "PAD"})
MOVING: Final = frozenset(
    {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "MAX_POOL_2D", "PAD", "PADV2", "SHAPE",
     "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "GATHER", "SPLIT", "UNPACK", "CAST", "QUANTIZE", "DEQUANTIZE"}
)  # fmt: skip
FLOAT: Final = CONTROL | {"SOFTMAX"}  # stays float whatever is asked
FOUR_BITS: Final = ("CONV_2D", "FULLY_CONNECTED")  # have kernels for int4 weights
SMALL_SHARE: Final = 0.05  # of all weights: a last layer of this size stays float; a larger one gives float from int8 weights

Operator = tuple[str, Any, tuple[str, ...], str]
"""Kind, operator, names of inputs, name of the first output."""


class TfliteNetwork:
    """`model` is copied; the layers are those of the main graph whose weights and biases nothing else uses.

    `ends_float` keeps small layers before the outputs float, with the pooling before them. `whole` computes nothing in float
    but what `keep_float` names: a microcontroller then needs no float buffers or kernels.
    """

    def __init__(
        self,
        model: bytes | bytearray,
        keep_float: frozenset[str] = frozenset(),
        *,
        ends_float: bool = True,
        whole: bool = False,
    ) -> None:
        self.model, self._ends_float, self._whole = bytearray(model), ends_float, whole
        schema = _schema()
        root = schema.Model.GetRootAs(self.model, 0)
        self._graph, self._root = root.Subgraphs(0), root
        self._inner = inner_operators(root, _kinds(schema))
        self._tensors = {self._tensor(i).Name().decode(): i for i in range(self._graph.TensorsLength())}
        operators = list(self._operators(schema))
        shared = self._shared_buffers()
        found = {output: layer for kind, op, _, output in operators if (layer := self._layer(schema, kind, op, output, shared))}
        self._kinds = {layer.weights: kind for kind, _, _, output in operators if (layer := found.get(output))}
        outputs = [self._name(index) for index in self._graph.OutputsAsNumpy()]
        ends = [] if whole else _ends(operators, found, outputs)
        total = sum(self._values(layer.weights).size for layer in found.values())
        least = SMALL_SHARE * total if ends_float else 0
        small = {layer.output for layer in ends if self._values(layer.weights).size <= least}
        operations = [Operation(kind, inputs, output) for kind, _, inputs, output in operators]
        inputs = [self._name(index) for index in self._graph.InputsAsNumpy()]
        scaled = frozenset() if whole else scaled_inputs(operations, inputs, self._constants(), ARITHMETIC)
        unrolled = recurrent_steps(self._done(operators) if ends_float and not whole else (), self._constants())
        self.keep_float = (
            keep_float
            | scaled
            | small
            | unrolled.others
            | _pooled_before(operators, [layer for layer in ends if layer.output in small])
        )
        full = {layer.output for layer in ends if self._kinds[layer.weights] == "FULLY_CONNECTED"}
        self.float_output = frozenset(full | unrolled.products) - self.keep_float
        self.layers = tuple(layer for output, layer in found.items() if output not in self.keep_float)
        shapes = {name: self._tensor(index).ShapeAsNumpy() for name, index in self._tensors.items()}
        channels = {name: int(shape[-1]) for name, shape in shapes.items() if np.size(shape)}
        steps = [
            Step(inputs, output, found.get(output), kind in PASSING and self._alone(inputs, shapes, output))
            for kind, _, inputs, output in operators
        ]
        self.links = links(steps, outputs, channels)
        self.joins = find_joins(operations, "CONCATENATION", MOVING)
        self._steps = _steps(operators, self._constants())

    def copy(self) -> Self:
        return self.keeping(frozenset())

    def keeping(self, kept: frozenset[str]) -> Self:
        return type(self)(self.model, self.keep_float | kept, ends_float=self._ends_float, whole=self._whole)

    def operators(self) -> tuple[tuple[str, str], ...]:
        return tuple(
            (kind, output)
            for kind, _, _, output in self._operators(_schema())
            if kind not in MOVING | FLOAT and output not in self.keep_float
        )

    def loop_notes(self) -> tuple[str, ...]:
        """What int8 does with layers in loops, which have no ranges."""
        number = len(self._inner.products)
        told = (
            "layers inside loops have int8 weights and round their input when they run; the rest of the loop computes in float"
        )
        return (f"{number} {told}",) if number else ()

    def read(self, layer: Layer) -> Floats:
        stored = self._values(layer.weights).astype(np.float64)
        return _to_common(self._kinds[layer.weights], stored)

    def write(self, layer: Layer, weights: Floats) -> None:
        self._values(layer.weights)[...] = _from_common(self._kinds[layer.weights], weights)

    def read_bias(self, layer: Layer) -> Floats:
        return np.zeros(len(self.read(layer))) if layer.bias is None else self._values(layer.bias).astype(np.float64)

    def write_bias(self, layer: Layer, bias: Floats) -> None:
        if layer.bias is not None:
            self._values(layer.bias)[...] = bias

    def watch(self, feeds: Feeds) -> Pass:
        return watch_tflite(bytes(self.model), feeds)

    def arrange(self, layer: Layer, tensor: str, values: Array) -> Array:
        """Channels come second for convolutions, last for fully connected layers, which flatten what they are given."""
        if layer.kernel:
            return np.moveaxis(values, -1, 1)
        return values.reshape(-1, self._values(layer.weights).shape[1]) if tensor == layer.source else values

    def quantized(
        self,
        ranges: Mapping[str, Range],
        scales: Mapping[str, Array],
        *,
        bits: Literal[8, 16] = 8,
        wide: frozenset[str] = frozenset(),
    ) -> bytes:
        told = dict(ranges)
        for sources in self._steps:
            known = [ranges[name] for name in sources if name in ranges]
            told |= {name: Range(min(low for low, _ in known), max(high for _, high in known)) for name in sources if known}
        found = {name: (np.array(low, np.float32), np.array(high, np.float32)) for name, (low, high) in told.items()}
        found |= {name: (-end, end) for name, end in self._ends_of_codes(scales).items()}
        if self._whole:
            refuse_whole(self._inner)
        return write_static(
            bytes(self.model), found, self.keep_float, self.float_output, self._inner, bits=bits, wide=wide, whole=self._whole
        )

    def with_weights(self, scales: Mapping[str, Array], *, dynamic: bool) -> bytes:
        """The file with small weights alone; `scales` are (outputs,) at eight bits, (outputs, 1) at four."""
        four = frozenset(layer.output for layer in self.layers if scales.get(layer.weights, np.empty(0)).ndim == 2)
        return write_weights(
            bytes(self.model), self._ends_of_codes(scales), four_bits=four, dynamic=dynamic, keep_float=self.keep_float
        )

    def has_four_bits(self, layer: Layer) -> bool:
        return self._kinds[layer.weights] in FOUR_BITS

    def open(self, model: bytes) -> Backend:
        return open_tflite(model, DEVICE)

    def _ends_of_codes(self, scales: Mapping[str, Array]) -> dict[str, Array]:
        """Weights' name -> the real number that each channel's largest code stands for, shaped to broadcast."""
        ends = {}
        for layer in self.layers:
            if layer.weights in scales:
                shape = [1] * self._values(layer.weights).ndim
                shape[-1 if self._kinds[layer.weights] == "DEPTHWISE_CONV_2D" else 0] = -1
                limit = LIMIT if scales[layer.weights].ndim == 1 else LIMIT4
                ends[layer.weights] = (scales[layer.weights] * limit).astype(np.float32).reshape(shape)
        return ends

    def _tensor(self, index: int) -> Any:
        return self._graph.Tensors(int(index))

    def _name(self, index: int) -> str:
        name: str = self._tensor(index).Name().decode()
        return name

    def _values(self, name: str) -> Array:
        """A constant's values, in place."""
        tensor = self._tensor(self._tensors[name])
        data: Array = self._root.Buffers(tensor.Buffer()).DataAsNumpy()
        return data.view(np.float32).reshape(tensor.ShapeAsNumpy())

    def _operators(self, schema: Any) -> Iterator[Operator]:
        kinds = _kinds(schema)
        for i in range(self._graph.OperatorsLength()):
            op = self._graph.Operators(i)
            code = self._root.OperatorCodes(op.OpcodeIndex())
            kind = kinds.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "CUSTOM")
            inputs = tuple(self._name(index) for index in op.InputsAsNumpy() if index >= 0)
            if op.OutputsLength():
                yield kind, op, inputs, self._name(op.Outputs(0))

    def _done(self, operators: Iterable[Operator]) -> list[Done]:
        return [Done(kind, inputs, tuple(map(self._name, op.OutputsAsNumpy()))) for kind, op, inputs, _ in operators]

    def _constants(self) -> set[str]:
        return {name for name, index in self._tensors.items() if self._root.Buffers(self._tensor(index).Buffer()).DataLength()}

    def _shared_buffers(self) -> set[int]:
        uses: Counter[int] = Counter(self._tensor(i).Buffer() for i in range(self._graph.TensorsLength()))
        for i in range(self._graph.OperatorsLength()):
            uses.update(self._tensor(index).Buffer() for index in set(self._graph.Operators(i).InputsAsNumpy()) if index >= 0)
        # once as a tensor, once as an operator's input
        return {buffer for buffer, number in uses.items() if number > 2} | {0}

    def _layer(self, schema: Any, kind: str, op: Any, output: str, shared: set[int]) -> Layer | None:
        if kind not in LAYERS:
            return None
        indices = [int(index) for index in op.InputsAsNumpy()]
        constants = [self._tensor(index) for index in indices[1:] if index >= 0]
        if any(tensor.Type() != schema.TensorType.FLOAT32 or tensor.Buffer() in shared for tensor in constants):
            return None
        if any(not self._root.Buffers(tensor.Buffer()).DataLength() for tensor in constants):
            return None
        bias = self._name(indices[2]) if len(indices) > 2 and indices[2] >= 0 else None
        options = _options(schema, kind, op)
        functions = schema.ActivationFunctionType
        function = options.FusedActivationFunction()
        weights = [int(size) for size in self._tensor(indices[1]).ShapeAsNumpy()]
        inputs = 1 if kind == "DEPTHWISE_CONV_2D" else weights[-1]
        scalable = function in {functions.NONE, functions.RELU}
        names = (self._name(indices[1]), bias, self._name(indices[0]), output, output, inputs, scalable)
        if kind == "FULLY_CONNECTED":
            return Layer(*names)
        given = self._tensor(indices[0]).ShapeAsNumpy()
        kernel = (weights[1], weights[2])
        strides, dilations = (options.StrideH(), options.StrideW()), (options.DilationHFactor(), options.DilationWFactor())
        same = options.Padding() == schema.Padding.SAME
        pads = tuple(_same_pads(int(given[1 + i]), kernel[i], strides[i], dilations[i]) if same else (0, 0) for i in (0, 1))
        groups = int(given[3]) if kind == "DEPTHWISE_CONV_2D" else 1
        if kind == "CONV_2D" and weights[3] != given[3]:
            return None  # a grouped convolution
        return Layer(*names, kernel=kernel, strides=strides, dilations=dilations, pads=pads, groups=groups)

    @staticmethod
    def _alone(inputs: tuple[str, ...], shapes: Mapping[str, Any], output: str) -> bool:
        """Whether pooling or reshaping keeps channels apart: a reshape does if only axes of size 1 are added or lost."""
        before = [int(size) for size in shapes[inputs[0]] if size != 1]
        after = [int(size) for size in shapes[output] if size != 1]
        return before[-1:] == after[-1:]


def _steps(operators: Sequence[Operator], constants: Collection[str]) -> list[list[str]]:
    """What layers that share their weights read: the steps of an unrolled recurrent layer.

    With one range for all, their biases, whose unit is that of the input times that of the weights, stay one tensor, too.
    """
    found: dict[str, list[str]] = {}
    for kind, _, inputs, _ in operators:
        if kind in LAYERS and len(inputs) > 1 and inputs[1] in constants:
            found.setdefault(inputs[1], []).append(inputs[0])
    return [sources for sources in found.values() if len(sources) > 1]


def _ends(operators: Sequence[Operator], layers: Mapping[str, Layer], outputs: Iterable[str]) -> list[Layer]:
    """The layers that give the model's outputs, if through a softmax: their rounding goes straight into the answer."""
    makers = {output: (kind, inputs) for kind, _, inputs, output in operators}
    names = [makers[name][1][0] if name in makers and makers[name][0] == "SOFTMAX" else name for name in outputs]
    return [layers[name] for name in names if name in layers]


def _pooled_before(operators: Sequence[Operator], layers: Iterable[Layer]) -> frozenset[str]:
    """The outputs of pooling before a layer: integer pooling keeps its input's scale, so that a mean has few levels left."""
    makers = {output: (kind, inputs) for kind, _, inputs, output in operators}
    kept = set()
    for layer in layers:
        name = layer.source
        while name in makers and makers[name][0] in PASSING:
            kept.add(name)
            name = makers[name][1][0]
    return frozenset(kept)


def _to_common(kind: str, stored: Floats) -> Floats:
    """(out, height, width, in) or, depthwise, (1, height, width, out) to (out, in / groups, height, width)."""
    if kind == "FULLY_CONNECTED":
        return stored
    return np.moveaxis(stored, -1, 1) if kind == "CONV_2D" else np.moveaxis(stored, -1, 0)


def _from_common(kind: str, weights: Floats) -> Floats:
    if kind == "FULLY_CONNECTED":
        return weights
    return np.moveaxis(weights, 1, -1) if kind == "CONV_2D" else np.moveaxis(weights, 0, -1)


def _same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's SAME: output ceil(size / stride), the odd one of the padding after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _options(schema: Any, kind: str, op: Any) -> Any:
    form = {
        "CONV_2D": schema.Conv2DOptions, "DEPTHWISE_CONV_2D": schema.DepthwiseConv2DOptions,
        "FULLY_CONNECTED": schema.FullyConnectedOptions,
    }[kind]  # fmt: skip
    options = form()
    table = op.BuiltinOptions()
    options.Init(table.Bytes, table.Pos)
    return options


def _kinds(schema: Any) -> dict[int, str]:
    return {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ModuleNotFoundError as error:
        raise MissingExtraError("ai_edge_litert", "tflite") from error
    return schema_py_generated
