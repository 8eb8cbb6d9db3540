"""The process that holds an isolated engine; `isolated.py` starts it, gives it work and outlives it.

python -m edgeml.runtime.isolated_child SOCKET ARENA MODEL LIFELINE        (descriptors)
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import mmap
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.affinity import pin_process
from edgeml.runtime.backends import Backend, OpenBackend, PlacedBackend, Provider
from edgeml.runtime.isolated_wire import Answer, Arena, Call, Failed, Load, Loaded, Reply, Request, Tensor, Wire, end_of
from edgeml.wire.errors import EdgemlError

OOM_SCORE: Final = "500"  # of 1000: where memory runs out, the engine goes and the application stays


def main(arguments: list[str]) -> int:
    channel, memory, model, lifeline = (int(word) for word in arguments)
    end_with(lifeline)
    _prefer_as_victim()
    wire = Wire(socket.socket(fileno=channel))
    requests = msgspec.msgpack.Decoder(Request)
    arena = Arena(memory)
    backend: Backend | None = None
    while True:
        try:
            request = wire.receive(requests, None)
        except EOFError:
            return 0  # the application closed the session
        try:
            if isinstance(request, Load):
                backend = _open(request, model)
                wire.send(_describe(backend))
            else:
                assert backend is not None, "a call came before the model"
                wire.send(_answer(backend, arena, request))
        except EdgemlError as error:
            wire.send(Failed(type(error).__name__, error.what, error.expected, error.got, error.hint))
        except MemoryError:
            wire.send(Failed("EngineError", "the engine's process is out of memory"))


def end_with(lifeline: int) -> None:
    """Let the kernel end this process when the other end of a pipe closes, even in the middle of an engine's call.

    A parent-death signal would come when the *thread* that started this process ends, and a reading thread would need Python's
    lock, which a hanging engine may hold: so the pipe raises SIGIO, whose default action is the end.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal or a supervisor means the application; it decides
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        if os.read(lifeline, 1) == b"":  # it closed before the signal was armed
            os._exit(0)


def _prefer_as_victim() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def _open(request: Load, model: int) -> Backend:
    pin_process(request.options.cpus)
    module, _, function = request.opener.partition(":")
    open_backend: OpenBackend = getattr(importlib.import_module(module), function)
    size = os.fstat(model).st_size
    data = b""
    if size:
        with mmap.mmap(model, size, prot=mmap.PROT_READ) as mapped:
            data = mapped[:]
    os.close(model)
    return open_backend(data, request.options)


def _describe(backend: Backend) -> Reply:
    inputs, outputs = (tuple(Tensor.of(tensor) for tensor in tensors) for tensors in (backend.inputs, backend.outputs))
    provider: Provider = backend.provider if isinstance(backend, PlacedBackend) else "cpu"
    return Loaded(backend.engine, backend.version, inputs, outputs, provider)


def _answer(backend: Backend, arena: Arena, call: Call) -> Reply:
    if call.arena_bytes > arena.bytes:
        arena.remap()
    outputs = backend.run([arena.view(placed) for placed in call.inputs])
    placed = arena.put(outputs, end_of(call.inputs))
    return Answer(placed, arena.bytes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
