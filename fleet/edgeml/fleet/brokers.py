"""Which broker carries the nudges: one of our own, or one that is there.

own      Mosquitto as a child process when its binary is found (mosquitto.py), else amqtt inside this process (amqtt_broker.py)
outside  `mqtt://user:password@host:port`; its operator grants access (docs say which ACL)
none     devices poll over HTTP; everything works, later
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgeml.fleet.broker import Address, Broker, parse_address
from edgeml.fleet.config import Config
from edgeml.fleet.mosquitto import Mosquitto
from edgeml.wire.errors import ConfigError, EnvironmentProblem, MissingExtraError

_BINARY_PLACES: Final = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"  # where packages put it, outside a user's PATH


class Outside:
    """A broker that somebody else runs."""

    name = "outside"

    def __init__(self, address: Address) -> None:
        self.address = address

    def start(self, passwords: Mapping[str, str]) -> None:
        pass

    def admit(self, passwords: Mapping[str, str]) -> None:
        pass  # its operator enrols devices there

    def check(self) -> bool:
        return False

    def stop(self) -> None:
        pass


def choose(config: Config) -> Broker | None:
    """The broker for this configuration, not started; `None` for polling alone.

    Raises:
        ConfigError: an address that cannot be used.
        EnvironmentProblem: Mosquitto was asked for and is not installed.
    """
    wanted = config.broker
    if wanted == "none":
        return None
    if wanted is not None and "://" in wanted:
        return Outside(parse_address(wanted))
    if wanted not in {None, "mosquitto", "amqtt"}:
        raise ConfigError(f"broker {wanted!r}", expected="mqtt://user:password@host:port, mosquitto, amqtt or none")
    binary = find_mosquitto()
    if wanted != "amqtt" and binary is not None:
        return Mosquitto(binary, config.places.broker, config.mqtt_host, config.mqtt_port, config.tenant)
    if wanted == "mosquitto":
        raise EnvironmentProblem("the mosquitto program is not installed", hint="install your system's package 'mosquitto'")
    try:
        from edgeml.fleet.amqtt_broker import Amqtt
    except ModuleNotFoundError as error:
        raise MissingExtraError("amqtt", "fleet") from error
    return Amqtt(config.mqtt_port, config.tenant)


def find_mosquitto() -> Path | None:
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:{_BINARY_PLACES}")
    return Path(found) if found else None
