"""Which broker is chosen, how its address is read, and what its rules allow."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from edgeml.fleet.amqtt_broker import Rules
from edgeml.fleet.broker import Address, admits, parse_address, refuse_taken_port
from edgeml.fleet.brokers import Outside, choose, find_mosquitto
from edgeml.fleet.config import Config
from edgeml.fleet.devices import SERVICE_USER
from edgeml.fleet.mosquitto import Mosquitto
from edgeml.fleet.service import Fleet
from edgeml.wire.errors import ConfigError, EnvironmentProblem


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mqtt://host", Address("host", 1883)),
        ("mqtts://host", Address("host", 8883, tls=True)),
        ("mqtt://me:se%40cret@10.0.0.1:2000", Address("10.0.0.1", 2000, "me", "se@cret")),
        ("mqtt://[::1]:1884", Address("::1", 1884)),
    ],
)
def test_an_address_is_read(text: str, address: Address) -> None:
    assert parse_address(text) == address


def test_devices_are_told_an_address_without_the_services_password() -> None:
    assert parse_address("mqtts://me:secret@host").url == "mqtts://host:8883"


@pytest.mark.parametrize("text", ["http://host", "mqtt://", "mqtt://host:port", "mqtt://me:secret@host:99999"])
def test_a_wrong_address_is_refused_without_repeating_the_password(text: str) -> None:
    with pytest.raises(ConfigError, match="broker's address") as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)


def test_an_unknown_kind_of_broker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mosquitto, amqtt or none"):
        choose(Config(tmp_path, broker="rabbit"))


def test_none_means_polling_and_an_address_means_joining(tmp_path: Path) -> None:
    assert choose(Config(tmp_path, broker="none")) is None
    assert isinstance(choose(Config(tmp_path, broker="mqtt://host")), Outside)


def test_without_the_binary_amqtt_is_taken_unless_mosquitto_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeml.fleet.brokers.find_mosquitto", lambda: None)
    chosen = choose(Config(tmp_path))
    assert chosen is not None
    assert chosen.name == "amqtt"
    with pytest.raises(EnvironmentProblem, match="package 'mosquitto'"):
        choose(Config(tmp_path, broker="mosquitto"))


def test_nobody_answering_is_not_admission() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", listener.getsockname()[1])
    assert not admits(address, "me", "secret")


def test_a_taken_port_names_the_option() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(EnvironmentProblem, match="--mqtt-port"):
            refuse_taken_port("127.0.0.1", listener.getsockname()[1])


def test_a_broker_that_is_none_is_refused_before_keys_are_made(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="broker 'rabbit': expected mqtt://"),
        Fleet(Config(tmp_path / "fleet", broker="rabbit")),
    ):
        pass
    assert not (tmp_path / "fleet").exists()


@pytest.mark.skipif(find_mosquitto() is None, reason="no mosquitto here")
def test_a_mosquitto_that_cannot_start_says_why(tmp_path: Path) -> None:
    binary = find_mosquitto()
    assert binary is not None
    broken = Mosquitto(binary, tmp_path / "broker", "127.0.0.1", 0, "default")
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "mosquitto.db").write_bytes(b"not its database")
    with pytest.raises(EnvironmentProblem, match="mosquitto does not serve: "):
        broken.start({})


TOPIC = "edgeml/v1/default/d/cam-1/"


@pytest.mark.parametrize(
    ("topic", "publish", "read"),
    [
        (f"{TOPIC}report", True, False),
        (f"{TOPIC}telemetry", True, False),
        (f"{TOPIC}state", True, False),
        (f"{TOPIC}desired", False, True),
        (f"{TOPIC}other", False, False),
        ("edgeml/v1/default/d/cam-2/report", False, False),
        ("edgeml/v1/default/d/cam-2/desired", False, False),
        ("edgeml/v1/other/d/cam-1/report", False, False),
        ("edgeml/v1/default/d/+/desired", False, False),
        ("edgeml/v1/default/d/cam-1/#", False, False),
        ("#", False, False),
        ("$SYS/broker/uptime", False, False),
        ("", False, False),
    ],
)
def test_a_device_may_do_what_is_its_own_and_the_service_everything(topic: str, publish: bool, read: bool) -> None:
    rules = Rules("default")
    assert (rules.may_publish("cam-1", topic), rules.may_read("cam-1", topic)) == (publish, read)
    assert rules.may_publish(SERVICE_USER, topic)
    assert rules.may_read(SERVICE_USER, topic)
