"""A new version beside the old one on live inputs, before it may answer: the agent as an application meets it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeml.runtime.agent import Agent, Handle
from tests.system.agent_toml import GATE_7
from tests.system.standin import TOKEN, Service
from tests.unit.bundles import make_bundle, samples

SETTINGS = f"""{GATE_7}poll_s = 0.1
[update]
soak_s = 0.2
health_s = 0.1
shadow_s = 20
shadow_calls = 40
shadow_cpu_share = 1.0
most_latency_ratio = 1000.0
[telemetry]
window_s = 0.3
[models.toy]
bundle = "toy-1.0.0.edgeml"
isolated = true
"""


@contextmanager
def calls(model: Handle) -> Iterator[list[str]]:
    """An application that asks all the time; gives the versions that answered, in order."""
    stop, versions = threading.Event(), [model.run({"x": samples(1)[0]}).version]

    def ask() -> None:
        for x in samples(5000):
            if stop.wait(0.002):
                return
            version = model.run({"x": x}).version
            if version != versions[-1]:
                versions.append(version)

    thread = threading.Thread(target=ask)
    thread.start()
    yield versions
    stop.set()
    thread.join()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as started:
        make_bundle(tmp_path)
        (tmp_path / "agent.toml").write_text(SETTINGS.format(url=started.url, token=TOKEN))
        yield started


def test_a_version_that_agrees_takes_over_after_the_calls_it_was_compared_on(service: Service, tmp_path: Path) -> None:
    target = service.publish(make_bundle(tmp_path, version="1.1.0", bias=0.001))
    with Agent(tmp_path / "agent.toml") as agent, calls(agent.model("toy")) as versions:
        rev = service.want(target)
        soaking = service.wait_for(rev, "soaking")
        service.wait_for(rev, "confirmed")
        compared = soaking["detail"].split()[2]
        with service.heard:
            assert service.heard.wait_for(lambda: any("shadow" in window for window in service.telemetry.values()), 10)
    assert int(compared) >= 40
    assert "answers as the old version's" in soaking["detail"]
    assert versions == ["1.0.0", "1.1.0"]
    assert service.states(rev) == ["downloading", "verified", "self_test", "shadow", "soaking", "confirmed"]


@pytest.mark.slow
def test_a_version_that_answers_otherwise_is_refused_before_it_ever_answers(service: Service, tmp_path: Path) -> None:
    target = service.publish(make_bundle(tmp_path, version="1.1.0", bias=5.0))
    with Agent(tmp_path / "agent.toml") as agent, calls(agent.model("toy")) as versions:
        report = service.wait_for(service.want(target), "rejected")
        [model] = agent.status.models
    assert report["code"] == "shadow"
    assert "fewer than 90.0% of the answers agree" in report["detail"]
    assert (model.stage, model.active_version) == ("rejected", "1.0.0")
    assert versions == ["1.0.0"]
