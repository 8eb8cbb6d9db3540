"""Run jobs in a child process that may crash, hang or grow, and turn each of these into a sentence.

A job is "module:function" called with JSON-able keyword arguments; arrays and models travel as files. One `Worker` is one
process that stays, so that a framework is imported once. Requests and replies are JSON lines on two pipes of their own, because
converters print to stdout; everything printed goes to a log whose last lines explain a death.

    with Worker("tensorflow", folder) as worker:
        described = worker.call("edgeml.exporter.source.keras:describe", path="model.h5")
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import IO, Any, ClassVar, Final, Self, TypedDict

from edgeml.exporter.extras import missing
from edgeml.exporter.lifeline import die_with
from edgeml.wire import errors
from edgeml.wire.errors import EdgemlError, MissingExtraError, WorkerError

TIME_LIMIT_S: Final = 600.0
MEMORY_LIMIT_BYTES: Final = 8 << 30
POLL_S: Final = 0.1  # how often a running job's time and memory are looked at
TAIL_LINES: Final = 4
TAIL_CHARACTERS: Final = 600
QUIET: Final[Mapping[str, str]] = {
    "PYTHONHASHSEED": "0",  # converters iterate over sets; the same model must give the same bytes
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",  # oneDNN picks sums by load and core count
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONWARNINGS": "ignore",
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "tensorflow",
    "KMP_WARNINGS": "0",
}
BLOCK: Final = "EDGEML_WORKER_BLOCK"  # comma-separated packages the child must not import


class Limits(TypedDict):
    """What one job of a worker may take."""

    time_limit_s: float
    memory_limit_bytes: int


class Worker:
    """One child process that runs one job at a time; it is started by the first call and again after a death.

    `folder` keeps the log, and what the child writes to temporary files. `blocked` names packages the child finds absent
    (coremltools imports TensorFlow wherever it can).
    Calls from several threads queue.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        blocked: tuple[str, ...] = (),
        time_limit_s: float = TIME_LIMIT_S,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._folder = folder
        own = {BLOCK: ",".join(blocked), "TMPDIR": str(folder)}
        self._environment = {**os.environ, **QUIET, **own, **(environment or {})}
        self._time_limit_s = time_limit_s
        self._memory_limit_bytes = memory_limit_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: IO[bytes] | None = None
        self._replies = self._lifeline = -1
        self._buffer = b""
        self.peak_rss_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, job: str, /, **arguments: object) -> Any:
        """Run "module:function" with these arguments and return its JSON-able answer.

        Raises:
            EdgemlError: the job raised it; it arrives as what it was.
            WorkerError: the job died, ran out of time or memory, or raised something else; the next call starts afresh.
        """
        request = json.dumps({"job": job, "arguments": arguments}).encode() + b"\n"
        with self._lock:
            requests = self._running()
            log_start = self.log.stat().st_size
            try:
                requests.write(request)
                requests.flush()
            except BrokenPipeError:
                self._raise_death(job, log_start)
            reply = self._wait(job, log_start)
        if "answer" in reply:
            return reply["answer"]
        if "refusal" in reply:
            raise _rebuild(reply["refusal"])
        raise WorkerError(f"{_short(job)} failed in the {self.name} worker: {reply['failure']}")

    def close(self) -> None:
        """End the process, if any."""
        with self._lock:
            self._end()

    def _running(self) -> IO[bytes]:
        if self._process is not None and self._process.poll() is None and self._requests is not None:
            return self._requests
        self._end()
        self._folder.mkdir(parents=True, exist_ok=True)
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        lifeline_read, self._lifeline = os.pipe()
        theirs = (request_read, reply_write, lifeline_read)
        command = [sys.executable, "-m", "edgeml.exporter.worker", *map(str, theirs)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                pass_fds=theirs,
                start_new_session=True,  # so that a converter's own children die with it
            )
        for descriptor in theirs:
            os.close(descriptor)
        self._requests = os.fdopen(request_write, "wb")
        self._replies, self._buffer = reply_read, b""
        return self._requests

    def _wait(self, job: str, log_start: int) -> dict[str, Any]:
        deadline = time.monotonic() + self._time_limit_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._replies], [], [], POLL_S)
            if ready:
                chunk = os.read(self._replies, 1 << 16)
                if not chunk:
                    self._raise_death(job, log_start)
                self._buffer += chunk
                continue
            rss = self._rss_bytes()
            self.peak_rss_bytes = max(self.peak_rss_bytes, rss)
            if rss > self._memory_limit_bytes:
                self._end()
                raise WorkerError(
                    f"{_short(job)} in the {self.name} worker took too much memory",
                    expected=f"at most {self._memory_limit_bytes >> 20} MiB",
                    got=f"{rss >> 20} MiB",
                    hint="raise --memory-limit if this machine has more",
                )
            if time.monotonic() > deadline:
                self._end()
                raise WorkerError(
                    f"{_short(job)} in the {self.name} worker did not finish in {self._time_limit_s:g} s",
                    hint="raise --time-limit",
                )
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _rss_bytes(self) -> int:
        if self._process is None:
            return 0
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _raise_death(self, job: str, log_start: int) -> None:
        code = self._end()
        with self.log.open("rb") as log:
            log.seek(log_start)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        tail = " | ".join(lines[-TAIL_LINES:])[-TAIL_CHARACTERS:]
        raise WorkerError(
            f"{_short(job)} killed the {self.name} worker ({_cause(code)})" + (f"; it last said: {tail}" if tail else "")
        )

    def _end(self) -> int:
        """Stop the process and everything it started; gives its exit status."""
        process, self._process = self._process, None
        if self._requests is not None:
            with suppress(OSError):
                self._requests.close()
            self._requests = None
        if self._replies >= 0:
            os.close(self._replies)
            self._replies = -1
        code = _stop(process) if process is not None else 0
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        return code


