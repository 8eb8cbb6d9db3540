"""Real brokers on loopback, for tests: Mosquitto (MQTT 5 and 3.1.1) and amqtt (3.1.1 only, never answers a 5)."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def mosquitto(folder: Path, port: int, more: str = "") -> Iterator[str]:
    """An open broker, with `more` lines in its settings; gives its url."""
    if MOSQUITTO is None:
        pytest.skip("no mosquitto here: apt-get install mosquitto")
    settings = folder / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n{more}")
    process = subprocess.Popen([MOSQUITTO, "-c", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_port(port)
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def amqtt(folder: Path, port: int) -> Iterator[str]:
    """An open amqtt broker in a process of its own."""
    script = folder / "broker.py"
    script.write_text(_AMQTT.format(port=port))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_port(port)
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


BROKERS: dict[str, Callable[[Path, int], contextlib.AbstractContextManager[str]]] = {"mosquitto": mosquitto, "amqtt": amqtt}

_AMQTT = """
import asyncio
from amqtt.broker import Broker

async def main():
    broker = Broker({{
        "listeners": {{"default": {{"type": "tcp", "bind": "127.0.0.1:{port}"}}}},
        "plugins": {{"amqtt.plugins.authentication.AnonymousAuthPlugin": {{"allow_anonymous": True}}}},
    }})
    await broker.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def _await_port(port: int) -> None:
    pause = threading.Event()
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        pause.wait(0.05)
    pytest.fail(f"no broker came up on port {port}")
