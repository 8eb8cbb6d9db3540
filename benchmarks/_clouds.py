"""Clouds that a device meets: a real one, one that is killed, one that is slow, one that answers noise."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml.runtime.backends import Array
from edgeml.runtime.cloud import CloudClient
from edgeml.runtime.cloud_gate import CloudGate
from edgeml.runtime.fallback import Policy
from edgeml.runtime.hybrid import Hybrid
from edgeml.runtime.model import Model, load

ROOT: Final = Path(__file__).resolve().parent.parent
Speak = Callable[[socket.socket], None]

CALLS: Final = 200  # of each kind of cloud
DEADLINE_S: Final = 0.25
SLOW_S: Final = 1.0
NEVER: Final = 10**9  # failures until the breaker opens, where it is to stay closed


@dataclass(frozen=True, slots=True)
class Timed:
    """How a device fared with one kind of cloud; `kept_ms` is what it kept free for waking up, at most."""

    cloud: str
    calls: int
    in_deadline: int
    from_cloud: int
    slowest_ms: float
    kept_ms: float


def deadlines(bundle: Path, images: Array) -> list[Timed]:
    """The digits' bundle asks about every image."""
    with load(bundle) as model:
        with serving(bundle) as (url, process):
            alive = timed("edgeml serve", model, url, images, failures=NEVER)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)
            dead = timed("killed", model, url, images, failures=3)
        with standing(slow) as url:
            late = timed(f"takes {SLOW_S:g} s", model, url, images, failures=NEVER)
        with standing(noise) as url:
            lying = timed("answers noise", model, url, images, failures=NEVER)
    return [alive, dead, late, lying]


def timed(name: str, model: Model, url: str, images: Array, *, failures: int) -> Timed:
    policy = Policy(deadline_s=DEADLINE_S, least_score=1.1, failures_to_open=failures)
    took, sources = [], []
    gate = CloudGate(policy)
    kept = 0.0
    with Hybrid(model, CloudClient(url, model.name, model.manifest.signature), gate) as hybrid:
        for number in range(CALLS):
            began = time.perf_counter()
            sources.append(hybrid.run({"image": images[number]}).source)
            took.append(time.perf_counter() - began)
            kept = max(kept, gate.wake_reserve_s())
    in_time = sum(seconds <= DEADLINE_S for seconds in took)
    return Timed(name, CALLS, in_time, sources.count("cloud"), round(1e3 * max(took), 1), round(1e3 * kept, 1))


@contextlib.contextmanager
def serving(bundle: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "edgeml.cli", "serve", str(bundle), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process
    finally:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def standing(speak: Speak) -> Iterator[str]:
    """A server on a thread for each connection, which says what it likes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=speak, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        stop.set()
        thread.join()


def slow(connection: socket.socket) -> None:
    """Reads, waits, and says that all is well."""
    with connection, contextlib.suppress(OSError):
        connection.recv(1 << 16)
        time.sleep(SLOW_S)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def noise(connection: socket.socket) -> None:
    """Answers at once: noise, JSON of something else, NaN, or half a promise."""
    luck = random.Random()
    body = luck.choice(
        [
            luck.randbytes(200),
            b'{"model_name":"digits","outputs":[{"name":"scores","datatype":"FP32","shape":[1,10],"data":[NaN]}]}',
            b'{"outputs":[]}',
            b"[" * 5000,
        ]
    )
    length = luck.choice([len(body), 10 * len(body)])
    with connection, contextlib.suppress(OSError):
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + body)
