"""An engine in a process of its own: a crash or a hang of it is an error and a restart, and closing it gives all memory back.

    session = open_session(bundle, artifact, open_backend=isolate(opener(artifact.format)))

Tensors go through shared memory, everything else through a socket (`isolated_wire`). The engine's process ends when the
application does, however that ends. After a crash it is started again at once; one that goes on crashing waits longer each
time, and meanwhile calls fail at once instead of waiting.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.backends import Array, Backend, EngineOptions, OpenBackend, Provider
from edgeml.runtime.isolated_wire import Answer, Arena, Call, Failed, Load, Loaded, Reply, Wire, shared_file
from edgeml.wire import errors
from edgeml.wire.errors import DeadlineError, EdgemlError, EngineDownError, EngineError, EngineHungError

_FIRST_ARENA_BYTES: Final = 1 << 16
_END_S: Final = 5.0  # for a killed process to be gone: more than the kernel needs


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an engine's process may take, and how soon it is started again."""

    start_s: float = 60.0  # import, open: a small board needs ten
    hang_s: float = 10.0  # one call; longer means that it will never answer
    backoff_s: float = 0.5  # after the second crash in a row; doubles with each
    backoff_cap_s: float = 60.0
    steady_s: float = 60.0  # up for so long, the next crash counts as the first


DEFAULT_LIMITS: Final = Limits()


def isolate(open_backend: OpenBackend, limits: Limits = DEFAULT_LIMITS) -> OpenBackend:
    """The same engine in a process of its own; `open_backend` is a function of a module, for the process to find it by name."""
    name = _address(open_backend)

    def open_isolated(model: bytes, options: EngineOptions) -> Backend:
        return IsolatedBackend(name, model, options, limits)

    return open_isolated


class Child:
    """One engine's process.

    Raises:
        EdgemlError: what opening the model raised there, in its own class.
        EngineDownError: it died or did not start in time.
    """

    def __init__(self, opener: str, model: int, options: EngineOptions, limits: Limits) -> None:
        self._limits = limits
        self._replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
        self.started_at = time.monotonic()
        ours, theirs = socket.socketpair()
        end, self._lifeline = os.pipe()
        self._arena = Arena(shared_file(_FIRST_ARENA_BYTES))
        self._wire = Wire(ours)
        self._asked_at: float | None = None  # of a call that has no answer yet
        handed = [theirs.fileno(), self._arena.descriptor, model, end]
        command = [sys.executable, "-m", "edgeml.runtime.isolated_child", *map(str, handed)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        try:
            self._process = subprocess.Popen(command, pass_fds=handed, stdin=subprocess.DEVNULL, env=environment)
        except OSError:
            self._release()
            raise
        finally:
            theirs.close()
            os.close(end)
        try:
            self.description = self._opened(Load(opener, options))
        except BaseException:
            self.end()
            raise
        self._dtypes = [tensor.dtype for tensor in self.description.outputs]

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, inputs: Sequence[Array], until: float | None) -> list[Array]:
        """One call; see `PatientBackend.run_until`.

        Raises:
            EngineDownError, EngineHungError: this process is of no more use.
            DeadlineError: no answer yet.
            EngineError: the engine failed and lives.
        """
        if self._asked_at is not None:
            self._reply(until)  # the answer that an earlier caller did not wait for
        placed = self._arena.put(inputs)
        self._asked_at = time.monotonic()
        self._send(Call(placed, self._arena.bytes))
        match self._reply(until):
            case Answer() as answer:
                return self._take(answer)
            case Failed() as failed:
                raise _error_of(failed)
            case Loaded():
                raise self._garbage("it opened a model nobody asked for")

    def end(self) -> int:
        """End the process and free what it shared; its exit code."""
        self._process.kill()
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # stuck in the kernel; the lifeline ends it when it comes back
            code = -signal.SIGKILL
        self._release()
        return code

    def _opened(self, load: Load) -> Loaded:
        self._send(load)
        try:
            reply = self._wire.receive(self._replies, self.started_at + self._limits.start_s)
        except TimeoutError as error:
            raise EngineHungError(f"the engine's process did not open the model in {self._limits.start_s:.0f} s") from error
        except EOFError as error:
            raise self._died() from error
        except ValueError as error:
            raise self._garbage(str(error)) from error
        if isinstance(reply, Failed):
            raise _error_of(reply)
        if not isinstance(reply, Loaded):
            raise self._garbage("it answered before it was asked")
        return reply

    def _send(self, message: Load | Call) -> None:
        try:
            self._wire.send(message)
        except OSError as error:
            raise self._died() from error

    def _reply(self, until: float | None) -> Reply:
        assert self._asked_at is not None
        hung_at = self._asked_at + self._limits.hang_s
        try:
            reply: Reply = self._wire.receive(self._replies, hung_at if until is None else min(until, hung_at))
        except TimeoutError as error:
            if time.monotonic() >= hung_at:
                raise EngineHungError(f"the engine gave no answer in {self._limits.hang_s:.3g} s and was ended") from error
            raise DeadlineError("the engine did not answer in time") from error
        except EOFError as error:
            raise self._died() from error
        except ValueError as error:
            raise self._garbage(str(error)) from error
        self._asked_at = None
        return reply

    def _take(self, answer: Answer) -> list[Array]:
        """Fresh copies of the outputs; a process whose engine wrote over its memory is believed nothing."""
        if answer.arena_bytes > self._arena.bytes:
            self._arena.remap()
        if [placed.dtype for placed in answer.outputs] != self._dtypes:
            raise self._garbage("outputs of other types than the model's")
        try:
            return [self._arena.view(placed).copy() for placed in answer.outputs]
        except (ValueError, TypeError) as error:
            raise self._garbage(str(error)) from error

    def _died(self) -> EngineDownError:
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return self._garbage("it hung up and lives")
        return EngineDownError(f"the engine's process died ({ending(code)})")

    def _garbage(self, what: str) -> EngineDownError:
        return EngineDownError(f"the engine's process talks nonsense: {what}")

    def _release(self) -> None:
        self._wire.close()
        os.close(self._lifeline)
        os.close(self._arena.descriptor)


