"""Engines that do on demand what a bad delegate does: they are real ones, and the first number of the input is the demand.

An isolated engine's process finds them by name, as it finds any engine.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgeml.runtime.backends import Array, Backend, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx

SEGFAULT: Final = 1001.0
ABORT: Final = 1002.0
KILL: Final = 1003.0  # as the kernel does where memory runs out
HANG: Final = 1004.0  # with the interpreter's lock held, so that nothing in the process can notice
NONSENSE: Final = 1005.0
SLOW: Final = 1006.0
SLOW_S: Final = 0.3
FLAG: Final = "EDGEML_TEST_CRASH_AT_OPEN"  # a file; while it is there, opening a model is a segmentation fault


class CrashingBackend:
    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.engine, self.version = inner.engine, inner.version
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        demand = float(inputs[0].ravel()[0])
        if demand == SEGFAULT:
            segfault()
        if demand == ABORT:
            os.abort()
        if demand == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if demand == HANG:
            ctypes.PyDLL(None).pause()
        if demand == NONSENSE:
            os.write(int(sys.argv[1]), b"\xff" * 64)
        if demand == SLOW:
            time.sleep(SLOW_S)
        return self._inner.run(inputs)

    def close(self) -> None:
        self._inner.close()


def open_crashing(model: bytes, options: EngineOptions) -> Backend:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if Path(os.environ.get(FLAG, "/nonexistent")).exists():
        segfault()
    return CrashingBackend(open_onnx(model, options))


def segfault() -> None:
    ctypes.string_at(0)
