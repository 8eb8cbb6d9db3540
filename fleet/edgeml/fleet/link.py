"""The service's own end of the broker: takes in what devices publish, and retains what is wanted of each.

Nothing is acknowledged before it is stored, and nothing counts as told before the broker acknowledged it; so a kill at any
moment only repeats. While the broker is away nothing is lost either: devices poll, and everyone is told again on the next
connection.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy.exc import SQLAlchemyError

from edgeml.fleet.broker import Address
from edgeml.fleet.devices import SERVICE_USER
from edgeml.fleet.ingest import KINDS, Inbound, Ingest
from edgeml.fleet.store import Store, devices
from edgeml.wire.messages import PROTOCOL, encode, parse_topic, topic

BATCH: Final = 500  # messages in one transaction
TELL_BATCH: Final = 500
ACKNOWLEDGED_WITHIN_S: Final = 10.0
_IDLE_S: Final = 1.0
_AGAIN_S: Final = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Arrived:
    message: mqtt.MQTTMessage
    connection: int  # packet ids are only good for the connection they came on


class Link:
    """Connects in the background and stays at it."""

    def __init__(self, address: Address, tenant: str, store: Store, ingest: Ingest) -> None:
        self._address = address
        self._tenant = tenant
        self._store = store
        self._ingest = ingest
        self._arrived: queue.SimpleQueue[_Arrived | None] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._fresh = threading.Event()  # connected anew: whatever was told may be gone
        self._stopped = threading.Event()
        self._connection = 0
        self._gone: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._client = self._make_client()
        self._threads = [
            threading.Thread(target=self._take_in, name="link-in", daemon=True),
            threading.Thread(target=self._tell, name="link-out", daemon=True),
        ]

    @property
    def is_connected(self) -> bool:
        return bool(self._client.is_connected())

    def start(self) -> None:
        self._client.connect_async(self._address.host, self._address.port, keepalive=30)
        self._client.loop_start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._wake.set()
        self._arrived.put(None)
        for thread in self._threads:
            thread.join(ACKNOWLEDGED_WITHIN_S + 5)
        self._client.disconnect()
        self._client.loop_stop()

    def tell(self) -> None:
        """Somebody is wanted something new; look at once."""
        self._wake.set()

    def tell_again(self) -> None:
        """The broker may have lost what it retained."""
        self._fresh.set()
        self._wake.set()

    def forget(self, device: str) -> None:
        """Clear what is retained for a device that was removed."""
        self._gone.put(device)
        self._wake.set()

    def _make_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._address.user or SERVICE_USER,
            clean_session=False,  # the broker keeps what arrives while the service restarts
            protocol=mqtt.MQTTv311,
            manual_ack=True,
        )
        if self._address.user is not None:
            client.username_pw_set(self._address.user, self._address.password)
        if self._address.tls:
            client.tls_set()
        client.reconnect_delay_set(min_delay=1, max_delay=5)
        client.max_inflight_messages_set(TELL_BATCH)
        client.max_queued_messages_set(0)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            log.warning("the broker at %s refuses the service: %s; devices poll meanwhile", self._address.url, reason)
            return
        self._connection += 1
        client.subscribe([(f"{PROTOCOL}/{self._tenant}/d/+/{kind}", 1) for kind in KINDS])
        log.info("connected to the broker at %s", self._address.url)
        self.tell_again()

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self._stopped.is_set():
            log.warning("lost the broker at %s (%s); devices poll meanwhile", self._address.url, reason)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        self._arrived.put(_Arrived(message, self._connection))

    def _take_in(self) -> None:
        while (first := self._arrived.get()) is not None:
            batch = [first]
            while len(batch) < BATCH and not self._arrived.empty():
                following = self._arrived.get()
                if following is None:
                    self._arrived.put(None)
                    break
                batch.append(following)
            self._store_batch(batch)

    def _store_batch(self, batch: list[_Arrived]) -> None:
        inbound = [one for arrived in batch if (one := _inbound(arrived.message)) is not None]
        while True:
            try:
                self._ingest.take(inbound)
                break
            except SQLAlchemyError:
                log.exception("cannot store what devices said; trying again")
                if self._stopped.wait(_AGAIN_S):
                    return  # not acknowledged: the broker keeps it
            except Exception:
                log.exception("%d messages could not be taken in", len(inbound))
                self._ingest.dropped["defect"] += len(inbound)
                break
        for arrived in batch:
            if arrived.connection == self._connection:
                self._client.ack(arrived.message.mid, arrived.message.qos)

    def _tell(self) -> None:
        while not self._stopped.is_set():
            self._wake.wait(_IDLE_S)
            self._wake.clear()
            try:
                while self.is_connected and not self._stopped.is_set() and self._tell_batch():
                    pass
            except SQLAlchemyError:
                log.exception("cannot read whom to tell; trying again")
                self._stopped.wait(_AGAIN_S)

    def _tell_batch(self) -> bool:
        """Gives whether there may be more to tell."""
        if self._fresh.is_set():
            self._fresh.clear()
            with self._store.write() as connection:
                devices.forget_told(connection)
        while not self._gone.empty():
            self._client.publish(topic(self._tenant, self._gone.get(), "desired"), b"", qos=1, retain=True)
        with self._store.read() as connection:
            untold = devices.untold(connection, TELL_BATCH)
        sent = [
            (
                device,
                desired.rev,
                self._client.publish(topic(self._tenant, device, "desired"), encode(desired), qos=1, retain=True),
            )
            for device, desired in untold
        ]
        until = time.monotonic() + ACKNOWLEDGED_WITHIN_S
        acknowledged = [(device, rev) for device, rev, info in sent if _is_acknowledged(info, until)]
        with self._store.write() as connection:
            devices.told(connection, acknowledged)
        return len(acknowledged) == TELL_BATCH


def _is_acknowledged(info: mqtt.MQTTMessageInfo, until: float) -> bool:
    try:
        info.wait_for_publish(max(0.0, until - time.monotonic()))
    except (RuntimeError, ValueError):
        return False  # the connection went; told again on the next one
    return bool(info.is_published())


def _inbound(message: mqtt.MQTTMessage) -> Inbound | None:
    parts = parse_topic(message.topic)
    return Inbound(parts[1], parts[2], bytes(message.payload)) if parts is not None else None
