"""SIGKILL at random moments of an update, on a real process with real files, real signed metadata and real HTTP."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.system.agent_process import SAMPLE
from tests.system.agent_toml import GATE_7
from tests.system.standin import TOKEN, Service
from tests.unit.bundles import logits, make_bundle

SEED = int(os.environ.get("EDGEML_TEST_SEED", "20261123"))
KILLS = 10
AN_UPDATE_S = 4.0  # about what one takes here: a slow download, a self-test in a child, a short shadow, a short soak

SETTINGS = f"""{GATE_7}poll_s = 0.2
[update]
soak_s = 0.6
health_s = 0.2
backoff_s = 0.2
shadow_s = 0.6
shadow_calls = 20
least_agreement = 0.0
most_latency_ratio = 1000.0
[models.toy]
bundle = "{{bundle}}"
"""


class Process:
    """The application under test."""

    def __init__(self, config: Path) -> None:
        script = Path(__file__).with_name("agent_process.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(config)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        assert text, f"the process ended with {self._process.wait()}"
        found: dict[str, Any] = json.loads(text)
        return found

    def until(self, version: str) -> None:
        while self.line()["version"] != version:
            pass

    def kill(self) -> None:
        """The whole process group, as a power cut would take it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def write_settings(folder: Path, service: Service, bundle: Path) -> Path:
    path = folder / "agent.toml"
    path.write_text(SETTINGS.format(url=service.url, token=TOKEN, bundle=bundle))
    return path


def expect_answer(line: dict[str, Any], biases: dict[str, float]) -> None:
    """The answer is the one that its version gives, by the formula."""
    expected = logits(SAMPLE, biases[line["version"]])
    np.testing.assert_allclose(line["logits"], expected, atol=1e-5)


@pytest.mark.slow
def test_killed_at_ten_random_moments_of_an_update_it_converges_each_time(tmp_path: Path) -> None:
    luck = random.Random(SEED)
    print(f"seed {SEED}")
    biases = {f"1.{i}.0": 0.5 * i for i in range(KILLS + 1)}
    bundles = {version: make_bundle(tmp_path, version=version, bias=bias) for version, bias in biases.items()}
    with Service(tmp_path) as service:
        service.chunk_bytes, service.chunk_s = 512, 0.08
        targets = {version: service.publish(bundle) for version, bundle in bundles.items()}
        config = write_settings(tmp_path, service, bundles["1.0.0"])
        before = "1.0.0"
        for version in list(biases)[1:]:
            process = Process(config)
            expect_answer(process.line(), biases)
            rev = service.want(targets[version])
            with pytest.raises(subprocess.TimeoutExpired):
                process._process.wait(luck.random() * AN_UPDATE_S)
            process.kill()
            process = Process(config)
            first = process.line()
            expect_answer(first, biases)
            assert first["version"] in {before, version}
            service.wait_for(rev, "confirmed")
            process.kill()
            process = Process(config)
            answer = process.line()
            process.kill()
            assert answer["version"] == version
            assert "rolled_back" not in service.states(rev)
            before = version


@pytest.mark.slow
def test_killed_before_a_report_was_sent_it_reports_after_the_restart(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path, version="1.0.0"), make_bundle(tmp_path, version="1.1.0", bias=0.5)
    with Service(tmp_path) as service:
        service.publish(first)
        target = service.publish(second)
        config = write_settings(tmp_path, service, first)
        process = Process(config)
        rev = service.want(target)
        process.until("1.1.0")
        process.kill()
        service.reports.clear()
        process = Process(config)
        service.wait_for(rev, "confirmed")
        process.kill()


@pytest.mark.slow
def test_no_call_fails_or_waits_while_the_service_is_down(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path, version="1.0.0"), make_bundle(tmp_path, version="1.1.0", bias=0.5)
    service = Service(tmp_path)
    service.start()
    target = service.publish(second)
    config = write_settings(tmp_path, service, first)
    process = Process(config)
    assert process.line()["version"] == "1.0.0"
    service.stop()
    with pytest.raises(subprocess.TimeoutExpired):
        process._process.wait(2.0)  # it goes on without the service
    rev = service.want(target)
    service.start()
    line = process.line()
    service.wait_for(rev, "confirmed")
    service.stop()
    process.kill()
    assert line["version"] == "1.1.0"
    assert line["errors"] == 0
    assert line["slowest_s"] < 0.25  # two shared cores; waiting for a dead service would be seconds
