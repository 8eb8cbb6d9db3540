"""Core ML in other precisions, from the packed float32 model; needs coremltools, not the source's framework.

Operations compute in float16, the Neural Engine's only floating point; inputs and outputs stay float32. Weights are stored as
`coreml_weights` says, activations are rounded as `coreml_activations` says. Run these where TensorFlow cannot be seen:
coremltools would import it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Literal

from edgeml.exporter.calibrate.checks import beyond_float16, overflow_warnings
from edgeml.exporter.calibrate.coreml import watch_coreml
from edgeml.exporter.calibrate.feeds import Feeds, at_most
from edgeml.exporter.convert.coreml import coremltools, packed, passes
from edgeml.exporter.convert.onnx import unsupported
from edgeml.exporter.precision import Ranges
from edgeml.exporter.quantize.coreml_activations import to_w8a8
from edgeml.exporter.quantize.coreml_weights import opened, to_int4, to_int8, to_palette
from edgeml.exporter.quantize.result import Quantized
from edgeml.wire.manifest import Precision

IOS18: Final = 9  # the specification version that has int4 and blocks
LOOKED_AT: Final = 128  # calibration samples that show what float16 cannot hold
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
    half = halved(model, precision, feeds)
    made = from_half(half.model, precision, feeds, ranges, keep_float)
    return Quantized(made.model, made.notes, (*half.warnings, *made.warnings))


def halved(model: bytes, precision: Precision, feeds: Feeds | None) -> Quantized:
    """The float16 form that a precision is made from; what `feeds` show to be beyond float16 stays float32."""
    beyond = {} if feeds is None else beyond_float16(watch_coreml(model, at_most(feeds, LOOKED_AT)))
    half = to_fp16_coreml(model, beyond, least_version=IOS18 if precision == "int4-weights" else 0)
    return Quantized(half, (), overflow_warnings(beyond))


def from_half(
    half: bytes,
    precision: Precision,
    feeds: Feeds | None,
    ranges: Ranges = "auto",
    keep_float: frozenset[str] = frozenset(),
) -> Quantized:
    """A float16 model in a smaller precision; arguments as `smaller_coreml` takes them."""
    if precision == "fp16":
        return Quantized(half)
    if precision in PALETTES:
        return to_palette(half, PALETTES[precision], keep_float)
    if precision == "int4-weights":
        return to_int4(half, keep_float)
    if precision == "w8a8":
        assert feeds is not None, "the plan asks for samples"
        return to_w8a8(half, feeds, ranges)
    assert precision in {"int8", "int8-weights"}, "the plan asks for nothing else"
    return to_int8(half, keep_float)


def to_fp16_coreml(model: bytes, keep_float: Collection[str] = (), *, least_version: int = 0) -> bytes:
    """The float16 form of a packed float32 model.

    Operations with constants beyond float16's range stay float32, and so do those that read or make a value of `keep_float`.
    `least_version` is the specification version that is wanted.
    """
    ct = coremltools()
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
        try:
            converted = ct.convert(
                program,
                source="milinternal",
                convert_to="mlprogram",
                compute_precision=ct.transform.FP16ComputePrecision(op_selector=fits) if kept else ct.precision.FLOAT16,
                minimum_deployment_target=ct.target(version),
                pass_pipeline=passes(),
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
