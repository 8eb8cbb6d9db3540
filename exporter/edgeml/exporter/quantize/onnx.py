"""ONNX in float16 and int8.

int8: fold what can be folded, quantize as `static` says, write QuantizeLinear and DequantizeLinear around integer operators.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from edgeml.exporter.calibrate.checks import FLOAT16_LIMIT
from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.quantize.fold import initializers, ready
from edgeml.exporter.quantize.onnx_network import OnnxNetwork, with_biases
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.quantize.static import to_int8
from edgeml.runtime.backends import Array
from edgeml.wire.errors import MissingExtraError, UnsupportedError
from edgeml.wire.manifest import Precision


def smaller_onnx(model: bytes, precision: Precision, feeds: Feeds | None) -> Quantized:
    """A float32 model in another precision; `feeds` are calibration samples by the model's own input names."""
    if precision == "fp16":
        return Quantized(to_fp16_onnx(model))
    assert precision == "int8", "the plan asks for nothing else"
    assert feeds is not None, "the plan asks for samples"
    return to_int8_onnx(model, feeds)


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
    quantized = to_int8(open_onnx_network(model, keep_float), model, feeds)
    if b"QuantizeLinear" not in quantized.model:
        raise UnsupportedError("no operator of this model can run on int8", hint="ask for fp32 or fp16")
    return quantized


def open_onnx_network(model: bytes, keep_float: frozenset[str] = frozenset()) -> OnnxNetwork:
    """The folded network of a model.

    Raises:
        ModelError: ONNX Runtime cannot load it.
    """
    return OnnxNetwork(with_biases(ready(model)), keep_float)


def to_fp16_onnx(model: bytes) -> bytes:
    """The float16 form of a float32 model; inputs and outputs stay float32, and so do operators whose constants overflow."""
    try:
        import onnx
        from onnxconverter_common import float16
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnxconverter_common", "export") from error
    proto = ready(model)
    constants = initializers(proto.graph)  # folded first: what is folded is not rounded between
    large = {name for name, tensor in constants.items() if _overflows(onnx.numpy_helper.to_array(tensor))}
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"node_{number}"
    blocked = [node.name for node in proto.graph.node if large & set(node.input)]
    converted = float16.convert_float_to_float16(
        proto, keep_io_types=True, node_block_list=blocked, disable_shape_infer=False, min_positive_val=0.0
    )
    _float_outputs(converted)
    del converted.graph.value_info[:]
    half: bytes = converted.SerializeToString(deterministic=True)
    return half


def _float_outputs(proto: Any) -> None:
    """The converter forgets to keep an output float32 if the operator that gives it stayed float."""
    import onnx

    makers = {name: node for node in proto.graph.node for name in node.output}
    for output in proto.graph.output:
        maker = makers.get(output.name)
        if output.type.tensor_type.elem_type != onnx.TensorProto.FLOAT16 or maker is None or maker.op_type != "Cast":
            continue
        maker.attribute[0].i = onnx.TensorProto.FLOAT
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _overflows(values: Array) -> bool:
    return values.dtype == np.float32 and values.size > 0 and float(np.abs(values).max()) > FLOAT16_LIMIT
