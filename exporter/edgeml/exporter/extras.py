"""Which extra of `edgeml-toolkit` brings a package that is missing; looked at before anything slow begins."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from edgeml.exporter.precision import AVAILABLE
from edgeml.exporter.source.model import Family
from edgeml.wire.errors import MissingExtraError
from edgeml.wire.manifest import Format, Precision

EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "keras": ("tensorflow", "keras", "tf_keras", "tf2onnx", "h5py"),
    "sklearn": ("sklearn", "skl2onnx"),
    "export": (
        "ai_edge_litert", "ai_edge_quantizer", "coremltools", "jinja2", "litert_torch", "onnx",
        "onnxruntime", "onnxscript", "onnxslim", "rich", "scipy", "torch",
    ),
}  # fmt: skip
SOURCES: Final[dict[Family, tuple[str, ...]]] = {
    "tensorflow": ("tensorflow", "keras", "tf_keras", "h5py"),
    "torch": ("torch",),
    "onnx": ("onnx", "onnxruntime"),
    "tflite": ("ai_edge_litert",),
    "sklearn": ("sklearn", "skl2onnx", "torch"),
}
ROUTES: Final[dict[tuple[Family, Format], tuple[str, ...]]] = {
    ("tensorflow", "onnx"): ("tf2onnx",),
    ("torch", "onnx"): ("onnxscript",),
    ("onnx", "onnx"): ("onnxslim",),
    ("torch", "tflite"): ("litert_torch",),
    ("onnx", "tflite"): ("torch", "litert_torch"),
    ("tflite", "onnx"): ("tensorflow", "tf2onnx"),
    ("tflite", "coreml"): ("tensorflow", "tf2onnx", "onnx"),
    ("sklearn", "onnx"): ("onnxscript",),
    ("sklearn", "tflite"): ("litert_torch",),
}
FORMATS: Final[dict[Format, tuple[str, ...]]] = {
    "onnx": ("onnx", "onnxruntime"),
    "tflite": ("ai_edge_litert",),
    "coreml": ("coremltools", "torch"),  # the interpreter computes with torch
}
SMALLER: Final[dict[tuple[Format, Precision], tuple[str, ...]]] = {
    **{("tflite", precision): ("ai_edge_quantizer",) for precision in AVAILABLE["tflite"] if precision != "fp32"},
}


def require(family: Family, formats: Sequence[Format], precisions: Sequence[Precision]) -> None:
    """Check that what an export will import is there.

    Raises:
        MissingExtraError: it is not.
    """
    wanted = [*SOURCES[family], *(name for format_ in formats for name in FORMATS[format_])]
    wanted += [name for format_ in formats for name in ROUTES.get((family, format_), ())]
    wanted += [name for format_ in formats for precision in precisions for name in SMALLER.get((format_, precision), ())]
    for name in wanted:
        if find_spec(name) is None:
            raise MissingExtraError(name, _extra(name) or "export")


def _extra(package: str) -> str | None:
    return next((extra for extra, packages in EXTRAS.items() if package in packages), None)


def missing(error: BaseException | None) -> MissingExtraError | None:
    """What to install, if `error` or what caused it is that a package of an extra is not there."""
    while error is not None:
        if isinstance(error, MissingExtraError):
            return error
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").partition(".")[0]
            if (extra := _extra(package)) is not None:
                return MissingExtraError(package, extra)
        error = error.__cause__
    return None
