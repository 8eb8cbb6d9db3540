"""Open a model file of any format for tracing; the engine of another format need not be installed."""

from __future__ import annotations

from edgeml.exporter.layers.trace import Model
from edgeml.wire.manifest import Format


def open_model(format_: Format, data: bytes) -> Model:
    """Open a model file for tracing.

    Raises:
        ModelError: it is not a model of this format.
        EngineError, UnsupportedError: the engine cannot run it.
        MissingExtraError: its engine is not installed.
    """
    if format_ == "onnx":
        from edgeml.exporter.layers.onnx import OnnxModel

        return OnnxModel(data)
    if format_ == "tflite":
        from edgeml.exporter.layers.tflite import TfliteModel

        return TfliteModel(data)
    from edgeml.exporter.layers.coreml import CoremlModel

    return CoremlModel(data)
