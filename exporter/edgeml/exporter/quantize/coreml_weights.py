"""Small weights in Core ML: constants behind an operation that unpacks them to what computes.

int8: one scale per output channel, zero point 0. int4 (iOS 18): blocks of about BLOCK weights of an output channel, each with
its scale; what has fewer weights a channel is int8. Palettes: 16, 64 or 256 values per tensor, found by k-means.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from edgeml.exporter.convert.coreml import coremltools, packed
from edgeml.exporter.convert.onnx import unsupported
from edgeml.exporter.mil.backend import count_operations
from edgeml.exporter.mil.package import unpack_mlpackage
from edgeml.exporter.quantize.result import Quantized
from edgeml.exporter.quantize.weights import BLOCK, LEAST_WEIGHTS
from edgeml.wire.errors import UnsupportedError

UNPACKING: Final = ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense")
INT8: Final = "compression::linear_quantize_weights"
AFTER_INT8: Final = ("common::dead_code_elimination", "common::const_deduplication", "common::dead_code_elimination")
LEAST_BLOCK: Final = 16  # weights; a scale of 16 bits for fewer would cost as much as the four bits that it saves


def store_int8(pipeline: Any) -> None:
    """Have a conversion end with large weights stored as int8, as `to_int8` does to its result: one conversion, not two."""
    _, compress = _tools()
    for name in (INT8, *AFTER_INT8):
        pipeline.append_pass(name)
    pipeline.set_options(INT8, {"config": _config(compress, _int8(compress), frozenset())})


def int8_result(model: bytes) -> Quantized:
    """What a conversion with `store_int8` made.

    Raises:
        UnsupportedError: nothing got smaller.
    """
    return _result(model, "int8, symmetric, a scale per channel")


def to_int8(model: bytes, keep_float: frozenset[str]) -> Quantized:
    """Large weights as int8; `keep_float` names operations of the packed model whose weights stay as they are.

    Raises:
        UnsupportedError: coremltools cannot do it, or there are none.
    """
    ct, compress = _tools()
    with opened(ct, model) as mlmodel:
        config = _config(compress, _int8(compress), keep_float)
        return int8_result(_compressed(lambda: compress.linear_quantize_weights(mlmodel, config)))


def to_int4(model: bytes, keep_float: frozenset[str] = frozenset()) -> Quantized:
    """Large weights as int4 in blocks, others as int8; the model is for iOS 18.

    Raises:
        UnsupportedError: coremltools cannot do it, or there are none.
    """
    ct, compress = _tools()
    with opened(ct, model) as mlmodel:
        eight = _int8(compress)
        chosen = {}
        for name, weight in compress.get_weights_metadata(mlmodel, weight_threshold=LEAST_WEIGHTS).items():
            if keep_float & {child.name for child in weight.child_ops}:
                continue
            block = block_of(tuple(weight.val.shape), [child.op_type for child in weight.child_ops])
            if block is not None:
                chosen[name] = _linear(compress, dtype="int4", granularity="per_block", block_size=block)
        config = compress.OptimizationConfig(global_config=eight, op_name_configs=chosen | dict.fromkeys(keep_float))
        result = _compressed(lambda: compress.linear_quantize_weights(mlmodel, config))
    return _result(result, f"int4 in blocks of about {BLOCK} ({len(chosen)}) or int8")


def to_palette(model: bytes, bits: Literal[4, 6, 8], keep_float: frozenset[str] = frozenset()) -> Quantized:
    """Large weights as indices into a palette of 2^bits values a tensor.

    Raises:
        UnsupportedError: coremltools cannot do it, or there are none.
    """
    ct, compress = _tools()
    settings = compress.OpPalettizerConfig(mode="kmeans", nbits=bits, granularity="per_tensor", weight_threshold=LEAST_WEIGHTS)
    as_is = compress.OpPalettizerConfig(mode="unique", granularity="per_tensor", weight_threshold=LEAST_WEIGHTS)
    with opened(ct, model) as mlmodel:
        weights = compress.get_weights_metadata(mlmodel, weight_threshold=LEAST_WEIGHTS)
        few = {name: as_is for name, weight in weights.items() if weight.unique_values <= 2**bits}
        config = compress.OptimizationConfig(global_config=settings, op_name_configs=few | dict.fromkeys(keep_float))
        result = _compressed(lambda: compress.palettize_weights(mlmodel, config))
    return _result(result, f"indices of {bits} bits into {2**bits} values a tensor")


def block_of(shape: tuple[int, ...], readers: list[str]) -> tuple[int, ...] | None:
    """The block of int4 for weights (outputs, inputs, *kernel): along inputs, whole kernels, about BLOCK weights, no remainder.

    `None` where a channel has too few weights, or the axes are not those of a layer.
    """
    if not readers or set(readers) - {"conv", "linear"} or len(shape) < 2:
        return None
    kernel = math.prod(shape[2:])
    fitting = [size for size in range(1, shape[1] + 1) if shape[1] % size == 0 and size * kernel >= LEAST_BLOCK]
    if not fitting:
        return None
    return (1, min(fitting, key=lambda size: (abs(size * kernel - BLOCK), size)), *shape[2:])


@contextmanager
def opened(ct: Any, model: bytes) -> Iterator[Any]:
    """The coremltools model of packed bytes, while its files exist."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mlpackage"
        unpack_mlpackage(model, path)
        yield ct.models.MLModel(str(path), skip_model_load=True)


def _tools() -> tuple[Any, Any]:
    ct = coremltools()
    from coremltools.optimize import coreml as compress

    return ct, compress


def _linear(compress: Any, **options: Any) -> Any:
    return compress.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=LEAST_WEIGHTS, **options)


def _int8(compress: Any) -> Any:
    return _linear(compress, dtype="int8", granularity="per_channel")


def _config(compress: Any, settings: Any, keep_float: frozenset[str]) -> Any:
    return compress.OptimizationConfig(global_config=settings, op_name_configs=dict.fromkeys(keep_float))


def weighty(model: bytes) -> tuple[tuple[str, str], ...]:
    """(kind, name) of each operation with weights large enough to be made small."""
    ct, compress = _tools()
    with opened(ct, model) as mlmodel:
        found = compress.get_weights_metadata(mlmodel, weight_threshold=LEAST_WEIGHTS)
        operations = [(child.op_type, child.name) for weight in found.values() for child in weight.child_ops]
    return tuple(sorted(set(operations)))


def _compressed(compress: Any) -> bytes:
    try:
        return packed(compress())
    except Exception as error:
        raise unsupported("coremltools", error) from error


def _result(model: bytes, how: str) -> Quantized:
    counts = count_operations(model)
    weights = sum(counts.get(kind, 0) for kind in UNPACKING)
    if not weights:
        raise UnsupportedError(
            f"no weight tensor of this model has {LEAST_WEIGHTS} elements outside of loops, so none would get smaller",
            hint="ask for fp32 or fp16",
        )
    return Quantized(model, (f"{weights} weight tensors are {how}; computing in float16",))
