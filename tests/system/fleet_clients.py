"""A device's end of the broker for tests: a paho client with a log of what it got, and waiting that ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgeml.fleet.broker import Address

LIMIT_S = 30.0  # a service takes two seconds to start, and ten on a machine that does something else


class Peer:
    """One MQTT 3.1.1 client; as a context manager it leaves without a word (its last will is sent)."""

    def __init__(
        self, address: Address, user: str, password: str, *, client_id: str | None = None, will: tuple[str, bytes] | None = None
    ) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.reasons: list[str] = []
        self.drops = 0
        self._changed = threading.Condition()
        self._granted: dict[int, list[int]] = {}
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or user, protocol=mqtt.MQTTv311, reconnect_on_failure=False
        )
        self.client.username_pw_set(user, password)
        if will is not None:
            self.client.will_set(will[0], will[1], qos=1)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.on_subscribe = self._on_subscribe
        self.client.connect(address.host, address.port)
        self.client.loop_start()
        self.wait(lambda: bool(self.reasons), "an answer to CONNECT")

    @property
    def is_in(self) -> bool:
        return self.reasons[-1] == "Success" and self.client.is_connected()

    def subscribe(self, topic: str) -> bool:
        """Gives whether it was granted; a broker may grant and deliver nothing."""
        _, mid = self.client.subscribe(topic, qos=1)
        assert mid is not None
        self.wait(lambda: mid in self._granted, f"an answer to SUBSCRIBE {topic}")
        return all(code < 0x80 for code in self._granted[mid])

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Returns when the broker has acknowledged it; refused messages are acknowledged too."""
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(LIMIT_S)

    def expect(self, payload: bytes) -> None:
        self.wait(lambda: any(got == payload for _, got in self.got), f"{payload[:60]!r}")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, LIMIT_S), f"no {what} within {LIMIT_S} s; got {self.got}, {self.reasons}"

    def vanish(self) -> None:
        """Close the connection without DISCONNECT: the broker sends the last will."""
        connection = self.client.socket()
        assert connection is not None
        self.client.on_disconnect = None
        connection.close()
        self.client.loop_stop()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _note(self, change: Callable[[], Any]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._note(lambda: self.reasons.append(str(reason)))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        def count() -> None:
            self.drops += 1

        self._note(count)

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        self._note(lambda: self.got.append((message.topic, bytes(message.payload))))

    def _on_subscribe(self, _client: Any, _data: Any, mid: int, codes: Any, _properties: Any) -> None:
        self._note(lambda: self._granted.__setitem__(mid, [code.value for code in codes]))


def until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Poll for something that happens in another process."""
    end = time.monotonic() + limit_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {limit_s} s"
        pause.wait(0.02)
