"""What the demo stands on: lines a person reads as they happen, and processes that end when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Self, TypeVar

from edgeml.wire.errors import EnvironmentProblem

T = TypeVar("T")
POLL_S = 0.2
TAIL_LINES = 15
STOP_S = 10.0


class Narrator:
    """Prints the story with the time since it began, and remembers nothing."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._colour = sys.stdout.isatty()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def act(self, title: str) -> None:
        minutes, seconds = divmod(int(self.elapsed_s), 60)
        heading = f"[{minutes}:{seconds:02d}] {title}"
        print(f"\n\033[1m{heading}\033[0m" if self._colour else f"\n{heading}", flush=True)

    def say(self, line: str) -> None:
        print(f"       {line}", flush=True)


class Company:
    """Processes started for the demo; all of them are stopped when the block ends, however it ends."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._running)):
            self.stop(name)
        self._stack.close()

    def start(self, name: str, command: Sequence[str]) -> None:
        log: IO[bytes] = self._stack.enter_context((self._logs / f"{name}.log").open("wb"))
        self._running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def stop(self, name: str, *, how: int = signal.SIGTERM) -> None:
        process = self._running.pop(name, None)
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raises EnvironmentProblem if a process has died, with the end of its log."""
        for name, process in self._running.items():
            if process.poll() is not None:
                tail = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()[-TAIL_LINES:]
                raise EnvironmentProblem(f"{name} ended with code {process.returncode}:\n" + "\n".join(tail))

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def wait_for(what: str, look: Callable[[], T | None], company: Company, *, limit_s: float) -> T:
    """Looks until `look` gives something.

    Raises:
        EnvironmentProblem: it took too long, or a process died meanwhile.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        company.check()
        found = look()
        if found is not None:
            return found
        time.sleep(POLL_S)
    raise EnvironmentProblem(f"waited {limit_s:.0f} s for {what}", hint="the logs are in the demo's folder")


def edgeml(*arguments: str) -> list[str]:
    """The `edgeml` command of this environment."""
    return [sys.executable, "-m", "edgeml.cli", *arguments]


def run(*arguments: str, ok: Sequence[int] = (0,)) -> str:
    """Runs an `edgeml` command and gives what it printed.

    Raises:
        EnvironmentProblem: its exit code is not among `ok`.
    """
    done = subprocess.run(edgeml(*arguments), capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode not in ok:
        raise EnvironmentProblem(
            f"`edgeml {' '.join(arguments[:3])} …` ended with code {done.returncode}:\n{done.stderr.strip()}"
        )
    return done.stdout


def follow(path: Path) -> Iterator[str | None]:
    """The lines appended to `path` from now on; `None` when there is none at the moment."""
    with path.open() as file:
        file.seek(0, os.SEEK_END)
        while True:
            line = file.readline()
            yield line.rstrip("\n") if line.endswith("\n") else None