def _stop(process: subprocess.Popen[bytes]) -> int:
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=POLL_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _short(job: str) -> str:
    return repr(job.removeprefix("edgeml.exporter."))


def _kinds(root: type[EdgemlError]) -> dict[str, type[EdgemlError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _kinds(child)
    return found


def _rebuild(refusal: dict[str, Any]) -> EdgemlError:
    kind = _kinds(EdgemlError).get(refusal["kind"], EdgemlError)
    if kind is MissingExtraError:
        return MissingExtraError(refusal["package"], refusal["extra"])
    if kind in {errors.UpdateError, errors.ServiceError}:
        kind = errors.EnvironmentProblem
    return kind(refusal["what"], expected=refusal["expected"], got=refusal["got"], hint=refusal["hint"])


def _refusal(error: EdgemlError) -> dict[str, Any]:
    facts = {"kind": type(error).__name__, "what": error.what, "expected": error.expected, "got": error.got, "hint": error.hint}
    if isinstance(error, MissingExtraError):
        facts |= {"package": error.package, "extra": error.extra}
    return facts


def _answer(line: bytes) -> dict[str, Any]:
    request = json.loads(line)
    module, _, function = request["job"].partition(":")
    try:
        return {"answer": getattr(importlib.import_module(module), function)(**request["arguments"])}
    except EdgemlError as error:
        return {"refusal": _refusal(error)}
    except Exception as error:  # noqa: BLE001 - whatever a converter raises is a diagnosis, not a crash
        if (absent := missing(error)) is not None:
            return {"refusal": _refusal(absent)}
        traceback.print_exc()
        return {"failure": f"{type(error).__name__}: {error}".strip()[-TAIL_CHARACTERS:]}


class _Without(PathFinder):
    """Finds no package of `blocked`, as if it were not installed.

    The usual `sys.modules[name] = None` is not that: Keras takes a name that stands there for the library.
    """

    blocked: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def find_spec(cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in cls.blocked):
            return None
        return super().find_spec(fullname, path, target)


def main() -> None:
    """The child: one reply for each request until the requests end."""
    _Without.blocked = tuple(filter(None, os.environ.get(BLOCK, "").split(",")))
    sys.meta_path[sys.meta_path.index(PathFinder)] = _Without
    requests, replies, lifeline = (int(argument) for argument in sys.argv[1:4])
    die_with(lifeline)
    with os.fdopen(requests, "rb") as incoming, os.fdopen(replies, "wb") as outgoing:
        for line in incoming:
            outgoing.write(json.dumps(_answer(line)).encode() + b"\n")
            outgoing.flush()
            sys.stdout.flush()
            sys.stderr.flush()


if __name__ == "__main__":
    main()
