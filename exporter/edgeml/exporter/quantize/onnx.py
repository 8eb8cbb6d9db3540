"""ONNX in other precisions than float32; inputs and outputs stay float32.

int8 and int16: fold what can be folded, quantize as `static` says, write QuantizeLinear and DequantizeLinear around integer
operators. The others change weights and what reads them, as `onnx_weights`, `onnx_dynamic` and `onnx_half` say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import onnx

from edgeml.exporter.calibrate.checks import beyond_float16, overflow_warnings
from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.calibrate.onnx import watch_onnx
from edgeml.exporter.precision import Ranges
from edgeml.exporter.quantize.fold import ready
from edgeml.exporter.quantize.onnx_dynamic import write_dynamic
from edgeml.exporter.quantize.onnx_half import to_half
from edgeml.exporter.quantize.onnx_network import OnnxNetwork, with_biases
from edgeml.exporter.quantize.onnx_weights import OPSET21, RECURRENT, SmallWeights, at_opset
from edgeml.exporter.quantize.qdq import shorten_names
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.quantize.static import to_int8, to_int16
from edgeml.exporter.quantize.weights import BLOCK, LEAST_WEIGHTS, rounding_note, with_rounded_weights
from edgeml.wire.errors import UnsupportedError
from edgeml.wire.manifest import Precision


def smaller_onnx(
    model: bytes,
    precision: Precision,
    feeds: Feeds | None,
    ranges: Ranges = "auto",
    keep_float: frozenset[str] = frozenset(),
) -> Quantized:
    """A float32 model in another precision; `feeds` are calibration samples by the model's own input names.

    `keep_float` names outputs of operators that stay float.
    """
    if precision == "fp16":
        return to_fp16_onnx(model, feeds)
    if precision == "int8-dynamic":
        return to_dynamic_onnx(model, feeds, keep_float)
    if precision in {"int8-weights", "int4-weights"}:
        return to_small_weights_onnx(model, feeds, bits=4 if precision == "int4-weights" else 8, keep_float=keep_float)
    assert feeds is not None, "the plan asks for samples"
    if precision == "int16":
        return to_int16_onnx(model, feeds, keep_float=keep_float, ranges=ranges)
    assert precision == "int8", "the plan asks for nothing else"
    return to_int8_onnx(model, feeds, keep_float=keep_float, ranges=ranges)


def to_int8_onnx(
    model: bytes,
    feeds: Feeds,
    *,
    task: Literal["classify", "regress"] = "classify",
    keep_float: frozenset[str] = frozenset(),
    ranges: Ranges = "auto",
) -> Quantized:
    """The static int8 form of a float32 model; inputs and outputs stay float32.

    `feeds`: the model's own input names -> samples on axis 0. `keep_float` names nodes, or their outputs, that stay float.

    Raises:
        ModelError, PlanError: the model or the samples cannot be used.
        UnsupportedError: nothing in the model can be quantized.
    """
    del task  # the error that chooses is the same for both
    made = to_int8(open_onnx_network(model, keep_float), model, feeds, ranges)
    return _with_integers(_with_recurrent_weights(made, keep_float))


def _with_recurrent_weights(made: Quantized, keep_float: frozenset[str]) -> Quantized:
    """LSTM and GRU compute in float32 on every engine; their weights are stored as int8 all the same."""
    proto = onnx.load_from_string(made.model)
    small = SmallWeights(proto, {}, keep_float)
    small.write(8, RECURRENT)
    if not small.counts[8]:
        return made
    note = f"{small.counts[8]} weight tensors of recurrent operators are int8, a scale per channel; they compute in float32"
    shorten_names(proto)
    return replace(made, model=proto.SerializeToString(deterministic=True), notes=(*made.notes, note))


def to_int16_onnx(
    model: bytes, feeds: Feeds, *, keep_float: frozenset[str] = frozenset(), ranges: Ranges = "auto"
) -> Quantized:
    """int8 weights and 16-bit activations, which ONNX has from opset 21 on; otherwise as `to_int8_onnx`."""
    return _with_integers(to_int16(open_wide_network(model, keep_float), feeds, ranges))


def open_wide_network(model: bytes, keep_float: frozenset[str] = frozenset()) -> OnnxNetwork:
    """The folded network of a model, at an opset that rounds activations to 16 bits."""
    return OnnxNetwork(at_opset(with_biases(ready(model)), OPSET21), keep_float)


def _with_integers(quantized: Quantized) -> Quantized:
    if b"QuantizeLinear" not in quantized.model:
        raise UnsupportedError("no operator of this model can run on integers", hint="ask for fp32 or fp16")
    return quantized


def open_onnx_network(model: bytes, keep_float: frozenset[str] = frozenset()) -> OnnxNetwork:
    """The folded network of a model.

    Raises:
        ModelError: ONNX Runtime cannot load it.
    """
    return OnnxNetwork(with_biases(ready(model)), keep_float)


def to_small_weights_onnx(
    model: bytes, feeds: Feeds | None, *, bits: Literal[8, 4], keep_float: frozenset[str] = frozenset()
) -> Quantized:
    """The model with int8 or int4 weights that are unpacked to float32 before they are used.

    Raises:
        ModelError: the model cannot be loaded.
        UnsupportedError: it has no weights to speak of, or cannot be brought to an opset that has int4.
    """
    network, scales = with_rounded_weights(
        open_onnx_network(model, keep_float), feeds, lambda _, inputs: BLOCK if bits == 4 and inputs >= BLOCK else None
    )
    proto = at_opset(network.proto, OPSET21) if bits == 4 else network.proto
    small = SmallWeights(proto, scales, keep_float)
    small.write(bits)
    kinds = [f"{small.counts[4]} int4, a scale for {BLOCK} inputs of a channel"] if small.counts[4] else []
    kinds += [f"{small.counts[8]} int8, a scale per channel"] if small.counts[8] else []
    return _written(
        proto, f"weight tensors: {'; '.join(kinds)}; {rounding_note(feeds)}; computing in float32", sum(small.counts.values())
    )


def to_dynamic_onnx(model: bytes, feeds: Feeds | None, keep_float: frozenset[str] = frozenset()) -> Quantized:
    """The model with int8 weights and activations that are rounded when it runs, each by its own range then.

    Raises:
        ModelError: the model cannot be loaded.
        UnsupportedError: it has no weights to speak of.
    """
    network, scales = with_rounded_weights(open_onnx_network(model, keep_float), feeds, lambda *_: None)
    small = SmallWeights(network.proto, scales, keep_float)
    integer = write_dynamic(network.proto, small)
    small.write(8)
    note = (
        f"{integer} products and recurrent layers compute in integers, {small.counts[8]} weight tensors of others are int8 and "
    )
    return _written(network.proto, f"{note}unpacked to float32; {rounding_note(feeds)}", integer + small.counts[8])


def to_fp16_onnx(model: bytes, feeds: Feeds | None = None) -> Quantized:
    """The float16 form of a float32 model; inputs and outputs stay float32, and so do operators float16 would overflow in.

    Constants show what overflows, and `feeds`, if given, activations do.

    Raises:
        UnsupportedError: nothing in it can be float16 (trees).
    """
    proto = ready(model)
    beyond = {} if feeds is None else beyond_float16(watch_onnx(proto, feeds))
    half, kept = to_half(proto, beyond)
    if any(node.domain == "ai.onnx.ml" for node in half.graph.node) and not _has_half(half):
        raise UnsupportedError("no operator of this model can run on float16", hint="ask for fp32")
    shorten_names(half)
    notes = [f"{kept} operators stay float32"] if kept else []
    return Quantized(half.SerializeToString(deterministic=True), tuple(notes), overflow_warnings(beyond))


def _has_half(proto: Any) -> bool:
    """Whether anything is stored or computed as float16."""
    half = 10  # TensorProto.FLOAT16
    casts = [a.i for node in proto.graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"]
    return half in casts or any(tensor.data_type == half for tensor in proto.graph.initializer)


def _written(proto: Any, note: str, count: int) -> Quantized:
    if not count:
        raise UnsupportedError(
            f"no weight tensor of this model has {LEAST_WEIGHTS} elements, so none would get smaller",
            hint="ask for fp32 or fp16",
        )
    shorten_names(proto)
    return Quantized(proto.SerializeToString(deterministic=True), (note,))
