"""Shows a device's models in Home Assistant by MQTT discovery: they appear by themselves, each with answer, score and time.

    <prefix>/sensor/<device>/<unique id>/config retained: what a sensor is called and where its values come
    edgeml/v1/<tenant>/d/<device>/ha/available  retained: `online`, and `offline` as the connection's last will
    edgeml/v1/<tenant>/d/<device>/ha/<model>    retained: the newest answer as JSON, not more than one every `every_s`

A connection of its own, often to another broker than the fleet's; no call waits for it. What was announced is remembered on
disk first, so that it can be taken back: when a model is gone, and when `enabled` is false. Format: Home Assistant's MQTT
integration, "single component discovery payload".
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edgeml.runtime.atomic import discard, write_file
from edgeml.runtime.config import AgentConfig, HomeAssistantTable, broker_address
from edgeml.runtime.model import Result
from edgeml.runtime.tls import client_context
from edgeml.wire.manifest import Manifest
from edgeml.wire.messages import PROTOCOL

FILE: Final = "home-assistant.json"
RETRY_S: Final = (1, 120)  # the first wait before connecting again, and the longest
STOP_S: Final = 2.0  # for the last words to leave
MOST_VALUES: Final = 8  # outputs of a model without classes that are shown
_VERSIONS: Final = {"3.1.1": MQTTProtocolVersion.MQTTv311, "5": MQTTProtocolVersion.MQTTv5}

Shown = tuple[Manifest, Result | None]
Messages = dict[str, bytes]
Rest = dict[str, object]  # of a discovery message


def object_id(text: str) -> str:
    """`text` with nothing but letters, digits, `_` and `-`, as discovery topics take it; different texts stay different."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    return plain if plain == text else f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


class Face:
    """What one device shows of itself; no IO."""

    def __init__(self, device: str, tenant: str, prefix: str, software: str) -> None:
        self._device, self._prefix, self._software = device, prefix, software
        self._base = f"{PROTOCOL}/{tenant}/d/{device}/ha"
        self.availability = f"{self._base}/available"

    def state_topic(self, model: str) -> str:
        return f"{self._base}/{model}"

    def configs(self, manifest: Manifest) -> Messages:
        """The discovery messages of a model, by topic."""
        model = manifest.name
        if manifest.task == "classify" and manifest.post is not None:
            score: Rest = {"unit_of_measurement": "%", "state_class": "measurement", "suggested_display_precision": 1}
            sensors: dict[str, tuple[str, str, Rest]] = {
                "label": ("answer", "{{ value_json.label }}", {}),
                "score": ("score", "{{ (value_json.score * 100) | round(2) }}", score),
            }
        else:
            number: Rest = {"state_class": "measurement"}
            names = [spec.name for spec in manifest.signature.outputs][:MOST_VALUES]
            sensors = {f"value_{i}": (name, f"{{{{ value_json.values[{i}] }}}}", number) for i, name in enumerate(names)}
        time_of_call: Rest = {"device_class": "duration", "unit_of_measurement": "ms", "state_class": "measurement"}
        diagnostic: Rest = {"entity_category": "diagnostic"}
        sensors["latency"] = ("time of a call", "{{ value_json.latency_ms }}", {**time_of_call, **diagnostic})
        sensors["version"] = ("version", "{{ value_json.version }}", diagnostic)
        return dict(self._config(model, what, *rest) for what, rest in sensors.items())

    def state(self, manifest: Manifest, result: Result | None) -> bytes | None:
        """The newest answer; `None` where there is nothing to show, as of several samples in one call."""
        if result is None:
            return None
        said: dict[str, object] = {"version": result.version, "latency_ms": round(1e3 * result.latency_s, 3)}
        if manifest.task == "classify" and manifest.post is not None:
            if result.score is None:
                return None
            said |= {"label": result.label if result.label is not None else str(result.class_index), "score": result.score}
        else:
            outputs = [result.outputs[spec.name] for spec in manifest.signature.outputs][:MOST_VALUES]
            if any(output.size != 1 for output in outputs):
                return None
            said["values"] = [float(output.reshape(-1)[0]) for output in outputs]
        return json.dumps({**said, "source": result.source}, separators=(",", ":")).encode()

    def _config(self, model: str, what: str, name: str, template: str, rest: Rest) -> tuple[str, bytes]:
        unique_id = f"edgeml_{object_id(self._device)}_{object_id(model)}_{what}"
        config = {
            "name": f"{model} {name}",
            "unique_id": unique_id,
            "state_topic": self.state_topic(model),
            "value_template": template,
            "availability_topic": self.availability,
            "device": {"identifiers": [f"edgeml_{object_id(self._device)}"], "name": self._device, "manufacturer": "edgeml"},
            "origin": {"name": "edgeml", "sw_version": self._software},
            **rest,
        }
        node = object_id(self._device)  # a level of its own, so that a broker can keep a device to its own
        return f"{self._prefix}/sensor/{node}/{unique_id}/config", json.dumps(config, sort_keys=True).encode()


