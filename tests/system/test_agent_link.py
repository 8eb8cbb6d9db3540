"""The MQTT link against real brokers: acknowledgement, restart, wills, hostile payloads, both protocol versions."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgeml.runtime.config import BrokerTable
from edgeml.runtime.link import Link
from edgeml.runtime.spool import Spool
from edgeml.wire.messages import Desired, State, encode, topic
from tests.system.brokers import BROKERS, amqtt, free_port, mosquitto


@pytest.fixture(params=sorted(BROKERS))
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with BROKERS[request.param](tmp_path, free_port()) as url:
        yield url


class Fleet:
    """The other end: hears everything, can say `desired`."""

    def __init__(self, url: str) -> None:
        self.heard: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.on_message = self._on_message
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self._client.subscribe([(topic("default", "d1", kind), 1) for kind in ("report", "telemetry", "state")])
        self._client.loop_start()
        assert subscribed.wait(10)

    def say(self, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic("default", "d1", "desired"), payload, qos=1, retain=retain).wait_for_publish(10)

    def hear(self, kind: str) -> dict[str, Any]:
        while True:
            found, body = self.heard.get(timeout=20)
            if found == kind:
                return body

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        self.heard.put((message.topic.rsplit("/", 1)[1], json.loads(message.payload)))


@contextmanager
def fleet_at(url: str) -> Iterator[Fleet]:
    fleet = Fleet(url)
    try:
        yield fleet
    finally:
        fleet.close()


class Driven:
    """A link and what drives it, without a thread: `until` turns the crank."""

    def __init__(self, folder: Path, url: str, protocol: str = "auto") -> None:
        self.spool = Spool(folder / "spool")
        self.desired: list[bytes] = []
        table = BrokerTable(url=url, protocol=protocol, connack_s=1.0, backoff_s=0.2, backoff_cap_s=0.5)  # type: ignore[arg-type]
        self.link = Link(
            table, tenant="default", device="d1", token="t", tls=None, spool=self.spool,
            describe=lambda session: State("d1", session, online=True), on_desired=self.desired.append,
            jitter=random.Random(1).random,
        )  # fmt: skip

    def until(self, is_so: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
        ends = time.monotonic() + timeout_s
        pause = threading.Event()
        while not is_so():
            assert time.monotonic() < ends, f"never happened; {self.link.problem}"
            self.link.tick()
            if self.link.socket is not None:
                self.link.on_readable()
            if self.link.wants_write:
                self.link.on_writable()
            pause.wait(0.005)

    def put(self, payload: dict[str, Any]) -> None:
        self.spool.put(self.spool.next_seq(), "report", json.dumps(payload).encode())

    def close(self) -> None:
        self.link.close()
        self.spool.close()


@contextmanager
def driven(folder: Path, url: str, protocol: str = "auto") -> Iterator[Driven]:
    made = Driven(folder, url, protocol)
    try:
        yield made
    finally:
        made.close()


def test_a_message_leaves_the_spool_when_the_broker_has_it(broker: str, tmp_path: Path) -> None:
    with fleet_at(broker) as fleet, driven(tmp_path, broker) as device:
        for number in range(50):
            device.put({"number": number})
        device.until(lambda: len(device.spool) == 0)
        assert [fleet.hear("report")["number"] for _ in range(50)] == list(range(50))


def test_birth_and_last_will_carry_the_same_session(broker: str, tmp_path: Path) -> None:
    with fleet_at(broker) as fleet:
        device = Driven(tmp_path, broker)
        device.until(lambda: device.link.connected and not device.link.wants_write)
        birth = fleet.hear("state")
        device.link._drop()  # the socket closes without a DISCONNECT, as when the power goes
        will = fleet.hear("state")
        assert (birth["online"], will["online"]) == (True, False)
        assert birth["session"] == will["session"] == device.link.session
        device.until(lambda: True)
        device.link._dial_at = 0.0
        device.until(lambda: device.link.connected)
        assert fleet.hear("state")["session"] > birth["session"]
        device.close()


def test_what_was_wanted_while_the_device_was_away_arrives(broker: str, tmp_path: Path) -> None:
    with fleet_at(broker) as fleet:
        fleet.say(encode(Desired(7, ())), retain=True)
        with driven(tmp_path, broker) as device:
            device.until(lambda: bool(device.desired))
            assert json.loads(device.desired[0])["rev"] == 7


def test_the_version_that_worked_is_remembered(broker: str, tmp_path: Path) -> None:
    with driven(tmp_path, broker) as device:
        device.until(lambda: device.link.connected)
        version = device.link.version
    with driven(tmp_path, broker) as again:
        assert again.link.version == version


def test_mosquitto_is_spoken_to_in_5_and_amqtt_in_3_1_1(tmp_path: Path) -> None:
    for start, version in ((mosquitto, 5), (amqtt, 4)):
        folder = tmp_path / start.__name__
        folder.mkdir()
        with start(folder, free_port()) as url, driven(folder, url) as device:
            device.until(lambda device=device: device.link.connected)  # type: ignore[misc]
            assert device.link.version == version


def test_a_restarted_broker_gets_what_it_missed(tmp_path: Path) -> None:
    port = free_port()
    with mosquitto(tmp_path, port) as url:
        device = Driven(tmp_path, url)
        device.until(lambda: device.link.connected)
    device.put({"number": 1})
    device.until(lambda: not device.link.connected)
    with mosquitto(tmp_path, port) as url, fleet_at(url) as fleet:
        device.until(lambda: len(device.spool) == 0)
        assert fleet.hear("report")["number"] == 1
        device.close()


def test_a_broker_that_is_not_one_costs_the_connection_and_no_more(tmp_path: Path) -> None:
    import socket

    server = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def babble() -> None:
        luck = random.Random(3)
        while not stopped.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(luck.randbytes(200))

    thread = threading.Thread(target=babble)
    thread.start()
    with driven(tmp_path, f"mqtt://127.0.0.1:{server.getsockname()[1]}") as device:
        sessions: set[int] = set()

        def tried_ten_times() -> bool:
            sessions.add(device.link.session)
            return len(sessions) > 10

        device.until(tried_ten_times)
        assert not device.link.connected
    stopped.set()
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()
