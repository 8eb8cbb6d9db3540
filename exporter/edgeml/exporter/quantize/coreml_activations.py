"""W8A8 in Core ML: int8 weights, and quantize and dequantize around the operations that the Neural Engine runs on integers.

coremltools puts them there; the ranges are ours, seen by the interpreter, since its own calibration needs a Mac.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from edgeml.exporter.calibrate.checks import calibration_notes
from edgeml.exporter.calibrate.choose import LEAST_SAMPLES, first_good, judge
from edgeml.exporter.calibrate.coreml import watch_coreml
from edgeml.exporter.calibrate.feeds import Feeds, answers, count
from edgeml.exporter.calibrate.observers import OBSERVERS, Range
from edgeml.exporter.calibrate.stability import unstable
from edgeml.exporter.calibrate.statistics import Statistics, gather
from edgeml.exporter.convert.coreml import coremltools, packed, passes
from edgeml.exporter.convert.onnx import unsupported
from edgeml.exporter.mil.backend import count_operations, open_mil
from edgeml.exporter.precision import Ranges
from edgeml.exporter.quantize.coreml_weights import opened
from edgeml.exporter.quantize.result import Quantized
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.wire.errors import UnsupportedError

IOS17: Final = 8  # the specification version that has quantize and dequantize
TRIED: Final = ("headroom", "min-max", "mse")  # widest first, as for the other formats
HALVES: Final = 2
LEAST_WIDTH: Final = 255 * 2.0**-20  # of a range: scales are float16, where a much smaller one would be zero
PASSING: Final = frozenset({"cast", "softmax", "sigmoid", "relu", "reshape", "squeeze", "expand_dims"})


def to_w8a8(half: bytes, small: bytes, feeds: Feeds, ranges: Ranges) -> Quantized:
    """The W8A8 form of a float16 model, by its form with int8 weights, `small`.

    "auto" takes the observer that errs least on the half of the samples it did not see.

    Raises:
        UnsupportedError: coremltools cannot do it, or nothing in the model computes on integers.
    """
    samples = count(feeds)
    seen = gather(watch_coreml(half, feeds), HALVES)
    way, note = ("headroom" if ranges == "auto" else ranges), "as asked"
    if ranges == "auto" and samples < LEAST_SAMPLES:
        note = f"{samples} samples are too few to compare with others"
    elif ranges == "auto":
        shown = seen.without(1)
        errors = judge(
            TRIED,
            lambda tried, _: with_activations(small, _ranges(shown, tried)),
            _each,
            lambda some: _each(half, some),
            feeds,
            folds=(1,),
            parts=HALVES,
        )
        way = TRIED[first_good(errors)]
        listed = ", ".join(f"{name} {100 * error:.2g} %" for name, error in zip(TRIED, errors, strict=True))
        note = f"chosen by the error on half of the calibration samples ({listed} of the outputs' deviation)"
    whole = seen.without()
    result = with_activations(small, _ranges(whole, way))
    rounded = count_operations(result).get("quantize", 0)
    if not rounded:
        raise UnsupportedError("no operation of this model computes on integers in Core ML", hint="ask for int8-weights")
    notes = (f"{rounded} activations are int8, ranges by {way}, {note}", *calibration_notes(whole))
    return Quantized(result, notes, unstable(seen.half(0), seen.half(1)))


def with_activations(model: bytes, ranges: Mapping[str, Range]) -> bytes:
    """A packed model whose convolutions, products, sums and pools read and give int8, but what gives the answer.

    `ranges`: tensor name -> range. The passes that miscompile are left out: they would merge neighbours with different scales.
    """
    ct = coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil.passes.graph_pass import PassOption
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
    from coremltools.optimize import coreml as compress

    integers = compress.OpLinearQuantizerConfig(mode="linear", dtype="int8")
    with opened(ct, model) as mlmodel:
        spec = mlmodel.get_spec()
        version = max(spec.specificationVersion, IOS17)
        program = load(spec, version, mlmodel.weights_dir)
        try:
            last = dict.fromkeys(_last_operations(program))  # name -> None: nothing rounds what they give
            for name, but in (("insert_prefix", {}), ("insert_suffix", last)):
                config = compress.OptimizationConfig(global_config=integers, op_name_configs=but)
                graph_pass = PASS_REGISTRY[f"compression::{name}_quantize_dequantize_pair"]
                graph_pass.set_options([PassOption("config", config), PassOption("activation_stats", _statistics(ranges))])
                graph_pass.apply(program)
            PASS_REGISTRY["common::dequantize_quantize_pair_elimination"].apply(program)
            converted = ct.convert(
                program,
                source="milinternal",
                convert_to="mlprogram",
                compute_precision=ct.precision.FLOAT32,  # leave it as it is: it is float16 already
                minimum_deployment_target=ct.target(version),
                pass_pipeline=passes(),
                skip_model_load=True,
            )
        except Exception as error:
            raise unsupported("coremltools", error) from error
        return packed(converted)


def _last_operations(program: Any) -> Iterator[str]:
    """The operations that compute the outputs, be it through a softmax: their rounding would go straight into the answer."""
    for output in program.functions["main"].outputs:
        operation = output.op
        while operation is not None and operation.op_type in PASSING:
            operation = operation.inputs["x"].op
        if operation is not None:
            yield operation.name


def _each(model: bytes, feeds: Feeds) -> Iterator[list[Array]]:
    return answers(open_mil(model, EngineOptions()), feeds)


def _ranges(seen: Mapping[str, Statistics], observer: str) -> dict[str, Range]:
    return {name: OBSERVERS[observer](statistics) for name, statistics in seen.items()}


def _statistics(ranges: Mapping[str, Range]) -> dict[str, Any]:
    return {name: {"rmin": low, "rmax": max(high, low + LEAST_WIDTH)} for name, (low, high) in ranges.items()}
