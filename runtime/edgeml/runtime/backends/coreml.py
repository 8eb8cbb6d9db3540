"""Core ML behind the backend protocol: macOS only.

A Core ML artifact is one blob: the canonical zip of its `.mlpackage`. Linux has no Core ML; there the exporter runs the program
in its own interpreter and marks the result `emulated`.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from edgeml.runtime.backends import Array, Backend, EngineOptions, RawTensor
from edgeml.wire.errors import EngineError, MissingExtraError, ModelError, UnsupportedError

ENGINE: Final = "coreml"
PLATFORM: Final[str] = sys.platform
UNPACKED_LIMIT_BYTES: Final = 4 * 1024**3
_DTYPES: Final = {65568: "float32", 65552: "float16", 65600: "float64", 131104: "int32"}  # MLMultiArrayDataType


class CoreMLBackend:
    """A model package in Core ML, on the CPU only, so that answers do not depend on the accelerator of the day."""

    engine = ENGINE

    def __init__(self, model: Any, folder: Path, version: str) -> None:
        self.version = version
        spec = model.get_spec()
        self.inputs = tuple(_raw(feature, _input_shape(feature)) for feature in spec.description.input)
        self.outputs = tuple(_raw(feature, _output_shape(feature, spec)) for feature in spec.description.output)
        self._model = model
        self._folder = folder

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        feed = {tensor.name: array for tensor, array in zip(self.inputs, inputs, strict=True)}
        try:
            answer = self._model.predict(feed)
        except Exception as error:  # Core ML's errors arrive as bare Exceptions and RuntimeErrors
            raise EngineError(f"Core ML failed: {error}") from error
        return [np.asarray(answer[tensor.name]) for tensor in self.outputs]

    def close(self) -> None:
        self._model = None
        shutil.rmtree(self._folder, ignore_errors=True)


def open_coreml(model: bytes, options: EngineOptions) -> Backend:
    """Load a Core ML package from its archive. `options.threads` is Core ML's own business.

    Raises:
        UnsupportedError: this is not macOS.
        MissingExtraError: coremltools is not installed.
        ModelError: the archive is not a model package.
        EngineError: Core ML refuses it.
    """
    if PLATFORM != "darwin":
        raise UnsupportedError(
            f"Core ML models do not run on {PLATFORM}",
            hint="use the bundle's ONNX or TFLite artifact, or verify it on a Mac",
        )
    return _open_on_macos(model, options)


def _open_on_macos(model: bytes, options: EngineOptions) -> Backend:
    if options.kernels != "default":
        raise EngineError("Core ML has one set of kernels", expected="'default'", got=repr(options.kernels))
    try:
        import coremltools
    except ImportError as error:
        raise MissingExtraError("coremltools", "coreml-runtime") from error
    folder = Path(tempfile.mkdtemp(prefix="edgeml-"))
    try:
        unpack(model, folder / "model.mlpackage")
        loaded = coremltools.models.MLModel(str(folder / "model.mlpackage"), compute_units=coremltools.ComputeUnit.CPU_ONLY)
        return CoreMLBackend(loaded, folder, coremltools.__version__)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ModelError | UnsupportedError):
            raise
        raise EngineError(f"Core ML refuses the model: {error}") from error


def unpack(archive: bytes, folder: Path) -> None:
    """Write the files of a packed `.mlpackage` under `folder`.

    Raises:
        ModelError: not an archive, a path outside it, or too large; files written so far stay, the caller removes them.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > UNPACKED_LIMIT_BYTES:
                raise ModelError("model package too large", expected=f"at most {UNPACKED_LIMIT_BYTES} bytes", got="more")
            for entry in packed.infolist():
                inside = PurePosixPath(entry.filename)
                if inside.is_absolute() or ".." in inside.parts or "\\" in entry.filename:
                    raise ModelError(f"model package holds a path outside itself: {entry.filename!r}")
                target = folder / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(packed.read(entry))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ModelError(f"not a packed .mlpackage: {error}") from error


def _input_shape(feature: Any) -> tuple[int | None, ...]:
    array = feature.type.multiArrayType
    if array.WhichOneof("ShapeFlexibility") != "shapeRange":
        return tuple(int(axis) for axis in array.shape)
    ranges = array.shapeRange.sizeRanges
    return tuple(int(size.lowerBound) if size.lowerBound == size.upperBound else None for size in ranges)


def _output_shape(feature: Any, spec: Any) -> tuple[int | None, ...]:
    """As described; where an axis is free the description says nothing, and the program does."""
    shape = feature.type.multiArrayType.shape
    if shape or spec.WhichOneof("Type") != "mlProgram":
        return tuple(int(axis) for axis in shape)
    main = spec.mlProgram.functions["main"]
    made = (value for op in main.block_specializations[main.opset].operations for value in op.outputs)
    kind = next((value.type.tensorType for value in made if value.name == feature.name), None)
    return (
        ()
        if kind is None
        else tuple(int(axis.constant.size) if axis.WhichOneof("dimension") == "constant" else None for axis in kind.dimensions)
    )


def _raw(feature: Any, shape: tuple[int | None, ...]) -> RawTensor:
    dtype = _DTYPES.get(feature.type.multiArrayType.dataType)
    if dtype is None:
        raise UnsupportedError(f"feature {feature.name!r} is not a multi-array", hint="convert the model with tensor inputs")
    return RawTensor(feature.name, np.dtype(dtype), shape)
