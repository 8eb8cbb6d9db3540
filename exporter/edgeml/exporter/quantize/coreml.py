"""Core ML in other precisions, from the packed float32 model; needs coremltools, not the source's framework.

Operations compute in float16, the Neural Engine's only floating point; inputs and outputs stay float32. Weights are stored as
`coreml_weights` says, activations are rounded as `coreml_activations` says. Run these where TensorFlow cannot be seen:
coremltools would import it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from edgeml.exporter.calibrate.checks import beyond_float16, note_beyond, overflow_warnings
from edgeml.exporter.calibrate.coreml import watch_coreml
from edgeml.exporter.calibrate.feeds import Feeds, at_most
from edgeml.exporter.convert.coreml import coremltools, packed, passes
from edgeml.exporter.convert.onnx import unsupported
from edgeml.exporter.mil.flexible import with_ends_of
from edgeml.exporter.precision import Ranges
from edgeml.exporter.quantize.coreml_activations import to_w8a8
from edgeml.exporter.quantize.coreml_network import CoremlNetwork, replace_constants
from edgeml.exporter.quantize.coreml_weights import block_of, int8_result, opened, store_int8, to_int4, to_int8, to_palette
from edgeml.exporter.quantize.layers import Layer
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.quantize.weights import rounding_note, with_palettes, with_rounded_weights
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import Precision

IOS18: Final = 9  # the specification version that has int4 and blocks
LOOKED_AT: Final = 128  # calibration samples that show what float16 cannot hold, and how the inputs of layers go together
PALETTES: Final[dict[str, Literal[4, 6, 8]]] = {"palette4": 4, "palette6": 6, "palette8": 8}


def smaller_coreml(
    model: bytes,
    precision: Precision,
    feeds: Feeds | None,
    ranges: Ranges = "auto",
    keep_float: frozenset[str] = frozenset(),
) -> Quantized:
    """A packed float32 model in another precision; `feeds` are calibration samples by the model's own input names.

    `keep_float` names operations whose weights stay float16; for precisions of weights alone.

    Raises:
        UnsupportedError: coremltools cannot do it, or no weights get smaller.
    """
    halves = halved(model, precision, feeds)
    made = from_half(halves, precision, feeds, ranges, keep_float)
    return Quantized(made.model, made.notes, (*overflow_warnings(halves.beyond), *made.warnings))


@dataclass(frozen=True, slots=True)
class Halves:
    """What the precisions of a model are made from.

    `beyond` are values that float16 does not hold, which stay float32 in its float16 forms. `rounded` holds, by layer, its
    weights and bias as what small weights stand for: coremltools finds the same codes again.
    """

    model: bytes
    beyond: Mapping[str, float]
    version: int
    rounded: Mapping[str, Mapping[str, Array]]

    def plain(self) -> bytes:
        """The float16 form with the weights as they are."""
        return to_fp16_coreml(self.model, self.beyond, least_version=self.version)

    def with_rounded(self, but: frozenset[str] = frozenset()) -> bytes:
        """The float16 form with rounded weights in all layers but these."""
        return to_fp16_coreml(self.model, self.beyond, self._constants(but), least_version=self.version)

    def int8(self, keep_float: frozenset[str] = frozenset()) -> Quantized:
        """The float16 form with large weights as int8, but those of `keep_float`."""
        if keep_float:
            return to_int8(self.with_rounded(keep_float), keep_float)
        return int8_result(to_fp16_coreml(self.model, self.beyond, self._constants(), least_version=self.version, int8=True))

    def _constants(self, but: frozenset[str] = frozenset()) -> dict[str, Array]:
        return {name: value for layer, given in self.rounded.items() if layer not in but for name, value in given.items()}


def halved(model: bytes, precision: Precision, feeds: Feeds | None) -> Halves:
    """What a precision is made from; what `feeds` show to be beyond float16 stays float32."""
    some = None if feeds is None else at_most(feeds, LOOKED_AT)
    beyond: dict[str, float] = {}
    rounded: dict[str, dict[str, Array]] = {}
    if precision != "fp16":
        rounded = _rounded(CoremlNetwork(model, partial(note_beyond, beyond)), precision, some)
    elif some is not None:
        beyond = beyond_float16(watch_coreml(model, some))
    return Halves(model, beyond, IOS18 if precision == "int4-weights" else 0, rounded)


def _rounded(network: CoremlNetwork, precision: Precision, some: Feeds | None) -> dict[str, dict[str, Array]]:
    if precision in PALETTES:
        return with_palettes(network, some, 2 ** PALETTES[precision]).by_layer()

    def block(layer: Layer, inputs: int) -> int | None:
        del inputs
        found = block_of(network.read(layer).shape, ["linear"]) if precision == "int4-weights" else None
        return None if found is None else math.prod(found)

    return with_rounded_weights(network, some, block, pinned=True)[0].by_layer()


def from_half(
    halves: Halves,
    precision: Precision,
    feeds: Feeds | None,
    ranges: Ranges = "auto",
    keep_float: frozenset[str] = frozenset(),
) -> Quantized:
    """A model in a smaller precision; arguments as `smaller_coreml` takes them."""
    made = _from_half(halves, precision, feeds, ranges, keep_float)
    return replace(made, model=with_ends_of(made.model, halves.model))


def _from_half(
    halves: Halves, precision: Precision, feeds: Feeds | None, ranges: Ranges, keep_float: frozenset[str]
) -> Quantized:
    if precision == "fp16":
        return Quantized(halves.plain())
    if precision == "w8a8":
        assert feeds is not None, "the plan asks for samples"
        return to_w8a8(halves.plain(), halves.int8().model, feeds, ranges)
    if precision in PALETTES:
        made = to_palette(halves.with_rounded(keep_float), PALETTES[precision], keep_float)
    elif precision == "int4-weights":
        made = to_int4(halves.with_rounded(keep_float), keep_float)
    else:
        assert precision in {"int8", "int8-weights"}, "the plan asks for nothing else"
        made = halves.int8(keep_float)
    return Quantized(made.model, tuple(f"{note}; {rounding_note(feeds)}" for note in made.notes))


def to_fp16_coreml(
    model: bytes,
    keep_float: Collection[str] = (),
    constants: Mapping[str, Array] | None = None,
    *,
    least_version: int = 0,
    int8: bool = False,
) -> bytes:
    """The float16 form of a packed float32 model.

    Operations with constants beyond float16's range stay float32, and so do those that read or make a value of `keep_float`.
    `constants` are other values for some, by name; `least_version` is the specification version that is wanted. `int8` stores
    large weights so.
    """
    ct, pipeline = coremltools(), passes()
    if int8:
        store_int8(pipeline)
    kept = frozenset(keep_float)

    def fits(operation: Any) -> bool:
        values = [
            value for given in operation.inputs.values() for value in (given if isinstance(given, (list, tuple)) else [given])
        ]
        return not kept & {value.name for value in (*values, *operation.outputs)}

    with opened(ct, model) as mlmodel:
        spec = mlmodel.get_spec()
        version = max(spec.specificationVersion, least_version)
        from coremltools.converters.mil.frontend.milproto.load import load

        program = load(spec, version, mlmodel.weights_dir)
        replace_constants(program, constants or {})
        try:
            converted = ct.convert(
                program,
                source="milinternal",
                convert_to="mlprogram",
                compute_precision=ct.transform.FP16ComputePrecision(op_selector=fits) if kept else ct.precision.FLOAT16,
                minimum_deployment_target=ct.target(version),
                pass_pipeline=pipeline,
                skip_model_load=True,
            )
        except Exception as error:
            raise unsupported("coremltools", error) from error
        return packed(converted)


def write_smaller(model: str, folder: str) -> list[str]:
    """Job: write `fp16` and `int8` of a packed float32 model file into a folder; gives int8's notes."""
    data = Path(model).read_bytes()
    quantized = smaller_coreml(data, "int8", None)
    (Path(folder) / "fp16").write_bytes(to_fp16_coreml(data))
    (Path(folder) / "int8").write_bytes(quantized.model)
    return list(quantized.notes)
