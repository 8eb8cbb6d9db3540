"""The service as a process of its own, to be killed; and its operator's command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeml.fleet.broker import Address, free_port
from edgeml.fleet.client import Access, Client
from tests.system.fleet_clients import until

_DIE = """
import importlib, os, signal, sys
place, when, count = sys.argv.pop(1).split("|")
module, _, path = place.partition(":")
owner = importlib.import_module(module)
*parents, name = path.split(".")
for parent in parents:
    owner = getattr(owner, parent)
whole, left = getattr(owner, name), int(count)

def dying(*arguments, **rest):
    global left
    left -= 1
    if left == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = whole(*arguments, **rest)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, dying)
from edgeml.cli import main
main(sys.argv[1:])
"""


def run(*arguments: str, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`edgeml fleet …` to its end."""
    place = ["--data", str(data)] if data is not None else []
    command = [sys.executable, "-m", "edgeml.cli", "fleet", *arguments, *place]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGEML_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


class ServiceProcess:
    """`edgeml fleet serve` on free ports, which stay the same over restarts."""

    def __init__(self, folder: Path, broker: str | None = None) -> None:
        self.data = folder / "fleet"
        self.port, self.mqtt_port = free_port("127.0.0.1"), free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self.mqtt = Address("127.0.0.1", self.mqtt_port)
        self._broker = ["--broker", broker] if broker else []
        self._log = (folder / "service.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, die: str | None = None) -> Self:
        """`die` is `module:path|before or after|which call`: the process kills itself there."""
        head = [sys.executable, "-c", _DIE, die] if die else [sys.executable, "-m", "edgeml.cli"]
        ports = ["--port", str(self.port), "--mqtt-port", str(self.mqtt_port), "--tick-s", "0.05"]
        command = [*head, "fleet", "serve", "--data", str(self.data), *ports, *self._broker]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        until(self._answers, "an answer on the port")
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait_killed(self) -> None:
        """Raises if the process does not die of its own SIGKILL."""
        assert self.process is not None
        assert self.process.wait(20) == -signal.SIGKILL

    def stop(self) -> int:
        """In order; gives the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def client(self) -> Client:
        return Client(Access(self.url, (self.data / "operator.key").read_text().strip()))

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(*arguments, data=self.data)

    def json(self, *arguments: str) -> Any:
        done = self.cli(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        with contextlib.suppress(OSError, ValueError):  # what a killed service left behind
            pid = int((self.data / "broker" / "mosquitto.pid").read_text())
            if str(self.data).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        self._log.close()

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the service ended with {self.process.returncode}: {Path(self._log.name).read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            return b"200" in connection.recv(64)
        return False