class HomeAssistant:
    """Keeps a Home Assistant told. `tick` belongs to the agent's thread and returns at once.

    Args:
        shown: every model that answers now, by name: its manifest and newest answer.

    Attributes:
        problem: why there is no connection, or `None`.
    """

    def __init__(
        self,
        config: AgentConfig,
        table: HomeAssistantTable,
        shown: Callable[[], Mapping[str, Shown]],
        software: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table, self._shown, self._clock = table, shown, clock
        self._face = Face(config.device.id, config.device.tenant, table.prefix, software)
        self._path = config.data / FILE
        self._remembered = _remembered(self._path)
        self._said: Messages = {}  # on this connection, like the next three
        self._announced: dict[str, Manifest] | None = None
        self._told: dict[str, Result | None] = {}
        self._next_at: dict[str, float] = {}
        self._farewell: list[MQTTMessageInfo] | None = None
        self._connected = threading.Event()
        self._is_fresh = threading.Event()
        self.problem: str | None = "connecting"
        self._client: Client | None = None
        if table.enabled or self._remembered:
            self._client = self._dial(config, table)

    def tick(self) -> None:
        client = self._client
        if client is None or not self._connected.is_set():
            return
        if self._is_fresh.is_set():  # the broker may have forgotten everything
            self._is_fresh.clear()
            self._said.clear()
            self._told.clear()
            self._next_at.clear()
            self._announced = None
            self._farewell = None
        if not self._table.enabled:
            self._withdraw(client)
            return
        shown = dict(self._shown())
        self._announce(client, {name: manifest for name, (manifest, _) in shown.items()})
        at = self._clock()
        for name, (manifest, result) in shown.items():
            if result is self._told.get(name) or at < self._next_at.get(name, at):
                continue
            self._told[name] = result
            state, topic = self._face.state(manifest, result), self._face.state_topic(name)
            if state is not None and self._said.get(topic) != state:
                self._next_at[name] = at + self._table.every_s
                self._say(client, topic, state)

    def close(self) -> None:
        """Say good-bye as the last will would, and leave."""
        client, self._client = self._client, None
        if client is None:
            return
        if self._connected.is_set() and self._table.enabled:
            with contextlib.suppress(RuntimeError, ValueError):  # the connection went in this moment: the last will says it
                client.publish(self._face.availability, b"offline", qos=1, retain=True).wait_for_publish(STOP_S)
        client.disconnect()
        client.loop_stop()

    def _announce(self, client: Client, manifests: dict[str, Manifest]) -> None:
        if self._announced is not None and manifests == self._announced:
            return
        configs: Messages = {}
        for manifest in manifests.values():
            configs |= self._face.configs(manifest)
        topics = {*configs, *(self._face.state_topic(name) for name in manifests)}
        gone = self._remembered - topics
        if not topics <= self._remembered and not self._remember(self._remembered | topics):
            return  # a disk that takes nothing: what cannot be taken back is not announced
        for topic in sorted(gone):
            self._say(client, topic, b"")
        for topic, config in configs.items():
            if self._said.get(topic) != config:
                self._say(client, topic, config)
        if self._said.get(self._face.availability) != b"online":
            self._say(client, self._face.availability, b"online")
        if gone:
            self._remember(topics)
        self._announced = manifests

    def _withdraw(self, client: Client) -> None:
        """Take back what was announced, and leave when the broker has it."""
        if self._farewell is None:
            topics = sorted({*self._remembered, self._face.availability})
            self._farewell = [client.publish(topic, b"", qos=1, retain=True) for topic in topics]
        if all(message.is_published() for message in self._farewell):
            discard(self._path)
            self.close()

    def _say(self, client: Client, topic: str, payload: bytes) -> None:
        client.publish(topic, payload, qos=1, retain=True)
        self._said[topic] = payload

    def _remember(self, topics: set[str]) -> bool:
        try:
            write_file(self._path, json.dumps(sorted(topics)).encode())
        except OSError:
            return False
        self._remembered = set(topics)
        return True

    def _dial(self, config: AgentConfig, table: HomeAssistantTable) -> Client:
        url = table.url or (config.broker.url if config.broker is not None else "")
        host, port, encrypted = broker_address(url)
        client = Client(CallbackAPIVersion.VERSION2, client_id=f"{config.device.id}-ha", protocol=_VERSIONS[table.protocol])
        user, password = table.user, table.password
        if table.url is None and config.service is not None:
            user, password = config.device.id, config.service.token
        if user is not None:
            client.username_pw_set(user, password)
        if encrypted:
            ca = table.ca if table.url is not None or config.broker is None else config.broker.ca
            client.tls_set_context(client_context(config.optional_path(ca), None, None))
        client.will_set(self._face.availability, b"offline", qos=1, retain=True)
        client.reconnect_delay_set(*RETRY_S)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.connect_async(host, port, keepalive=60)
        client.loop_start()
        return client

    def _on_connect(self, _client: Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.problem = f"the broker refused: {reason}"
            return
        self.problem = None
        self._is_fresh.set()
        self._connected.set()

    def _on_disconnect(self, _client: Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._connected.clear()
        self.problem = self.problem or f"disconnected: {reason}"


def _remembered(path: Path) -> set[str]:
    try:
        return {str(topic) for topic in json.loads(path.read_bytes())}
    except (OSError, ValueError, TypeError):
        return set()
