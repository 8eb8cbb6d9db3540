"""A device's models in a Home Assistant, by its documented discovery, on a real broker and in both versions of MQTT."""

from __future__ import annotations

import getpass
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgeml.runtime.agent import Agent
from edgeml.runtime.home_assistant import Face, object_id
from tests.conftest import ROOT
from tests.system.brokers import free_port, mosquitto
from tests.system.fleet_clients import until
from tests.unit.bundles import make_bundle, samples

SETTINGS = """
[device]
id = "gate.7"
data = "data"
[home_assistant]
enabled = {enabled}
url = "{url}"
protocol = "{protocol}"
every_s = 0.2
[models.toy]
bundle = "toy-1.0.0.edgeml"
"""
BASE = "edgeml/v1/default/d/gate.7/ha"


class Home:
    """What a Home Assistant knows: the newest retained or live message of each topic; empty ones take it back."""

    def __init__(self, url: str) -> None:
        self.topics: dict[str, bytes] = {}
        self.states: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self._client.subscribe([("homeassistant/#", 1), ("edgeml/#", 1)])
        self._client.loop_start()

    @property
    def sensors(self) -> dict[str, dict[str, Any]]:
        """Discovered sensors by what they show."""
        found = {t: json.loads(p) for t, p in self.topics.items() if t.startswith("homeassistant/")}
        return {topic.split("/")[3].rpartition("toy_")[2]: config for topic, config in found.items()}

    def value(self, what: str) -> str:
        """What the sensor shows, by its own template."""
        config = self.sensors[what]
        import jinja2

        environment = jinja2.Environment(autoescape=False)
        return environment.from_string(config["value_template"]).render(
            value_json=json.loads(self.topics[config["state_topic"]])
        )

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 15), f"no {what}: {self.topics}"

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.topics.pop(message.topic, None)
            if message.payload:
                self.topics[message.topic] = bytes(message.payload)
            if message.topic == f"{BASE}/toy" and message.payload:
                self.states.append(json.loads(message.payload))
            self._changed.notify_all()


@contextmanager
def house(folder: Path, more: str = "") -> Iterator[tuple[str, Home]]:
    with mosquitto(folder, free_port(), more) as url:
        home = Home(url)
        yield url, home
        home.close()


