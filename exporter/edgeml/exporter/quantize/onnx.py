"""ONNX in float16 and int8.

int8: fold what can be folded, watch every tensor on the calibration samples, choose the observer whose model is nearest to the
float one on samples it did not see, write QuantizeLinear and DequantizeLinear around what runs on integers.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from edgeml.exporter.calibrate.checks import FLOAT16_LIMIT, calibration_notes
from edgeml.exporter.calibrate.choose import choose, chosen_note
from edgeml.exporter.calibrate.feeds import Feeds, count, outputs
from edgeml.exporter.calibrate.observers import OBSERVERS, Range
from edgeml.exporter.calibrate.onnx import watch_onnx
from edgeml.exporter.calibrate.statistics import Statistics, gather
from edgeml.exporter.quantize.fold import initializers, ready
from edgeml.exporter.quantize.qdq import insert, shorten_names
from edgeml.exporter.quantize.result import Quantized
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx
from edgeml.wire.errors import MissingExtraError, UnsupportedError

EXACT: Final = EngineOptions(kernels="exact")  # judge the numbers in the file, not a kernel that saturates
WAYS: Final = ("mse", "min-max", "percentile", "entropy")


def to_int8_onnx(
    model: bytes, feeds: Feeds, *, task: Literal["classify", "regress"] = "classify", keep_float: frozenset[str] = frozenset()
) -> Quantized:
    """The static int8 form of a float32 model; inputs and outputs stay float32.

    `feeds`: the model's own input names -> samples on axis 0. `keep_float` names nodes, or their outputs, that stay float.

    Raises:
        ModelError, PlanError: the model or the samples cannot be used.
        UnsupportedError: nothing in the model can be quantized.
    """
    del task  # the error that chooses is the same for both
    samples = count(feeds)
    proto = ready(model)
    seen: dict[tuple[int, int], dict[str, Statistics]] = {}

    def watched(some: Feeds) -> dict[str, Statistics]:
        key = (id(next(iter(some.values()))), count(some))
        if key not in seen:
            seen[key] = gather(watch_onnx(proto, some))
        return seen[key]

    def quantize(way: str, some: Feeds) -> bytes:
        ranges = {name: OBSERVERS[way](statistics) for name, statistics in watched(some).items()}
        return _written(proto, ranges, keep_float)

    def run(quantized: bytes, some: Feeds) -> list[Array]:
        return outputs(open_onnx(quantized, EXACT), some)

    way, errors = choose(WAYS, quantize, run, lambda some: run(model, some), feeds)
    quantized = quantize(way, feeds)
    if b"QuantizeLinear" not in quantized:
        raise UnsupportedError("no operator of this model can run on int8", hint="ask for fp32 or fp16")
    return Quantized(quantized, (chosen_note(WAYS, way, errors, samples), *calibration_notes(watched(feeds), samples)))


def to_fp16_onnx(model: bytes) -> bytes:
    """The float16 form of a float32 model; inputs and outputs stay float32, and so do operators whose constants overflow."""
    try:
        import onnx
        from onnxconverter_common import float16
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnxconverter_common", "export") from error
    proto = onnx.load_from_string(model)
    constants = initializers(proto.graph)
    large = {name for name, tensor in constants.items() if _overflows(onnx.numpy_helper.to_array(tensor))}
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"node_{number}"
    blocked = [node.name for node in proto.graph.node if large & set(node.input)]
    converted = float16.convert_float_to_float16(
        proto, keep_io_types=True, node_block_list=blocked, disable_shape_infer=False, min_positive_val=0.0
    )
    del converted.graph.value_info[:]
    half: bytes = converted.SerializeToString(deterministic=True)
    return half


def _written(proto: object, ranges: dict[str, Range], keep_float: frozenset[str]) -> bytes:
    written = insert(proto, ranges, keep_float)
    shorten_names(written)
    bytes_: bytes = written.SerializeToString(deterministic=True)
    return bytes_


def _overflows(values: Array) -> bool:
    return values.dtype == np.float32 and values.size > 0 and float(np.abs(values).max()) > FLOAT16_LIMIT
