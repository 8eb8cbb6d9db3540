"""What the service is told when it starts, and where it keeps what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_PORT: Final = 8350
DEFAULT_MQTT_PORT: Final = 18350  # not 1883: a distribution's own broker may hold that one
OPERATOR_KEY_VARIABLE: Final = "EDGEML_FLEET_KEY"
URL_VARIABLE: Final = "EDGEML_FLEET_URL"


@dataclass(frozen=True, slots=True)
class Places:
    """The files under the service's data folder."""

    data: Path

    @property
    def database(self) -> Path:
        return self.data / "fleet.db"

    @property
    def operator_key(self) -> Path:
        return self.data / "operator.key"

    @property
    def keys(self) -> Path:
        """Private signing keys: never inside `tuf`, which is served to anyone."""
        return self.data / "keys"

    @property
    def tuf(self) -> Path:
        return self.data / "tuf"

    @property
    def incoming(self) -> Path:
        """Uploads that are not checked yet; emptied at every start."""
        return self.data / "incoming"

    @property
    def broker(self) -> Path:
        return self.data / "broker"

    @property
    def samples(self) -> Path:
        """Inputs that devices were allowed to send."""
        return self.data / "samples"

    @property
    def address(self) -> Path:
        """Where the running service can be reached, as JSON; gone when it stopped in order."""
        return self.data / "service.json"

    @property
    def lock(self) -> Path:
        return self.data / "service.lock"


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one service.

    `broker` is `None` (own one: Mosquitto, else amqtt), `"mosquitto"`, `"amqtt"`, `"none"`, or the address of an outside one,
    `mqtt://user:password@host:port`. A port of 0 takes a free one.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    broker: str | None = None
    mqtt_host: str = "127.0.0.1"
    mqtt_port: int = DEFAULT_MQTT_PORT
    tick_s: float = 1.0
    tenant: str = "default"
    public_url: str | None = None  # what devices are told, if it is not http://host:port
    samples_bytes: int = 1024 * 1024 * 1024  # of inputs that devices sent; 0: none is kept
    samples_days: float = 90.0

    @property
    def places(self) -> Places:
        return Places(self.data)