class IsolatedBackend:
    """A model in a process of its own, started again when it dies.

    `crashes` counts the times it died or hung.
    """

    def __init__(self, opener: str, model: bytes, options: EngineOptions, limits: Limits) -> None:
        self._opener, self._options, self._limits = opener, options, limits
        self._model = shared_file(len(model))
        os.pwrite(self._model, model, 0)
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._row = 0  # crashes in a row
        self._start_at = 0.0
        self._restarting = False
        self.crashes = 0
        try:
            child = self._start()
        except BaseException:
            os.close(self._model)
            raise
        self._child: Child | None = child
        self.engine, self.version = child.description.engine, child.description.version
        self.provider: Provider = child.description.provider
        self.inputs = tuple(tensor.raw for tensor in child.description.inputs)
        self.outputs = tuple(tensor.raw for tensor in child.description.outputs)

    @property
    def pid(self) -> int | None:
        """Of the engine's process; `None` while it is down."""
        child = self._child
        return None if child is None else child.pid

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return self._run(inputs, None)

    def run_until(self, inputs: Sequence[Array], until: float) -> list[Array]:
        return self._run(inputs, until)

    def close(self) -> None:
        self._closed.set()
        with self._changed:
            child, self._child = self._child, None
            self._changed.notify_all()
            is_last = not self._restarting
        if child is not None:
            child.end()
        if is_last:
            os.close(self._model)

    def _run(self, inputs: Sequence[Array], until: float | None) -> list[Array]:
        child = self._up(until)
        try:
            return child.run(inputs, until)
        except EngineDownError:
            self._lost(child)
            raise

    def _up(self, until: float | None) -> Child:
        """The process, waiting for one that is being started but not for one that is due later."""
        with self._changed:
            while self._child is None:
                due_s = self._start_at - time.monotonic()
                if due_s > 0:
                    raise EngineDownError(f"the engine crashed {self._row} times in a row; it starts again in {due_s:.1f} s")
                remaining = self._limits.start_s if until is None else until - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    raise DeadlineError("the engine crashed and is not up again yet")
            return self._child

    def _lost(self, child: Child) -> None:
        child.end()
        with self._changed:
            self._child = None
            if time.monotonic() - child.started_at >= self._limits.steady_s:
                self._row = 0
            self._crashed()
            self._restarting = True
        threading.Thread(target=self._restart, name="edgeml-engine", daemon=True).start()

    def _crashed(self) -> None:
        self.crashes += 1
        self._row += 1
        delay_s = 0.0 if self._row == 1 else self._limits.backoff_s * 2.0 ** min(self._row - 2, 32)
        self._start_at = time.monotonic() + min(delay_s, self._limits.backoff_cap_s)
        self._changed.notify_all()

    def _restart(self) -> None:
        child: Child | None = None
        while child is None and not self._closed.wait(max(0.0, self._start_at - time.monotonic())):
            try:
                child = self._start()
            except EdgemlError:
                with self._changed:
                    self._crashed()
        with self._changed:
            self._restarting = False
            is_closed = self._closed.is_set()
            if not is_closed:
                self._child = child
                self._changed.notify_all()
        if is_closed:
            if child is not None:
                child.end()
            os.close(self._model)

    def _start(self) -> Child:
        try:
            return Child(self._opener, self._model, self._options, self._limits)
        except OSError as error:
            raise EngineDownError(f"the engine's process cannot be started: {error.strerror}") from error


def ending(code: int) -> str:
    """An exit code in words, with the likely cause where there is one."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


def _address(open_backend: OpenBackend) -> str:
    module = getattr(open_backend, "__module__", "__main__")
    name = getattr(open_backend, "__qualname__", "<object>")
    if module == "__main__" or not name.isidentifier():
        raise EngineError("an engine to isolate", expected="a function of an importable module", got=f"{module}:{name}")
    return f"{module}:{name}"


def _error_of(failed: Failed) -> EdgemlError:
    kind = vars(errors).get(failed.error)
    if isinstance(kind, type) and issubclass(kind, EdgemlError) and kind.__init__ is EdgemlError.__init__:
        return kind(failed.what, expected=failed.expected, got=failed.got, hint=failed.hint)
    return EngineError(failed.what, hint=failed.hint)
