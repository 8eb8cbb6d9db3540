"""To TFLite, always for one sample a call: Keras and SavedModel by TensorFlow's converter, torch and ONNX by litert-torch.

A free batch axis breaks most litert-torch models and every recurrent Keras model, so the axis is fixed and the session loops.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeml.exporter.convert.onnx import unsupported
from edgeml.exporter.source.model import SourceRef
from edgeml.wire.errors import MissingExtraError, UnsupportedError

MISSING: Final = re.compile(r"(?:TF Select|Custom) ops: ([\w, ]+)|op '?tf\.(\w+)'?|'tf\.(\w+)' op")


def from_tensorflow(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the TFLite of a Keras or SavedModel source; gives notes."""
    import tensorflow

    from edgeml.exporter.source.tensorflow import frozen

    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions([frozen(msgspec.convert(source, SourceRef), 1)])
    converter.target_spec.supported_ops = [tensorflow.lite.OpsSet.TFLITE_BUILTINS]
    try:
        model = converter.convert()
    except Exception as error:
        names = {name for match in MISSING.findall(str(error)) for part in match for name in part.split(", ") if name}
        if names:
            listed = ", ".join(map(repr, sorted(names)))
            raise UnsupportedError(f"TFLite has no operator for {listed}", hint="rewrite it with others") from error
        raise unsupported("TFLiteConverter", error) from error
    Path(out).write_bytes(model)
    return []


def from_torch(source: dict[str, Any], out: str) -> list[str]:
    """Job: write the TFLite of a torch source, or of an ONNX source through its torch form; gives notes."""
    try:
        import litert_torch
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "litert_torch", "export") from error
    from edgeml.exporter.source.torch import load

    model = load(msgspec.convert(source, SourceRef))
    try:
        edge = litert_torch.convert(model.module, model.example(1))
    except Exception as error:
        raise unsupported("litert-torch", error) from error
    Path(out).write_bytes(edge.model_content())
    return []


from_onnx = from_torch
