"""The MQTT link of one device: MQTT 5, or 3.1.1 where the broker never answers a 5; at-least-once, driven from outside.

The owner's loop waits for `socket` to be readable (or writable where `wants_write`) and calls `on_readable`, `on_writable` and,
a few times a second, `tick`. Everything happens in that one thread. Each connection is a new client with a new session number,
which its birth and its last will share, so that the will of an older connection harms no newer one. A message leaves the spool
when its PUBACK is here; what was under way when a connection broke is simply sent again.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeml.runtime.config import BrokerTable, broker_address
from edgeml.wire.messages import MESSAGE_LIMIT_BYTES, State, encode, topic

if TYPE_CHECKING:
    from edgeml.runtime.spool import Spool

WINDOW: Final = 20  # messages under way at once
SESSION_EXPIRY_S: Final = 7 * 24 * 3600  # a week offline, and the broker forgets; `GET /v1/desired` makes up for it
PACKET_LIMIT_BYTES: Final = MESSAGE_LIMIT_BYTES + 1024
REFUSED_PAUSE_S: Final = 60.0  # after a publish the broker refused, so that a wrong ACL is not hammered
CONNECT_TIMEOUT_S: Final = 5.0
UNSUPPORTED_PROTOCOL: Final = frozenset({1, 132})  # CONNACK codes of MQTT 3.1.1 and 5

MQTTv5, MQTTv311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
_VERSIONS: Final = {"5": MQTTv5, "3.1.1": MQTTv311}


class Link:
    """One device's connection.

    Args:
        describe: the birth message for a session number; its last will is the same with `online=False`.
        tls: for an encrypted broker.
        on_desired: what to do with the payload of a `desired` message; must not raise.
        jitter: uniform in [0, 1).

    Attributes:
        connected: the broker has accepted this device.
        down_since: monotonic seconds since when it has not; `None` while connected.
        ignored: messages on topics that are not this device's, and packets that are not MQTT.
    """

    def __init__(
        self,
        broker: BrokerTable,
        *,
        tenant: str,
        device: str,
        token: str,
        tls: ssl.SSLContext | None,
        spool: Spool,
        describe: Callable[[int], State],
        on_desired: Callable[[bytes], None],
        jitter: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._broker = broker
        self._host, self._port, encrypted = broker_address(broker.url)
        self._tls = tls if encrypted else None
        self._tenant, self._device, self._token = tenant, device, token
        self._spool = spool
        self._describe = describe
        self._on_desired = on_desired
        self._jitter, self._clock, self._now = jitter, clock, now
        self._client: Client | None = None
        self._in_flight: dict[int, int] = {}  # packet id -> sequence number
        self._attempts = 0
        self._dial_at = clock()
        self._connack_until = 0.0
        self._pause_until = 0.0
        self.connected = False
        self.down_since: float | None = clock()
        self.session = 0
        self.ignored = 0
        self.connects = 0
        self.problem: str | None = None  # why there is no connection, for people
        self.version = self._first_version()

    @property
    def socket(self) -> socket.socket | None:
        if self._client is None:
            return None
        found = self._client.socket()
        return found if isinstance(found, socket.socket) else None

    @property
    def wants_write(self) -> bool:
        return self._client is not None and self._client.want_write()

    def tick(self) -> None:
        """Dial, give up on an answer, keep alive, send; whatever is due."""
        at = self._clock()
        if self._client is None:
            if at >= self._dial_at:
                self._dial(at)
            return
        if not self.connected and at >= self._connack_until:
            self._lost("the broker never answered CONNECT", unanswered=True)
            return
        self._guarded(self._client.loop_misc)
        self._pump(at)

    def on_readable(self) -> None:
        if self._client is not None:
            self._guarded(self._client.loop_read)
            self._pump(self._clock())

    def on_writable(self) -> None:
        if self._client is not None:
            self._guarded(self._client.loop_write)

    def close(self) -> None:
        """Say good-bye as the last will would, and leave."""
        client = self._client
        if client is None:
            return
        if self.connected:
            client.publish(self._topic("state"), encode(self._offline()), qos=1)
            self._guarded(client.loop_write)
        if self._client is not None:
            client.disconnect()
        self._drop()

    def _first_version(self) -> MQTTProtocolVersion:
        if self._broker.protocol != "auto":
            return _VERSIONS[self._broker.protocol]
        remembered = self._spool.recall("mqtt_version")
        return MQTTv311 if remembered == MQTTv311 else MQTTv5

    def _dial(self, at: float) -> None:
        self.problem = None
        self.session = self._spool.next_session(self._now())
        client = self._new_client()
        try:
            client.connect_async(self._host, self._port, self._broker.keepalive_s, **self._connect_options())
            client.reconnect()
        except (OSError, ValueError) as error:  # refused, no route, no such host, TLS
            self._lost(f"{self._host}:{self._port}: {error}")
            return
        self._client = client
        self._connack_until = at + self._broker.connack_s

    def _new_client(self) -> Client:
        options: dict[str, Any] = {} if self.version == MQTTv5 else {"clean_session": False}
        client = Client(
            CallbackAPIVersion.VERSION2, client_id=self._device, protocol=self.version, reconnect_on_failure=False, **options
        )
        client.username_pw_set(self._device, self._token)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(WINDOW)
        client.will_set(self._topic("state"), encode(self._offline()), qos=1)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def _connect_options(self) -> dict[str, Any]:
        if self.version != MQTTv5:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.MaximumPacketSize = PACKET_LIMIT_BYTES
        return {"clean_start": False, "properties": properties}

    def _on_connect(self, client: Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.problem = f"the broker refused: {reason}"
            self._connack_until = 0.0  # the next tick gives up
            if reason.value in UNSUPPORTED_PROTOCOL:
                self._other_version()
            return
        self.connected, self.down_since, self.problem = True, None, None
        self._attempts = 0
        self.connects += 1
        if self._broker.protocol == "auto":
            self._spool.remember("mqtt_version", self.version)
        client.subscribe(self._topic("desired"), qos=1)
        client.publish(self._topic("state"), encode(self._describe(self.session)), qos=1)

    def _on_disconnect(self, client: Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if client is self._client:
            self._lost(self.problem or f"disconnected: {reason}")

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        if message.topic != self._topic("desired"):
            self.ignored += 1
            return
        self._on_desired(bytes(message.payload))

    def _on_publish(self, _client: Client, _userdata: Any, packet_id: int, reason: Any, _properties: Any) -> None:
        seq = self._in_flight.pop(packet_id, None)
        if seq is None:
            return
        if reason.is_failure:
            self._pause_until = self._clock() + REFUSED_PAUSE_S
            self.problem = f"the broker refused a message: {reason}"
            return
        self._spool.ack([seq])

    def _pump(self, at: float) -> None:
        """Keep WINDOW messages under way."""
        client = self._client
        if client is None or not self.connected or at < self._pause_until or len(self._in_flight) >= WINDOW:
            return
        for row in self._spool.peek(WINDOW - len(self._in_flight), without=set(self._in_flight.values())):
            sent = client.publish(self._topic(row.lane), row.payload, qos=1)
            if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS or client is not self._client:
                return
            self._in_flight[sent.mid] = row.seq

    def _guarded(self, call: Callable[[], MQTTErrorCode]) -> None:
        """A broker that sends bytes that are not MQTT costs the connection, nothing more."""
        try:
            failed = call() != MQTTErrorCode.MQTT_ERR_SUCCESS
        except Exception as error:  # noqa: BLE001 - paho raises whatever its parser trips over
            self.ignored += 1
            self._lost(f"not MQTT: {error!r}")
            return
        if failed and self._client is not None:
            self._lost(self.problem or "connection lost")

    def _lost(self, problem: str, *, unanswered: bool = False) -> None:
        at = self._clock()
        was_refused = self.problem if unanswered else None
        self._drop()
        if unanswered and was_refused is None:
            self._other_version()
        self.problem = was_refused or problem
        self.down_since = self.down_since if self.down_since is not None else at
        self._attempts += 1
        cap_s = min(self._broker.backoff_cap_s, self._broker.backoff_s * 2.0 ** min(self._attempts - 1, 32))
        self._dial_at = at + self._jitter() * cap_s

    def _other_version(self) -> None:
        if self._broker.protocol == "auto":
            self.version = MQTTv311 if self.version == MQTTv5 else MQTTv5

    def _drop(self) -> None:
        client, self._client = self._client, None
        self.connected = False
        self._in_flight.clear()
        found = client.socket() if client is not None else None
        if found is not None:
            found.close()

    def _offline(self) -> State:
        return State(self._device, self.session, online=False, at=self._now())

    def _topic(self, kind: Any) -> str:
        return topic(self._tenant, self._device, kind)
