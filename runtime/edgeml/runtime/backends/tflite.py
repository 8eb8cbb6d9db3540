"""LiteRT (or an installed tflite-runtime, on old boards) behind the backend protocol."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Any, Final

import numpy as np

from edgeml.runtime.backends import Array, Backend, EngineOptions, RawTensor, one_line
from edgeml.wire.errors import EngineError, MissingExtraError, ModelError, UnsupportedError
from edgeml.wire.manifest import Quantization

ENGINE: Final = "litert"
PACKAGES: Final = (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime"))  # module, distribution
_RESOLVERS: Final = {
    "default": "AUTO",  # XNNPACK
    "stock": "AUTO",
    "reference": "BUILTIN_REF",
    "exact": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
}
_IDENTIFIER: Final = b"TFL3"  # bytes 4-8 of every TFLite flatbuffer
_GREETING: Final = b"INFO: Created TensorFlow Lite XNNPACK delegate"

_first_open = threading.Lock()
_greeted = False


class TfliteBackend:
    """A model in the LiteRT interpreter, on the CPU."""

    engine = ENGINE

    def __init__(self, interpreter: Any, model: bytes, version: str) -> None:
        self.version = version
        self._model = model  # the interpreter reads from these bytes for as long as it lives
        self._interpreter = interpreter
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self.inputs = tuple(_raw(detail) for detail in inputs)
        self.outputs = tuple(_raw(detail) for detail in outputs)
        self._input_indices = [detail["index"] for detail in inputs]
        self._output_indices = [detail["index"] for detail in outputs]
        self._shapes = [tuple(int(axis) for axis in detail["shape"]) for detail in inputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        interpreter = self._interpreter
        try:
            for position, array in enumerate(inputs):
                if array.shape != self._shapes[position]:
                    self._resize(inputs)
                    break
            for index, array in zip(self._input_indices, inputs, strict=True):
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in self._output_indices]
        except (ValueError, RuntimeError, TypeError) as error:
            raise EngineError(f"LiteRT failed: {one_line(error)}") from error

    def close(self) -> None:
        self._interpreter = None

    def _resize(self, inputs: Sequence[Array]) -> None:
        for index, array in zip(self._input_indices, inputs, strict=True):
            self._interpreter.resize_tensor_input(index, array.shape)
        self._interpreter.allocate_tensors()
        self._shapes = [array.shape for array in inputs]


def open_tflite(model: bytes, options: EngineOptions) -> Backend:
    """Load a TFLite model.

    Raises:
        MissingExtraError: neither LiteRT nor tflite-runtime is installed.
        ModelError: the bytes are not a TFLite model.
        EngineError: this interpreter cannot run it (an operator it lacks).
    """
    module, version = _engine()
    if options.kernels not in _RESOLVERS:
        raise EngineError("no such kernels", expected=" or ".join(_RESOLVERS), got=repr(options.kernels))
    if model[4:8] != _IDENTIFIER:
        raise ModelError("not a TFLite model", expected=repr(_IDENTIFIER), got=f"{model[4:8]!r} at byte 4")
    settings = _resolver(module, options.kernels)
    if options.delegates:
        settings["experimental_delegates"] = [_delegate(module, path) for path in options.delegates]
    try:
        with _quiet_first_open():
            interpreter = module.Interpreter(model_content=model, num_threads=options.threads, **settings)
            interpreter.allocate_tensors()
    except ValueError as error:
        if "Flatbuffer" in str(error):
            raise ModelError(f"not a TFLite model: {one_line(error)}", hint="the file is truncated or damaged") from error
        raise EngineError(f"LiteRT {version} refuses the model: {one_line(error)}") from error
    except (RuntimeError, NotImplementedError) as error:
        raise EngineError(f"LiteRT {version} refuses the model: {one_line(error)}") from error
    return TfliteBackend(interpreter, model, version)


def _resolver(module: Any, kernels: str) -> dict[str, Any]:
    if hasattr(module, "OpResolverType"):
        return {"experimental_op_resolver_type": getattr(module.OpResolverType, _RESOLVERS[kernels])}
    if _RESOLVERS[kernels] == "AUTO":
        return {}  # old boards' tflite-runtime has no choice of kernels
    raise EngineError(f"this tflite-runtime cannot be told to use {kernels!r} kernels", hint="install a newer one")


def _delegate(module: Any, path: str) -> Any:
    try:
        ctypes.pydll.LoadLibrary(path)  # first here: the interpreter's own attempt leaves a broken object behind
        return module.load_delegate(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(f"delegate {path!r} does not load: {error}", hint="check the path and the board's driver") from error


def _engine() -> tuple[Any, str]:
    for module, distribution in PACKAGES:
        try:
            loaded = importlib.import_module(f"{module}.interpreter")
        except ImportError:
            continue
        try:
            return loaded, package_version(distribution)
        except PackageNotFoundError:
            return loaded, "unknown"
    raise MissingExtraError("ai_edge_litert", "tflite")


@contextmanager
def _quiet_first_open() -> Iterator[None]:
    """Keep the delegate's one greeting per process off the user's stderr; anything else it says there is passed on."""
    global _greeted
    with _first_open:
        if _greeted:
            yield
            return
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            with tempfile.TemporaryFile() as said:
                os.dup2(said.fileno(), 2)
                try:
                    yield
                finally:
                    os.dup2(kept, 2)
                    said.seek(0)
                    os.write(2, b"".join(line for line in said if not line.startswith(_GREETING)))
        finally:
            os.close(kept)
        _greeted = True


def _raw(detail: Any) -> RawTensor:
    dtype = np.dtype(detail["dtype"])
    if dtype.kind not in "fiub":
        raise UnsupportedError(f"tensor {detail['name']!r} is a {dtype}", hint="export the model with numeric tensors only")
    signature = detail.get("shape_signature")
    axes = detail["shape"] if signature is None or len(signature) == 0 else signature
    shape = tuple(None if axis < 0 else int(axis) for axis in axes)
    scale, zero_point = detail["quantization"]
    quantization = Quantization(float(scale), int(zero_point)) if scale and dtype.kind in "iu" else None
    return RawTensor(detail["name"], dtype, shape, quantization)
