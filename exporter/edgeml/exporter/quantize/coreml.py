"""Core ML's float16 and int8-weight models from the packed float32 one; needs coremltools, not the source's framework.

float16: every operation computes in float16, inputs and outputs stay float32. int8: weights only, one scale a channel,
symmetric; activations are float16, the only precision the Neural Engine has. Run these where
TensorFlow cannot be seen: coremltools would import it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.convert.coreml import coremltools, packed, passes
from edgeml.exporter.convert.onnx import unsupported
from edgeml.exporter.mil.backend import count_operations
from edgeml.exporter.mil.package import unpack_mlpackage
from edgeml.exporter.precision import Ranges
from edgeml.exporter.quantize.result import Quantized
from edgeml.wire.manifest import Precision

LEAST_WEIGHTS: Final = 256  # elements; below it scales and operations cost more than int8 saves
_UNPACKING: Final = ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale")


def smaller_coreml(model: bytes, precision: Precision, feeds: Feeds | None, ranges: Ranges = "auto") -> Quantized:
    """A packed float32 model in another precision; `feeds` are calibration samples by the model's own input names."""
    del feeds, ranges
    if precision == "fp16":
        return Quantized(to_fp16_coreml(model))
    assert precision in {"int8", "int8-weights"}, "the plan asks for nothing else"
    return to_int8_coreml(model)


def to_fp16_coreml(model: bytes) -> bytes:
    """The float16 form of a packed float32 model; operations with constants beyond float16's range stay float32."""
    ct = coremltools()
    with _opened(ct, model) as mlmodel:
        spec = mlmodel.get_spec()
        from coremltools.converters.mil.frontend.milproto.load import load

        program = load(spec, spec.specificationVersion, mlmodel.weights_dir)
        try:
            converted = ct.convert(
                program,
                source="milinternal",
                convert_to="mlprogram",
                compute_precision=ct.precision.FLOAT16,
                minimum_deployment_target=ct.target(spec.specificationVersion),
                pass_pipeline=passes(),
                skip_model_load=True,
            )
        except Exception as error:
            raise unsupported("coremltools", error) from error
        return packed(converted)


def to_int8_coreml(model: bytes, *, compute: Literal["float16", "float32"] = "float16") -> Quantized:
    """A packed float32 model with its large weights as int8, each output channel with its own scale, zero point 0.

    `compute` is what the operations calculate in: float32 is for models whose activations overflow float16.
    """
    ct = coremltools()
    if compute == "float16":
        model = to_fp16_coreml(model)
    from coremltools.optimize import coreml as compress

    settings = compress.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=LEAST_WEIGHTS
    )
    with _opened(ct, model) as mlmodel:
        try:
            quantized = compress.linear_quantize_weights(mlmodel, compress.OptimizationConfig(global_config=settings))
        except Exception as error:
            raise unsupported("coremltools", error) from error
        result = packed(quantized)
    counts = count_operations(result)
    weights = sum(counts.get(kind, 0) for kind in _UNPACKING)
    return Quantized(result, (f"{weights} weight tensors are int8, symmetric, a scale per channel; computing in {compute}",))


def write_smaller(model: str, folder: str) -> list[str]:
    """Job: write `fp16` and `int8` of a packed float32 model file into a folder; gives int8's notes."""
    data = Path(model).read_bytes()
    quantized = to_int8_coreml(data)
    (Path(folder) / "fp16").write_bytes(to_fp16_coreml(data))
    (Path(folder) / "int8").write_bytes(quantized.model)
    return list(quantized.notes)


@contextmanager
def _opened(ct: Any, model: bytes) -> Iterator[Any]:
    """The coremltools model of packed bytes, while its files exist."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mlpackage"
        unpack_mlpackage(model, path)
        yield ct.models.MLModel(str(path), skip_model_load=True)
