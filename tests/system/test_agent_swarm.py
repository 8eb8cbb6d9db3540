"""A simulated fleet over a real broker and real HTTP: every device with its own state, one engine for all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgeml.simulation.settings import Settings
from edgeml.simulation.swarm import Swarm
from edgeml.wire.messages import Target, encode, plain, topic
from tests.system.brokers import BROKERS, free_port
from tests.system.standin import TOKEN, Service
from tests.unit.bundles import make_bundle, samples

DEVICES = 30


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as started:
        lines = [json.dumps({"id": f"d{i}", "token": TOKEN}) for i in range(DEVICES)]
        (tmp_path / "devices.jsonl").write_text("\n".join(lines))
        np.savez(tmp_path / "field.npz", x=samples(300))
        yield started


def settings(folder: Path, service: Service, broker: str | None) -> Settings:
    return Settings(
        service=service.url, devices="devices.jsonl", root="root.json", data="swarm", samples="field.npz", broker=broker,
        window_s=0.5, soak_s=0.5, health_s=0.2, backoff_s=0.2, poll_s=0.5, runs_per_s=5.0, folder=str(folder),
    )  # fmt: skip


def all_confirmed(service: Service, rev: int) -> None:
    def confirmed() -> int:
        return len({r["device"] for r in list(service.reports.values()) if r["rev"] == rev and r["state"] == "confirmed"})

    with service.heard:
        assert service.heard.wait_for(lambda: confirmed() == DEVICES, 60), f"{confirmed()} of {DEVICES}"


def roll_back_and_forth(service: Service, folder: Path, tell: Callable[[Target], None]) -> None:
    first = service.publish(make_bundle(folder, version="1.0.0"))
    second = service.publish(make_bundle(folder, version="1.1.0", bias=0.5))
    for target in (first, second):
        tell(target)
        all_confirmed(service, service.desired.rev)
    moved = service.target_bytes
    assert moved == sum(DEVICES * (folder / f"toy-{version}.edgeml").stat().st_size for version in ("1.0.0", "1.1.0"))
    tell(first)
    all_confirmed(service, service.desired.rev)
    assert service.target_bytes == moved


def telling(service: Service, client: mqtt.Client | None) -> Callable[[Target], None]:
    """Puts a target into every device's desired state."""

    def tell(target: Target) -> None:
        service.want(target)
        for index in range(DEVICES if client else 0):
            assert client is not None
            client.publish(topic("default", f"d{index}", "desired"), encode(service.desired), qos=1, retain=True)

    return tell


@pytest.mark.slow
def test_without_a_broker_every_device_follows_by_polling(service: Service, tmp_path: Path) -> None:
    with Swarm(settings(tmp_path, service, None)) as swarm:
        roll_back_and_forth(service, tmp_path, telling(service, None))
        assert swarm.summary().versions == {"1.0.0": DEVICES}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BROKERS))
def test_over_a_broker_every_device_follows_and_goes_back_without_a_download(
    service: Service, tmp_path: Path, name: str
) -> None:
    with BROKERS[name](tmp_path, free_port()) as url:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        client.on_message = lambda _c, _u, m: service.hear(
            [{"kind": m.topic.rsplit("/", 1)[1], "body": json.loads(plain(bytes(m.payload)))}]
        )
        client.connect("127.0.0.1", int(url.rsplit(":", 1)[1]))
        client.subscribe([(topic("default", "+", "report"), 1), (topic("default", "+", "telemetry"), 1)])
        client.loop_start()
        with Swarm(settings(tmp_path, service, url)) as swarm:
            roll_back_and_forth(service, tmp_path, telling(service, client))
            summary = swarm.summary()
        client.disconnect()
        client.loop_stop()
    assert (summary.connected, summary.versions) == (DEVICES, {"1.0.0": DEVICES})
    assert {window["device"] for window in service.telemetry.values()} == {f"d{i}" for i in range(DEVICES)}
