"""`agent.toml`: what it may say, and how it is told that it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeml.runtime.config import broker_address, load_config
from edgeml.wire.errors import ConfigError

GOOD = """
[device]
id = "gate-7"
data = "state"
[device.tags]
site = "north"
[service]
url = "https://fleet.example"
token = "t"
root = "root.json"
[broker]
url = "mqtts://fleet.example"
[models.kws]
bundle = "kws-1.0.0.edgeml"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.data == tmp_path / "state"
    assert config.path("root.json") == tmp_path / "root.json"
    assert config.device.tags == {"site": "north"}
    assert config.models["kws"].bundle == "kws-1.0.0.edgeml"


def test_a_device_alone_needs_only_a_name_and_a_folder(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, '[device]\nid = "d"\ndata = "x"\n'))
    assert config.service is None
    assert config.update.soak_s == 300.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[broker]", "[brocker]"), "'brocker'; did you mean 'broker'"),
        (("token =", "tokn ="), "'service.tokn'; did you mean 'token'"),
        (("bundle =", "bundel ="), "'models.kws.bundel'; did you mean 'bundle'"),
        (('url = "mqtts://fleet.example"', 'url = "tcp://x"'), "expected mqtt://host:port"),
        (('url = "https://fleet.example"', 'url = "fleet.example"'), "expected http://"),
        (("[models.kws]", '[models."../x"]'), "models"),
        (('id = "gate-7"', 'id = "a/b"'), "device.id"),
        (('id = "gate-7"', "id = 7"), "Expected `str`, got `int`"),
        (('id = "gate-7"', ""), "missing required field `id`"),
        (("[device]\n", "[device\n"), "is not TOML"),
        (("[models.kws]", "[update]\nsoak_s = -1\n[models.kws]"), "update.soak_s"),
    ],
    ids=["table", "key", "model's key", "broker", "service", "model's name", "id", "type", "missing", "not TOML", "range"],
)
def test_a_mistake_is_named_with_the_way_out(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    assert change[0] in GOOD
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD.replace(*change, 1)))
    assert says in str(caught.value)


def test_a_broker_without_a_service_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no \\[service\\]"):
        load_config(write(tmp_path, '[device]\nid = "d"\ndata = "x"\n[broker]\nurl = "mqtt://h"\n'))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent\.toml"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("url", "address"),
    [("mqtt://h", ("h", 1883, False)), ("mqtts://h", ("h", 8883, True)), ("mqtt://[::1]:7", ("::1", 7, False))],
)
def test_broker_addresses(url: str, address: tuple[str, int, bool]) -> None:
    assert broker_address(url) == address


@pytest.mark.parametrize("url", ["mqtt://", "http://h", "mqtt://h:port", "mqtt://h:99999", "h:1883"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError):
        broker_address(url)