def settings(folder: Path, url: str, *, enabled: bool = True, protocol: str = "3.1.1") -> Path:
    path = folder / "agent.toml"
    path.write_text(SETTINGS.format(url=url, enabled=str(enabled).lower(), protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_a_model_shows_itself_with_answer_score_time_and_version(tmp_path: Path, protocol: str) -> None:
    make_bundle(tmp_path)
    with house(tmp_path) as (url, home), Agent(settings(tmp_path, url, protocol=protocol)) as agent:
        result = agent.model("toy").run({"x": samples(1)[0]})
        home.wait(lambda: f"{BASE}/toy" in home.topics and len(home.sensors) == 4, "model")
        assert result.score is not None
        assert home.value("label") == result.label
        assert float(home.value("score")) == pytest.approx(100 * result.score, abs=0.01)
        assert float(home.value("latency")) == pytest.approx(1e3 * result.latency_s, abs=0.001)
        assert home.value("version") == "1.0.0"
        assert home.topics[f"{BASE}/available"] == b"online"


def test_discovery_messages_are_as_home_assistant_documents_them(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with house(tmp_path) as (url, home), Agent(settings(tmp_path, url)):
        home.wait(lambda: len(home.sensors) == 4, "model")
    topics = [topic for topic in home.topics if topic.startswith("homeassistant/")]
    assert all(re.fullmatch(r"homeassistant/sensor/[a-zA-Z0-9_-]+/[a-zA-Z0-9_-]+/config", topic) for topic in topics)
    for topic in topics:
        config = json.loads(home.topics[topic])
        assert config["unique_id"] == topic.split("/")[3]
        assert config["availability_topic"] == f"{BASE}/available"
        assert config["device"]["identifiers"] == [f"edgeml_{object_id('gate.7')}"]
        assert config["origin"]["name"] == "edgeml"
    assert home.sensors["score"]["unit_of_measurement"] == "%"
    assert home.sensors["latency"]["device_class"] == "duration"


@pytest.mark.slow
def test_the_access_rules_of_the_documents_let_a_device_show_itself_and_nobody_else(tmp_path: Path) -> None:
    lines = re.findall(r"^pattern .*$", (ROOT / "docs" / "devices.md").read_text(), flags=re.MULTILINE)
    assert len(lines) == 2
    rules = "\n".join(["topic read #", *lines]).replace("TENANT", "default")
    (tmp_path / "acl").write_text(rules + "\n")
    (tmp_path / "acl").chmod(0o644)
    make_bundle(tmp_path)
    more = f"acl_file {tmp_path / 'acl'}\nuser {getpass.getuser()}\n"
    with house(tmp_path, more) as (url, home):
        path = settings(tmp_path, url)
        path.write_text(path.read_text().replace("gate.7", "gate-7").replace("enabled", 'user = "somebody"\nenabled'))
        with Agent(path) as agent:
            until(lambda: agent._home is not None and agent._home.problem is None, "a connection")
            until((tmp_path / "data" / "home-assistant.json").exists, "an attempt")
        assert home.topics == {}
        path.write_text(path.read_text().replace("somebody", "gate-7"))
        with Agent(path):
            home.wait(lambda: len(home.sensors) == 4, "model of the device")
    assert all(topic.split("/")[2] == "gate-7" for topic in home.topics if topic.startswith("homeassistant/"))


@pytest.mark.slow
def test_a_device_that_leaves_is_shown_as_away_and_its_sensors_stay(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with house(tmp_path) as (url, home):
        with Agent(settings(tmp_path, url)):
            home.wait(lambda: len(home.sensors) == 4 and f"{BASE}/available" in home.topics, "model")
        home.wait(lambda: home.topics[f"{BASE}/available"] == b"offline", "good-bye")
        assert len(home.sensors) == 4


@pytest.mark.slow
def test_a_connection_that_breaks_is_told_by_the_last_will(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with house(tmp_path) as (url, home), Agent(settings(tmp_path, url)) as agent:
        home.wait(lambda: home.topics.get(f"{BASE}/available") == b"online", "model")
        assert agent._home is not None
        assert agent._home._client is not None
        connection = agent._home._client.socket()
        assert isinstance(connection, socket.socket)
        connection.shutdown(socket.SHUT_RDWR)
        home.wait(lambda: home.topics[f"{BASE}/available"] == b"offline", "last will")
        home.wait(lambda: home.topics[f"{BASE}/available"] == b"online", "return")


@pytest.mark.slow
def test_news_come_no_more_often_than_allowed_and_the_newest_gets_through(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with house(tmp_path) as (url, home), Agent(settings(tmp_path, url)) as agent:
        home.wait(lambda: len(home.sensors) == 4, "model")
        answers = [agent.model("toy").run({"x": x}) for x in samples(300)]
        last = answers[-1].score
        home.wait(lambda: bool(home.states) and home.states[-1]["score"] == last, "newest answer")
    assert len(home.states) < 20


def test_disabled_it_takes_back_all_that_it_ever_showed(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with house(tmp_path) as (url, home):
        with Agent(settings(tmp_path, url)) as agent:
            agent.model("toy").run({"x": samples(1)[0]})
            home.wait(lambda: f"{BASE}/toy" in home.topics, "answer")
        with Agent(settings(tmp_path, url, enabled=False)) as agent:
            home.wait(lambda: home.topics == {}, "silence")
            until(lambda: not (tmp_path / "data" / "home-assistant.json").exists(), "the end")
            assert agent.model("toy").run({"x": samples(1)[0]}).version == "1.0.0"


@pytest.mark.slow
def test_a_model_that_is_gone_is_taken_back_and_the_others_stay(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    make_bundle(tmp_path, name="other", task="regress", labels=())
    with house(tmp_path) as (url, home):
        path = settings(tmp_path, url)
        only_toy = path.read_text()
        path.write_text(only_toy + '[models.other]\nbundle = "other-1.0.0.edgeml"\n')
        with Agent(path):
            home.wait(lambda: any("other" in topic for topic in home.topics), "second model")
        path.write_text(only_toy)
        (tmp_path / "data" / "models" / "other" / "update.json").unlink()
        with Agent(path):
            home.wait(lambda: not any("other" in topic for topic in home.topics), "second model's end")
            assert len(home.sensors) == 4


@pytest.mark.slow
def test_a_broker_that_is_not_there_holds_up_nothing(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with Agent(settings(tmp_path, f"mqtt://127.0.0.1:{free_port()}")) as agent:
        assert agent.model("toy").run({"x": samples(1)[0]}).version == "1.0.0"


def test_different_names_stay_different_and_plain_ones_stay_as_they_are() -> None:
    assert object_id("gate-7_a") == "gate-7_a"
    assert object_id("gate.7") != object_id("gate_7")
    face = Face("gate.7", "default", "homeassistant", "0.1")
    assert face.availability == f"{BASE}/available"
