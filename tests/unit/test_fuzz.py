"""Bytes from anywhere, on every way in: no crash, no thread lost, and no action that a valid document did not ask for."""

from __future__ import annotations

import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from edgeml.fleet.api.app import build_app
from edgeml.fleet.config import Config
from edgeml.fleet.service import Fleet
from edgeml.runtime.config import AgentConfig
from edgeml.runtime.device import Device, Job, Workers
from edgeml.runtime.http import _InTime, make_pool
from edgeml.runtime.polling import Poller
from edgeml.runtime.spool import Spool
from edgeml.simulation.shared import Models, SharedEngine
from edgeml.wire.errors import LinkError, ServiceError
from edgeml.wire.messages import Desired, Report, State, Target, Telemetry, decode, encode, pack

A = "a" * 64
VALID: dict[type[Any], Any] = {
    Desired: Desired(3, (Target("kws", "1.0.0", A, "models/kws/1.0.0.edgeml"),)),
    Report: Report("d1", 1, 2, 10.0, 1, "kws", "confirmed", "1.0.0", A),
    Telemetry: Telemetry("d1", 1, 2, "kws", "1.0.0", A, start=0.0, seconds=60.0, runs=5),
    State: State("d1", 4, online=True),
}
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def payloads(draw: st.DrawFn, kind: type[Any]) -> bytes:
    """Noise, JSON of any shape, a valid message with a field replaced, or with bytes changed."""
    valid = encode(VALID[kind])
    match draw(st.integers(0, 3)):
        case 0:
            return draw(st.sampled_from([b"", b"\x78\x9c", zlib.compress(bytes(1 << 20))])) + draw(st.binary(max_size=200))
        case 1:
            return json.dumps(draw(anything)).encode()
        case 2:
            fields = msgspec.json.decode(valid)
            fields[draw(st.sampled_from(sorted(fields)) | st.text(max_size=8))] = draw(anything)
            return json.dumps(fields).encode()
        case _:
            where = draw(st.integers(0, len(valid) - 1))
            return valid[:where] + draw(st.binary(max_size=3)) + valid[where + draw(st.integers(0, 3)) :]


@pytest.mark.parametrize("kind", list(VALID), ids=lambda kind: kind.__name__)
def test_a_payload_is_a_message_or_a_link_error(kind: type[Any]) -> None:
    @given(payloads(kind))
    @FUZZ
    def check(payload: bytes) -> None:
        try:
            found = decode(kind, payload)
        except LinkError:
            return
        assert isinstance(found, kind)

    check()


def test_a_packed_message_reads_as_the_plain_one_and_a_bomb_is_refused() -> None:
    message = VALID[Telemetry]
    assert decode(Telemetry, pack(message)) == decode(Telemetry, encode(message)) == message
    bomb = zlib.compress(b" " * (50 << 20), 9)
    with pytest.raises(LinkError, match="too long"):
        decode(Telemetry, bomb[:60_000])


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[Device, list[Job]]]:
    """A device without a fleet to trust, and the work that it asked for."""
    jobs: list[Job] = []
    config = msgspec.convert({"device": {"id": "d1", "data": str(tmp_path / "data")}}, AgentConfig)
    engine = SharedEngine(Models(), [])
    with urllib3.PoolManager() as pool:
        made = Device(config, engine=engine, sensor=engine, workers=Workers(jobs.append, jobs.append), pool=pool)
        made.start()
        yield made, jobs
        made.close()


@given(payloads(Desired))
@FUZZ
def test_what_is_no_desired_document_starts_no_work(device: tuple[Device, list[Job]], payload: bytes) -> None:
    made, jobs = device
    jobs.clear()
    made.desired(payload)
    made.tick()
    try:
        asked = decode(Desired, payload)
    except LinkError:
        assert jobs == []
        return
    assert len(jobs) <= len(asked.targets)
    for job in jobs:
        job()
    made.tick()
    assert made.defects == 0
    assert {update.active for update in made.updates} <= {None}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, dict[str, str]]]:
    config = Config(tmp_path_factory.mktemp("fuzz") / "fleet", broker="none", tick_s=60.0)
    with Fleet(config) as fleet, TestClient(build_app(fleet), raise_server_exceptions=False) as client:
        operator = {"Authorization": f"Bearer {fleet.operator_key}"}
        made = client.post("/v1/devices", json={"ids": ["d1"], "tags": {}}, headers=operator).json()["devices"][0]
        yield client, {"Authorization": f"Bearer {made['token']}"}


@given(st.binary(max_size=200) | anything.map(lambda value: json.dumps(value).encode()) | st.data())
@FUZZ
def test_posted_reports_of_any_bytes_get_an_answer_that_is_not_an_outage(
    desk: tuple[TestClient, dict[str, str]], body: bytes | st.DataObject
) -> None:
    client, headers = desk
    if not isinstance(body, bytes):
        kind = body.draw(st.sampled_from(["report", "telemetry", "state", "desired"]))
        payload = body.draw(payloads({"report": Report, "telemetry": Telemetry, "state": State}.get(kind, Desired)))
        body = b'[{"kind":"' + kind.encode() + b'","body":' + payload + b"}]"
    assert client.post("/v1/reports", content=body, headers=headers).status_code in {200, 400, 413, 422}


class Hostile:
    """A server that says the same to everyone, piece by piece."""

    def __init__(self, pieces: Callable[[], Iterator[bytes]], pause_s: float) -> None:
        self._pieces, self._pause_s = pieces, pause_s
        self._stopping = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.sent_bytes = 0

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            connection.recv(65536)
            for piece in self._pieces():
                connection.sendall(piece)
                self.sent_bytes += len(piece)
                if self._stopping.wait(self._pause_s):
                    return
        except OSError:
            return

    def close(self) -> None:
        self._stopping.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(10)


def endless(head: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield head
        while True:
            yield piece

    return pieces


HEAD = b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 1000000000\r\n\r\n"
REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
SERVERS: dict[str, tuple[Callable[[], Iterator[bytes]], float]] = {
    "an endless body": (endless(HEAD, b"x" * 65536), 0.0),
    "a body that drips": (endless(HEAD, b"x"), 0.02),
    "a head that drips": (endless(b"HTTP/1.1 200 OK\r\nX: ", b"x"), 0.02),
    "endless headers": (endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000), 0.0),
    "garbage": (lambda: iter([b"\x00\xff" * 1000]), 0.0),
    "an unknown length that never ends": (endless(b"HTTP/1.1 200 OK\r\n\r\n", b"{" * 1000), 0.0),
    "chunks that are none": (lambda: iter([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nxx"]), 0.0),
    "a redirect to elsewhere": (lambda: iter([REDIRECT]), 0.0),
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_hostile_service_costs_a_poll_a_bounded_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(_InTime, "head_s", 0.4)
    server = Hostile(*SERVERS[name])
    heard: list[bytes] = []
    spool = Spool(tmp_path / "spool")
    spool.put(spool.next_seq(), "report", b"{}")
    pool = make_pool(maxsize=1)
    poller = Poller(server.url, "t", pool=pool, spool=spool, on_desired=heard.append, timeout_s=0.4)
    began = time.monotonic()
    with pytest.raises((LinkError, ServiceError)):
        poller.ask()
    with pytest.raises((LinkError, ServiceError)):
        poller.tell(None)
    assert time.monotonic() - began < 20
    assert heard == []
    assert len(spool) == 1
    pool.clear()
    spool.close()
    server.close()
