"""SIGKILL for the agent and for the service at random moments of the same rollouts; then each alone, and the broker, away.

One real agent process and five simulated devices against `edgeml fleet serve` and the broker it owns. The seed is printed;
EDGEML_TEST_SEED gives the same moments again.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.runtime.config import load_config
from edgeml.simulation.settings import Settings
from edgeml.simulation.swarm import Swarm
from tests.system.agent_toml import GATE_7
from tests.system.brokers import free_port, mosquitto
from tests.system.fleet_clients import until
from tests.system.fleet_process import ServiceProcess
from tests.system.test_update_kill import Process, expect_answer
from tests.unit.bundles import make_bundle, samples

SEED = int(os.environ.get("EDGEML_TEST_SEED", "20261123"))
SIMULATED = 5
AN_UPDATE_S = 3.0  # about what one takes here: told, downloaded, tested in a child, soaked
NOTICED_S = 0.25  # on two shared cores; a call that waited for a dead service would take seconds

SETTINGS = f"""{GATE_7}poll_s = 0.5
poll_after_s = 1.0
[broker]
url = "{{broker}}"
backoff_s = 0.2
backoff_cap_s = 0.5
[update]
soak_s = 0.6
health_s = 0.2
backoff_s = 0.2
backoff_cap_s = 0.5
[models.toy]
bundle = "{{bundle}}"
"""


@dataclass
class Fleet:
    """A service with published versions, the settings of one real device, and a file of simulated ones."""

    service: ServiceProcess
    folder: Path
    config: Path
    biases: dict[str, float]

    def roll_out(self, version: str) -> str:
        """Offer it to everyone; ends what was offered before. Gives the rollout's id."""
        with self.service.client() as client:
            for old in client.get("/v1/rollouts"):
                if old["phase"] == "running":
                    client.post(f"/v1/rollouts/{old['id']}/abort")
            asked = {"model": "toy", "version": version, "canary": 1.0, "waves": [], "hold_back": 0.0, "soak_s": 3600.0}
            answer: dict[str, Any] = client.post("/v1/rollouts", {**asked, "guards": [], "ceiling": 1.0})
        return str(answer["id"])

    def all_confirmed(self, rollout: str, devices: int = 1 + SIMULATED) -> bool:
        """Whether the service knows that every device ended there."""
        with self.service.client() as client:
            positions: dict[str, int] = client.get(f"/v1/rollouts/{rollout}")["positions"]
        return positions == {"confirmed": devices}

    def swarm(self, broker: str) -> Swarm:
        return Swarm(
            Settings(
                devices="devices.jsonl", root="root.json", data="swarm", samples="field.npz", folder=str(self.folder),
                broker=broker, window_s=1.0, soak_s=0.6, health_s=0.2, backoff_s=0.2, poll_s=0.5, poll_after_s=1.0, threads=2,
            )
        )  # fmt: skip


def make_fleet(service: ServiceProcess, folder: Path, versions: int, broker: str) -> Fleet:
    biases = {f"1.{number}.0": 0.5 * number for number in range(versions)}
    bundles = {version: make_bundle(folder, version=version, bias=bias) for version, bias in biases.items()}
    with service.client() as client:
        for bundle in bundles.values():
            client.publish(bundle)
    for arguments in (
        ["gate-7", "-o", str(folder / "written.toml")],
        ["--bulk", str(SIMULATED), "-o", str(folder / "devices.jsonl")],
    ):
        added = service.cli("devices", "add", *arguments)
        assert added.returncode == 0, added.stderr
    written = load_config(folder / "written.toml").service
    assert written is not None
    config = folder / "agent.toml"
    config.write_text(SETTINGS.format(url=service.url, token=written.token, broker=broker, bundle=bundles["1.0.0"]))
    np.savez(folder / "field.npz", x=samples(100))
    return Fleet(service, folder, config, biases)


@pytest.fixture
def run_agent() -> Iterator[Callable[[Path], Process]]:
    """Starts the application; ends what a failed test leaves running."""
    started: list[Process] = []

    def start(config: Path) -> Process:
        started.append(Process(config))
        return started[-1]

    yield start
    for process in started:
        if process._process.poll() is None:
            process.kill()


def let_pass(process: Process, seconds: float) -> None:
    """Time, in which the application must not end."""
    with pytest.raises(subprocess.TimeoutExpired):
        process._process.wait(seconds)


