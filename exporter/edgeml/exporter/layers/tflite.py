"""TFLite layer by layer: LiteRT keeps every tensor, without XNNPACK, which would hide some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from edgeml.exporter.calibrate.tflite import keeping
from edgeml.exporter.layers.cut_tflite import cut_tflite
from edgeml.exporter.layers.trace import Operator, Trace, as_real, enough, stacked
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.wire.errors import EngineError
from edgeml.wire.manifest import Format


class TfliteModel:
    """The main graph of a TFLite file."""

    format: Format = "tflite"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.inputs = open_tflite(data, EngineOptions(kernels="exact")).inputs
        self._interpreter = keeping(data)
        details = self._interpreter.get_tensor_details()
        self._tensors = {int(detail["index"]): detail for detail in details}
        given = {int(detail["index"]) for detail in self._interpreter.get_input_details()}
        self._moving = set(given)
        self._same: dict[str, str] = {}  # dequantized -> quantized
        self.indices: dict[str, int] = {str(self._tensors[index]["name"]): index for index in given}
        self.operators = tuple(self._operators())
        ends = [str(detail["name"]) for detail in self._interpreter.get_output_details()]
        self.outputs = tuple(self._same.get(name, name) for name in ends)

    def trace(self, calls: Iterable[Sequence[Array]]) -> Trace:
        given = [int(detail["index"]) for detail in self._interpreter.get_input_details()]
        seen = []
        for tensors in calls:
            try:
                for index, tensor in zip(given, tensors, strict=True):
                    self._interpreter.set_tensor(index, tensor)
                self._interpreter.invoke()
            except (ValueError, RuntimeError) as error:
                raise EngineError(f"LiteRT failed: {error}") from error
            seen.append({name: self.real(name, self._interpreter.get_tensor(index)) for name, index in self.indices.items()})
            if enough(seen):
                break
        names = tuple(raw.name for raw in self.inputs)
        return Trace("tflite", self.operators, names, self.outputs, stacked(seen))

    def cut(self, inputs: Sequence[str], output: str) -> bytes:
        """A model of what lies between these tensors and that one."""
        return cut_tflite(self.data, [self.indices[name] for name in inputs], self.indices[output])

    def stored(self, name: str, values: Array) -> Array:
        """Real numbers as the tensor stores them."""
        detail = self._tensors[self.indices[name]]
        dtype, (scale, zero_point) = np.dtype(detail["dtype"]), detail["quantization"]
        if not scale:
            return values.astype(dtype)
        limits = np.iinfo(dtype)
        codes: Array = np.clip(np.round(values / scale) + zero_point, limits.min, limits.max).astype(dtype)
        return codes

    def real(self, name: str, values: Array) -> Array:
        """What the tensor stores as real numbers."""
        scale, zero_point = self._tensors[self.indices[name]]["quantization"]
        return as_real(values, float(scale), int(zero_point)) if scale else as_real(values)

    def _operators(self) -> Iterable[Operator]:
        for detail in self._interpreter._get_ops_details():  # noqa: SLF001 - no public form
            read = [int(index) for index in detail["inputs"] if int(index) in self._tensors]
            made = [int(index) for index in detail["outputs"] if int(index) in self._tensors]
            moving = [index for index in read if index in self._moving]
            if not moving or not made:
                continue
            self._moving.update(made)
            if detail["op_name"] == "DEQUANTIZE":  # the same values under another name
                self._same[self._name(made[0])] = self._name(moving[0])
                continue
            for index in made:
                self.indices[self._name(index)] = index
            yield Operator(
                self._name(made[0]),
                str(detail["op_name"]),
                tuple(self._same.get(name, name) for name in map(self._name, moving)),
                tuple(map(self._name, made)),
                self._precision([index for index in read if index not in self._moving], moving, made),
            )

    def _precision(self, constants: Sequence[int], moving: Sequence[int], made: Sequence[int]) -> str:
        rounding = moving and np.dtype(self._tensors[made[0]]["dtype"]).kind in "iu" and not constants
        ordered = (*made, *constants, *moving) if rounding else (*constants, *moving)
        kinds = [np.dtype(self._tensors[index]["dtype"]).name for index in ordered]
        wide = frozenset({"int32", "int64", "bool"})  # biases, shapes
        return str(next((kind for kind in kinds if kind not in wide), kinds[0]))

    def _name(self, index: int) -> str:
        return str(self._tensors[index]["name"])
