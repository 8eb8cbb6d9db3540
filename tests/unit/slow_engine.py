"""A real engine whose calls wait until the test lets them go, and which remembers how many samples each had."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from edgeml.runtime.backends import Array, Backend, OpenBackend
from edgeml.runtime.backends.onnx import open_onnx
from edgeml.wire.manifest import Format

END_S: Final = 30.0  # a test that waits longer has failed


class SlowBackend:
    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.engine, self.version = inner.engine, inner.version
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.is_in_call = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_closed = threading.Event()
        self.sizes: list[int] = []

    def hold(self) -> None:
        """Let the next call wait in the engine."""
        self.is_in_call.clear()
        self.may_go_on.clear()
        self.sizes.clear()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        self.sizes.append(len(inputs[0]))
        self.is_in_call.set()
        self.may_go_on.wait(END_S)
        return self._inner.run(inputs)

    def close(self) -> None:
        self.is_closed.set()
        self._inner.close()


def slow_engine(format_: Format) -> OpenBackend:
    assert format_ == "onnx"
    return lambda model, options: SlowBackend(open_onnx(model, options))
