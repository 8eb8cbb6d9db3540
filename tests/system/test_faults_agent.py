"""Defects of our own: an error that nothing foresaw costs one job, is counted, and fails the update it was part of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeml.runtime.agent import Agent
from edgeml.runtime.host import Host
from edgeml.runtime.polling import Poller
from tests.system.standin import TOKEN, Service
from tests.system.test_agent import SETTINGS
from tests.unit.bundles import make_bundle, samples


class UnforeseenError(RuntimeError):
    """Nothing in the project raises or catches this one."""


def once(real: Any) -> Any:
    """Raises the first time, then is the real thing."""
    raised: list[bool] = []

    def call(*arguments: Any, **rest: Any) -> Any:
        if not raised:
            raised.append(True)
            raise UnforeseenError
        return real(*arguments, **rest)

    return call


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as started:
        (tmp_path / "agent.toml").write_text(SETTINGS.format(url=started.url, token=TOKEN))
        yield started


@pytest.mark.parametrize("owner", [(Host, "accepts"), (Host, "prepare")], ids=lambda owner: owner[1])
def test_a_defect_in_an_update_fails_it_with_internal_and_it_is_tried_again(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: tuple[type[Any], str]
) -> None:
    service.publish(make_bundle(tmp_path))
    target = service.publish(make_bundle(tmp_path, version="1.1.0", bias=0.5))
    monkeypatch.setattr(*owner, once(getattr(*owner)))
    with Agent(tmp_path / "agent.toml") as agent:
        rev = service.want(target)
        assert service.wait_for(rev, "failed")["code"] == "internal"
        assert agent.model("toy").run({"x": samples(1)[0]}).version in {"1.0.0", "1.1.0"}
        service.wait_for(rev, "confirmed")
        assert agent.status.defects == 1


def test_a_defect_while_asking_the_service_does_not_end_the_thread_that_asks(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.publish(make_bundle(tmp_path))
    target = service.publish(make_bundle(tmp_path, version="1.1.0", bias=0.5))
    monkeypatch.setattr(Poller, "ask", once(Poller.ask))
    with Agent(tmp_path / "agent.toml") as agent:
        service.wait_for(service.want(target), "confirmed")
        assert agent.status.defects == 1


def test_a_version_whose_health_cannot_be_looked_at_is_taken_back(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.publish(make_bundle(tmp_path))
    target = service.publish(make_bundle(tmp_path, version="1.1.0", bias=0.5))
    monkeypatch.setattr(Host, "vitals", once(Host.vitals))
    with Agent(tmp_path / "agent.toml") as agent:
        report = service.wait_for(service.want(target), "rolled_back")
        assert "internal" in report["detail"]
        assert agent.model("toy").version == "1.0.0"
