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
PROBES: Final = 2  # runs that an arena must stand


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
    """Job: whether a model can be allocated in so many bytes, and answers there as with room to spare. It may die of it: no.

    An arena a little too small is not always refused: int8 layers with many channels then write over their own scales.
    """
    data = Path(model).read_bytes()
    try:
        tight, roomy = TflmBackend(data, arena_bytes), TflmBackend(data, LARGEST_ARENA)
        for feed in _probes(tight.inputs):
            if any(got.tobytes() != want.tobytes() for got, want in zip(tight.run(feed), roomy.run(feed), strict=True)):
                return False
    except EngineError:
        return False
    return True


def _probes(inputs: Sequence[RawTensor]) -> list[list[Array]]:
    """Noise over the whole of integer types, and of unit size for floats; twice, since the first run may do the damage."""
    draw = np.random.default_rng(0)

    def noise(tensor: RawTensor) -> Array:
        values = draw.normal(size=tensor.shape)  # type: ignore[arg-type]  # boards have fixed shapes
        spread = np.iinfo(tensor.dtype).max / 3 if tensor.dtype.kind in "iu" else 1.0
        return np.asarray((values * spread).clip(-3 * spread, 3 * spread).astype(tensor.dtype))

    return [[noise(tensor) for tensor in inputs] for _ in range(PROBES)]


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
