"""ONNX Runtime behind the backend protocol.

On x86 without VNNI, ONNX Runtime's fast int8 kernels add two products in 16 bits and saturate: one quantized file then loses
up to twelve points of agreement by kernel, not by quantization. A device should get the numbers that are in the file, so there
`default` runs a quantized model with the kernels that do not saturate (11-50 % slower); `stock` leaves it to the engine.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeml.runtime.backends import Array, Backend, EngineOptions, Provider, RawTensor, one_line
from edgeml.wire.errors import EngineError, MissingExtraError, ModelError, UnsupportedError

ENGINE: Final = "onnxruntime"
KERNELS: Final = ("default", "reference", "exact", "stock")
_FATAL: Final = 4  # the engine's own log says what the exception says again
_PROVIDERS: Final[dict[Provider, str]] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
_DTYPES: Final = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(int8)": "int8",
    "tensor(uint8)": "uint8", "tensor(int16)": "int16", "tensor(uint16)": "uint16", "tensor(int32)": "int32",
    "tensor(uint32)": "uint32", "tensor(int64)": "int64", "tensor(uint64)": "uint64", "tensor(bool)": "bool",
}  # fmt: skip
_QUANTIZED: Final = re.compile(rb"QuantizeLinear|QLinear|MatMulInteger|ConvInteger")  # operator names, as stored
# 1.32 dies of SIGSEGV while it optimizes LayerNormalization, Transpose, MatMul in float16 (the encoder of any transformer).
_CRASHING: Final = ["MatmulTransposeFusion"]
_NORMALIZES: Final = b"LayerNormalization"
_NOT_A_MODEL: Final = (
    "INVALID_PROTOBUF",
    "INVALID_GRAPH",
    "NO_MODEL",
    "ModelProto does not have a graph",
    "No graph was found",
)
# Tensors kept in other files would be read from beside the process; a folder that cannot exist refuses them.
_NO_EXTERNAL_DATA: Final = os.devnull


@functools.cache
def saturates_int8() -> bool:
    """Whether this CPU makes ONNX Runtime's fast int8 kernels saturate: x86 without VNNI."""
    if platform.machine().lower() not in {"x86_64", "amd64", "i386", "i686"}:
        return False
    try:
        return b"vnni" not in Path("/proc/cpuinfo").read_bytes()
    except OSError:
        return True  # unknown: right answers before fast ones


class OnnxBackend:
    """A model in ONNX Runtime."""

    engine = ENGINE

    def __init__(self, session: Any, version: str, provider: Provider = "cpu") -> None:
        self.version = version
        self.provider: Provider = provider
        self.inputs = tuple(_raw(node) for node in session.get_inputs())
        self.outputs = tuple(_raw(node) for node in session.get_outputs())
        self._session = session
        self._input_names = [tensor.name for tensor in self.inputs]
        self._output_names = [tensor.name for tensor in self.outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        try:
            answer: list[Array] = self._session.run(self._output_names, dict(zip(self._input_names, inputs, strict=True)))
        except Exception as error:  # the engine raises classes of its own, straight under Exception
            raise EngineError(f"ONNX Runtime failed: {one_line(error)}") from error
        return answer

    def close(self) -> None:
        self._session = None


def open_onnx(model: bytes, options: EngineOptions) -> Backend:
    """Load a self-contained ONNX model.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ModelError: the bytes are not an ONNX model.
        EngineError: this ONNX Runtime cannot run it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    if options.kernels not in KERNELS:
        raise EngineError("no such kernels", expected=" or ".join(KERNELS), got=repr(options.kernels))
    usable = usable_providers(options.providers, onnxruntime.get_available_providers())
    named = [(_PROVIDERS[provider], _provider_options(provider)) for provider in usable]
    try:
        settings, left_out = _settings(onnxruntime, model, options), _CRASHING if _NORMALIZES in model else []
        session = onnxruntime.InferenceSession(model, settings, providers=named, disabled_optimizers=left_out)
    except Exception as error:  # the engine raises classes of its own, straight under Exception
        message = one_line(error)
        if any(word in message for word in _NOT_A_MODEL):
            raise ModelError(f"not an ONNX model: {message}") from error
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} refuses the model: {message}") from error
    if _PROVIDERS[usable[0]] not in session.get_providers():  # the engine would go on without a word
        raise EngineError(f"ONNX Runtime's provider {usable[0]!r} did not start", hint="its log says why; see `edgeml doctor`")
    return OnnxBackend(session, onnxruntime.__version__, usable[0])


def present_providers(wanted: Sequence[Provider]) -> tuple[Provider, ...]:
    """Those that the installed engine has libraries for, in the wanted order and without importing it; the CPU last."""
    found = importlib.util.find_spec("onnxruntime")
    folders = [Path(place) / "capi" for place in found.submodule_search_locations or ()] if found else []
    present = [p for p in wanted if any((folder / f"libonnxruntime_providers_{p}.so").is_file() for folder in folders)]
    return (*present, "cpu")


def usable_providers(wanted: Sequence[Provider], available: Sequence[str]) -> list[Provider]:
    """Those that this build of the engine has, in the wanted order; the CPU is always there, and last."""
    usable = [provider for provider in wanted if provider != "cpu" and _PROVIDERS[provider] in available]
    return [*usable, "cpu"]


def _provider_options(provider: Provider) -> dict[str, str]:
    if provider == "tensorrt":  # building takes minutes: once
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeml" / "tensorrt"
        return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}
    if provider == "cuda":
        return {"use_tf32": "0"}  # ten bits of mantissa would miss the golden vectors of a float32 model
    return {}


def _settings(onnxruntime: Any, model: bytes, options: EngineOptions) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a device's cores belong to the application
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_EXTERNAL_DATA)
    if options.kernels == "reference":
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    careful = options.kernels == "default" and saturates_int8() and _QUANTIZED.search(model) is not None
    if options.kernels == "exact" or careful:
        settings.add_session_config_entry("session.x64quantprecision", "1")
    return settings


def _raw(node: Any) -> RawTensor:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise UnsupportedError(f"tensor {node.name!r} is a {node.type}", hint="export the model with numeric tensors only")
    shape = tuple(axis if isinstance(axis, int) else None for axis in node.shape)
    return RawTensor(node.name, np.dtype(dtype), shape)
