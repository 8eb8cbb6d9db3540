"""Engines behind one protocol; each engine is imported in its own file and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeml.wire.manifest import Format, Quantization

Array = NDArray[Any]
Provider = Literal["tensorrt", "cuda", "cpu"]
PROVIDER_ORDER: Final[tuple[Provider, ...]] = ("tensorrt", "cuda", "cpu")
"""The fall-back order on a device: one that is missing, does not start or misses the golden vectors gives way to the next."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor of a model file as its engine names it; `None` marks an axis of any size."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to run a model.

    `kernels` picks among an engine's own kernels: `default` is what devices use, `reference` the plain ones, `exact` the fast
    ones without shortcuts that saturate (ONNX Runtime on x86 without VNNI), `stock` what the engine takes if not told. `cpus`
    are the cores that the engine's threads may use; empty means all. `providers` say where ONNX Runtime may compute, the first
    that this machine has being taken. `delegates` are libraries that LiteRT hands work to, by path.
    """

    threads: int = 1
    kernels: str = "default"
    cpus: tuple[int, ...] = ()
    providers: tuple[Provider, ...] = ("cpu",)
    delegates: tuple[str, ...] = ()


class Backend(Protocol):
    """One loaded model in one engine. Not thread-safe: the session holds the lock."""

    engine: str
    version: str
    inputs: tuple[RawTensor, ...]
    outputs: tuple[RawTensor, ...]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once, tensors in the order of `inputs`; gives fresh arrays in the order of `outputs`.

        Raises:
            EngineError: the engine failed.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class PatientBackend(Protocol):
    """A backend that can be left behind in the middle of a call."""

    def run_until(self, inputs: Sequence[Array], until: float) -> list[Array]:
        """`Backend.run` that waits no longer than `until` (of `time.monotonic`).

        Raises:
            DeadlineError: there is no answer yet; a later call is not harmed by it.
            EngineError: the engine failed.
        """
        ...


@runtime_checkable
class PlacedBackend(Protocol):
    """A backend that says where it computes."""

    provider: Provider


class OpenBackend(Protocol):
    """Loads a model file's bytes into an engine."""

    def __call__(self, model: bytes, options: EngineOptions, /) -> Backend: ...


def opener(format: Format) -> OpenBackend:  # noqa: A002 - the field's word
    """The engine for a format on this machine.

    Raises:
        MissingExtraError: its package is not installed.
        UnsupportedError: it cannot run here at all.
    """
    if format == "onnx":
        from edgeml.runtime.backends.onnx import open_onnx

        return open_onnx
    if format == "tflite":
        from edgeml.runtime.backends.tflite import open_tflite

        return open_tflite
    from edgeml.runtime.backends.coreml import open_coreml

    return open_coreml


def one_line(error: Exception) -> str:
    """What an engine said, without the line breaks it likes."""
    return " ".join(str(error).split())
