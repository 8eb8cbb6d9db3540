"""TFLite in other precisions than float32; inputs and outputs stay float32.

int8 and int16: quantize as `static` says, written by ai-edge-quantizer with ranges of our own: the model rounds its input and
gives real numbers back. A small last layer before a softmax stays float, too.
"""

from __future__ import annotations

from typing import Literal

from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.precision import Ranges
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.quantize.static import to_int8, to_int16
from edgeml.exporter.quantize.tflite_fold import ready_tflite
from edgeml.exporter.quantize.tflite_network import TfliteNetwork
from edgeml.exporter.quantize.tflite_recipe import write_fp16
from edgeml.exporter.quantize.weights import rounding_note, with_rounded_weights
from edgeml.wire.errors import UnsupportedError
from edgeml.wire.manifest import Precision


def smaller_tflite(
    model: bytes,
    precision: Precision,
    feeds: Feeds | None,
    ranges: Ranges = "auto",
    keep_float: frozenset[str] = frozenset(),
    *,
    whole: bool = False,
) -> Quantized:
    """A float32 model in another precision; `feeds` are calibration samples by the model's own input names.

    `keep_float` names outputs of operators that stay float. `whole`: in int8 nothing else does, the last layer included.
    """
    if precision == "fp16":
        return Quantized(to_fp16_tflite(model))
    if precision in {"int8-dynamic", "int8-weights", "int4-weights"}:
        bits: Literal[8, 4] = 4 if precision == "int4-weights" else 8
        return to_small_weights_tflite(model, feeds, bits=bits, dynamic=precision == "int8-dynamic", keep_float=keep_float)
    assert feeds is not None, "the plan asks for samples"
    if precision == "int16":
        return to_int16_tflite(model, feeds, keep_float=keep_float, ranges=ranges)
    assert precision == "int8", "the plan asks for nothing else"
    return to_int8_tflite(model, feeds, keep_float=keep_float, ranges=ranges, whole=whole)


def to_int8_tflite(
    model: bytes,
    feeds: Feeds,
    *,
    task: Literal["classify", "regress"] = "classify",
    keep_float: frozenset[str] = frozenset(),
    ranges: Ranges = "auto",
    whole: bool = False,
) -> Quantized:
    """The static int8 form of a float32 model; inputs and outputs stay float32.

    `feeds`: the model's own input names -> samples on axis 0. `keep_float` names output tensors of operators that stay float.

    Raises:
        ModelError, PlanError: the model or the samples cannot be used.
        UnsupportedError: the model cannot be quantized.
    """
    del task  # the error that chooses is the same for both
    network = TfliteNetwork(ready_tflite(model), keep_float, whole=whole)
    made = to_int8(network, model, feeds, ranges)
    return Quantized(made.model, (*made.notes, *network.loop_notes()), made.warnings)


def to_int16_tflite(
    model: bytes, feeds: Feeds, *, keep_float: frozenset[str] = frozenset(), ranges: Ranges = "auto"
) -> Quantized:
    """int8 weights and int16 activations, symmetric; otherwise as `to_int8_tflite`.

    Raises:
        UnsupportedError: the model cannot be quantized.
    """
    return to_int16(TfliteNetwork(ready_tflite(model), keep_float), feeds, ranges)


def to_small_weights_tflite(
    model: bytes,
    feeds: Feeds | None,
    *,
    bits: Literal[8, 4],
    dynamic: bool,
    keep_float: frozenset[str] = frozenset(),
) -> Quantized:
    """int8 or int4 weights and float32 activations, which `dynamic` operators round when they run.

    Raises:
        UnsupportedError: the model has no weights that can be stored so.
    """
    whole = TfliteNetwork(ready_tflite(model), keep_float, ends_float=False)
    network, scales = with_rounded_weights(
        whole, feeds, lambda layer, inputs: inputs if bits == 4 and whole.has_four_bits(layer) else None
    )
    written = network.with_weights(scales, dynamic=dynamic)
    if len(written) >= len(model) and not keep_float:
        raise UnsupportedError("no weights of this model get smaller", hint="ask for fp32 or fp16")
    four = sum(table.ndim == 2 for table in scales.values())
    kinds = [f"{four} int4"] if four else []
    kinds += [f"{len(scales) - four} int8"] if len(scales) > four else []
    how = "rounding inputs when it runs, computing in integers" if dynamic else "computing in float32"
    note = f"weight tensors: {', '.join(kinds)}, a scale per channel, {rounding_note(feeds)}; {how}"
    return Quantized(written, (note,))


def to_fp16_tflite(model: bytes) -> bytes:
    """The float16 form of a float32 model: weights are stored as float16; computing, inputs and outputs stay float32.

    Raises:
        UnsupportedError: the model cannot be converted.
    """
    return write_fp16(model)