@pytest.mark.slow
@pytest.mark.parametrize(("broker", "agent_kills", "service_kills"), [("mosquitto", 10, 5), ("amqtt", 3, 1)])
def test_agent_and_service_killed_at_random_moments_of_rollouts_end_where_they_should(
    tmp_path: Path, run_agent: Callable[[Path], Process], broker: str, agent_kills: int, service_kills: int
) -> None:
    luck = random.Random(SEED)
    print(f"seed {SEED}")
    of_service = set(luck.sample(range(agent_kills), service_kills))
    with ServiceProcess(tmp_path, broker) as service:
        service.start()
        fleet = make_fleet(service, tmp_path, agent_kills + 1, service.mqtt.url)
        with fleet.swarm(service.mqtt.url) as swarm:
            process = run_agent(fleet.config)
            expect_answer(process.line(), fleet.biases)
            for number in range(agent_kills):
                before, version = f"1.{number}.0", f"1.{number + 1}.0"
                rollout = fleet.roll_out(version)
                moments: list[tuple[float, Callable[[], None]]] = [(luck.random() * AN_UPDATE_S, process.kill)]
                if number in of_service:
                    moments.append((luck.random() * AN_UPDATE_S, service.kill))
                passed = 0.0
                for at, kill in sorted(moments, key=lambda moment: moment[0]):
                    threading.Event().wait(at - passed)
                    passed = at
                    kill()
                process = run_agent(fleet.config)
                first = process.line()  # the service may still be down: what is on the disk must do
                expect_answer(first, fleet.biases)
                assert first["version"] in {before, version}, f"kill {number}"
                if number in of_service:
                    service.start()
                until(
                    functools.partial(fleet.all_confirmed, rollout),
                    f"{version} everywhere (kill {number})",
                    40,
                )
                assert swarm.summary().versions == {version: SIMULATED}
            process.kill()
            process = run_agent(fleet.config)
            assert process.line()["version"] == f"1.{agent_kills}.0"
            process.kill()


@pytest.mark.slow
def test_no_call_fails_or_waits_while_only_the_broker_is_down_and_updates_still_come(
    tmp_path: Path, run_agent: Callable[[Path], Process]
) -> None:
    port = free_port()
    with ServiceProcess(tmp_path, f"mqtt://127.0.0.1:{port}") as service:
        with mosquitto(tmp_path, port) as url:
            service.start()
            fleet = make_fleet(service, tmp_path, 3, url)
            process = run_agent(fleet.config)
            assert process.line()["version"] == "1.0.0"
            until(lambda: is_connected(tmp_path), "a connection")
        rollout = fleet.roll_out("1.1.0")  # the broker is gone: the agent must find this out by asking
        line = process.line()
        until(functools.partial(fleet.all_confirmed, rollout, 1), "reports without a broker", 20)
        assert (line["version"], line["errors"]) == ("1.1.0", 0)
        assert line["slowest_s"] < NOTICED_S
        assert not is_connected(tmp_path)
        with mosquitto(tmp_path, port):
            until(lambda: is_connected(tmp_path), "the connection again", 20)
            fleet.roll_out("1.2.0")
            line = process.line()
        process.kill()
        assert (line["version"], line["errors"]) == ("1.2.0", 0)
        assert line["slowest_s"] < NOTICED_S


@pytest.mark.slow
def test_no_call_fails_or_waits_while_broker_or_service_hang_without_closing_a_connection(
    tmp_path: Path, run_agent: Callable[[Path], Process]
) -> None:
    with ServiceProcess(tmp_path, "mosquitto") as service:
        service.start()
        fleet = make_fleet(service, tmp_path, 2, service.mqtt.url)
        process = run_agent(fleet.config)
        assert process.line()["version"] == "1.0.0"
        until(lambda: is_connected(tmp_path), "a connection")
        assert service.process is not None
        broker = int((service.data / "broker" / "mosquitto.pid").read_text())
        for hung in (broker, service.process.pid):
            os.kill(hung, signal.SIGSTOP)
            let_pass(process, 2.0)
            os.kill(hung, signal.SIGCONT)
        fleet.roll_out("1.1.0")
        line = process.line()
        process.kill()
        assert (line["version"], line["errors"]) == ("1.1.0", 0)
        assert line["slowest_s"] < NOTICED_S


def is_connected(folder: Path) -> bool:
    """Whether the agent says that its link is up."""
    try:
        return str(json.loads((folder / "data" / "status.json").read_bytes())["link"]).startswith("connected")
    except OSError:
        return False
