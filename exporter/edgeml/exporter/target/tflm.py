"""TensorFlow Lite Micro on this machine: the interpreter boards run, with its reference kernels, behind the backend protocol.

The jobs of a worker process, since an arena that is much too small ends in a segmentation fault.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgeml.exporter.target.flatbuffer import Tensor, read_graph
from edgeml.runtime.backends import Array, RawTensor
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.golden import self_test
from edgeml.runtime.session import Session
from edgeml.wire.contract import label
from edgeml.wire.errors import EngineError, MissingExtraError, UnsupportedError
from edgeml.wire.manifest import Binding

ENGINE: Final = "tflite-micro"
LARGEST_ARENA: Final = 64 << 20  # more than any microcontroller has
LAST_WORDS: Final = 300


class TflmBackend:
    """A model in an arena of this many bytes."""

    engine = ENGINE

    def __init__(self, model: bytes, arena_bytes: int) -> None:
        graph = read_graph(model)
        self.version = version("tflite-micro")
        self.inputs = tuple(_raw(tensor) for tensor in graph.inputs)
        self.outputs = tuple(_raw(tensor) for tensor in graph.outputs)
        self._model = model  # the interpreter reads from these bytes for as long as it lives
        with _listening() as said:
            try:
                self._interpreter = _runtime().Interpreter.from_bytes(model, arena_size=arena_bytes)
            except RuntimeError as error:
                raise EngineError(f"TensorFlow Lite Micro refuses the model: {said() or error}") from error

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        try:
            for index, array in enumerate(inputs):
                self._interpreter.set_input(array, index)
            self._interpreter.invoke()
            return [np.array(self._interpreter.get_output(index)) for index in range(len(self.outputs))]
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"TensorFlow Lite Micro failed: {error}") from error

    def close(self) -> None:
        self._interpreter = None


class Proof(msgspec.Struct, frozen=True):
    """The golden vectors through TensorFlow Lite Micro: the largest difference of any output, and what it was held to."""

    samples: int
    max_abs: float
    tolerance: float
    agreement: float
    least_agreement: float
    engine: str


def check(*, model: str) -> None:
    """Job: find out whether the interpreter takes a model at all.

    Raises:
        UnsupportedError: it does not, in its own words.
    """
    try:
        TflmBackend(Path(model).read_bytes(), LARGEST_ARENA).close()
    except EngineError as error:
        raise UnsupportedError(str(error), hint="`edgeml export --for cortex-m4` mixes no float with int8") from error


def fits(*, model: str, arena_bytes: int) -> bool:
    """Job: whether a model can be allocated and run once in so many bytes. The process may die of it: no."""
    try:
        backend = TflmBackend(Path(model).read_bytes(), arena_bytes)
        backend.run([np.zeros(tensor.shape, tensor.dtype) for tensor in backend.inputs])  # type: ignore[arg-type]  # fixed shapes
    except EngineError:
        return False
    return True


def prove(*, bundle: str, artifact: str, model: str, arena_bytes: int, inputs: list[Any], outputs: list[Any]) -> Any:
    """Job: the bundle's golden vectors of an artifact through a model made of it, whose bindings are given.

    Raises:
        SelfTestError: an output is beyond its tolerance.
    """
    with open_bundle(bundle) as opened:
        promised = next(one for one in opened.manifest.artifacts if label(one) == artifact)
        backend = TflmBackend(Path(model).read_bytes(), arena_bytes)
        fed, read = (msgspec.convert(side, tuple[Binding, ...]) for side in (inputs, outputs))
        with Session(opened.manifest.signature, fed, read, backend) as session:
            found = self_test(opened, promised, session)
    worst = max(found.outputs, key=lambda output: output.max_abs / output.limit if output.limit else output.max_abs)
    engine = f"{ENGINE} {backend.version}"
    return msgspec.to_builtins(Proof(found.samples, worst.max_abs, worst.limit, found.agreement, found.least_agreement, engine))


def _raw(tensor: Tensor) -> RawTensor:
    return RawTensor(tensor.name, np.dtype(tensor.dtype), tensor.shape, tensor.quantization)


def _runtime() -> Any:
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ModuleNotFoundError as error:
        raise MissingExtraError("tflite_micro", "micro") from error
    return runtime


@contextmanager
def _listening() -> Iterator[Any]:
    """What native code says on stderr meanwhile, as one line."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)

        def said() -> str:
            heard.seek(0)
            return " ".join(heard.read().decode("utf-8", "replace").split())[:LAST_WORDS]

        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
