"""TFLite in float16 and int8.

int8: quantize as `static` says, written by ai-edge-quantizer with ranges of our own. Inputs and outputs stay float32: the model
rounds its input and gives real numbers back. A small last layer before a softmax stays float, too.
"""

from __future__ import annotations

from typing import Literal

from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.quantize.static import to_int8
from edgeml.exporter.quantize.tflite_network import TfliteNetwork
from edgeml.exporter.quantize.tflite_recipe import write_fp16
from edgeml.wire.manifest import Precision


def smaller_tflite(model: bytes, precision: Precision, feeds: Feeds | None) -> Quantized:
    """A float32 model in another precision; `feeds` are calibration samples by the model's own input names."""
    if precision == "fp16":
        return Quantized(to_fp16_tflite(model))
    assert precision == "int8", "the plan asks for nothing else"
    assert feeds is not None, "the plan asks for samples"
    return to_int8_tflite(model, feeds)


def to_int8_tflite(
    model: bytes, feeds: Feeds, *, task: Literal["classify", "regress"] = "classify", keep_float: frozenset[str] = frozenset()
) -> Quantized:
    """The static int8 form of a float32 model; inputs and outputs stay float32.

    `feeds`: the model's own input names -> samples on axis 0. `keep_float` names output tensors of operators that stay float.

    Raises:
        ModelError, PlanError: the model or the samples cannot be used.
        UnsupportedError: the model cannot be quantized.
    """
    del task  # the error that chooses is the same for both
    return to_int8(TfliteNetwork(model, keep_float), model, feeds)


def to_fp16_tflite(model: bytes) -> bytes:
    """The float16 form of a float32 model: weights are stored as float16; computing, inputs and outputs stay float32.

    Raises:
        UnsupportedError: the model cannot be converted.
    """
    return write_fp16(model)
