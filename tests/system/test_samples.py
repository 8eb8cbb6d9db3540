"""Opt-in samples and delete-my-data, from a device's settings to the operator's file: real agent, real service."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime.agent import Agent
from edgeml.runtime.config import load_config
from tests.system.agent_toml import GATE_7
from tests.system.fleet_clients import until
from tests.system.fleet_process import ServiceProcess
from tests.unit.bundles import make_bundle, samples

SETTINGS = f"""{GATE_7}poll_s = 0.5
[telemetry]
window_s = 0.5
[log]
to = "answers.log"
share = 1.0
[models.toy]
bundle = "toy-1.0.0.edgeml"
[samples]
below = 0.6
redact = "edgeml_test_redaction:first_two"
"""
HOOK = """
def first_two(inputs):
    return None if inputs["x"][3] > 0 else {"x": inputs["x"][:2]}
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path, "none") as started:
        started.start()
        added = started.cli("devices", "add", "gate-7", "-o", str(tmp_path / "written.toml"))
        assert added.returncode == 0, added.stderr
        written = load_config(tmp_path / "written.toml").service
        assert written is not None
        make_bundle(tmp_path)
        (tmp_path / "edgeml_test_redaction.py").write_text(HOOK)
        (tmp_path / "agent.toml").write_text(SETTINGS.format(url=started.url, token=written.token))
        yield started


def agent_command(folder: Path, name: str) -> str:
    command = [sys.executable, "-m", "edgeml.cli", "agent", name, "--config", str(folder / "agent.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_the_hook_lets_out_comes_to_the_operator_and_is_gone_when_the_device_forgets(
    service: ServiceProcess, tmp_path: Path
) -> None:
    unsure: list[list[float]] = []
    assert "redacted by edgeml_test_redaction:first_two" in agent_command(tmp_path, "check")
    with Agent(tmp_path / "agent.toml") as agent:
        for x in samples(12):
            result = agent.model("toy").run({"x": x})
            if result.score is not None and result.score < 0.6 and x[3] <= 0:
                unsure.append(x[:2].tolist())
            assert agent._sampler is not None
            agent._sampler.drain()
        assert 1 <= len(unsure) < 12
        until(lambda: len(service.json("samples", "list")) == len(unsure), "samples at the service", 60)
        got = service.cli("samples", "get", "--model", "toy", "-o", str(tmp_path / "field.npz"))
        assert got.returncode == 0, got.stderr
        with np.load(tmp_path / "field.npz", allow_pickle=False) as file:
            assert sorted(file["x"].tolist()) == sorted(unsure)
        until(lambda: service.json("devices", "list")[0]["last_seen"] is not None, "telemetry at the service")
        assert "sent" in agent_command(tmp_path, "status")
        assert agent_command(tmp_path, "forget") == "erased here, and by the service\n"
        assert agent.model("toy").run({"x": samples(1)[0]}).version == "1.0.0"
    assert service.json("samples", "list") == []
    forgotten = [e for e in service.json("events") if e["kind"] == "forgotten"]
    assert [e["body"]["samples"] for e in forgotten] == [len(unsure)]
    for name in ("data/spool.sqlite", "answers.log"):
        assert not (tmp_path / name).exists() or (tmp_path / name).stat().st_size < 64 * 1024


@pytest.mark.slow
def test_a_device_that_is_offline_erases_at_once_and_is_forgotten_when_it_is_back(
    service: ServiceProcess, tmp_path: Path
) -> None:
    with Agent(tmp_path / "agent.toml") as agent:
        agent.model("toy").run({"x": samples(1)[0]})
        until(lambda: bool(service.json("devices", "list")[0]["last_seen"]), "the device")
        until(lambda: len(agent._device.spool) == 0, "an empty spool", 20)
    service.stop()
    said = agent_command(tmp_path, "forget")
    assert said.startswith("erased here; the service was not reached")
    assert not (tmp_path / "answers.log").exists()
    assert "before_seq" in json.loads((tmp_path / "data" / "forget.json").read_text())
    service.start()
    with Agent(tmp_path / "agent.toml"):
        until(lambda: not (tmp_path / "data" / "forget.json").exists(), "the service's word", 20)
    assert [e["subject"] for e in service.json("events") if e["kind"] == "forgotten"] == ["gate-7"]
