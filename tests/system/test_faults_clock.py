"""A clock in 1970 or 2099, one that jumps or falls back: the device answers, and ends where it should once time is right."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import urllib3

from edgeml.runtime.config import load_config
from edgeml.runtime.device import Device, Workers
from edgeml.simulation.shared import Models, SharedEngine
from edgeml.wire.messages import Target
from tests.system.standin import TOKEN, Service
from tests.system.test_faults_disk import SETTINGS
from tests.system.test_update_kill import Process, write_settings
from tests.unit.bundles import make_bundle, samples

DAWN, FAR = 0.0, 4_070_908_800.0  # 1970-01-01 and 2099-01-01
FAKETIME = next((path for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


class Clocked:
    """A device with an engine and a clock that the test sets; work is done where it is asked for."""

    def __init__(self, folder: Path, at: float) -> None:
        self.at = at
        self.engine = SharedEngine(Models(), [{"x": sample} for sample in samples(4)], now=lambda: self.at)
        workers = Workers(lambda job: job(), lambda job: job())
        pool = urllib3.PoolManager(retries=False)
        self.device = Device(
            load_config(folder / "agent.toml"), engine=self.engine, sensor=self.engine, workers=workers, pool=pool,
            now=lambda: self.at, jitter=lambda: 0.5,
        )  # fmt: skip
        self.device.start()

    def run(self, ticks: int, *, until: Callable[[], bool] = lambda: False) -> bool:
        """Half a second of its clock a tick, an answer each; gives whether `until` came true."""
        for _ in range(ticks):
            self.device.conversation._ask_at = self.device.conversation._post_at = 0.0
            self.device.tick()
            runs = self.engine.runs
            self.engine.run_once()
            assert self.engine.runs == runs + 1
            assert self.engine._serving["toy"].errors == 0
            self.at += 0.5
            if until():
                return True
        return False

    @property
    def stage(self) -> str | None:
        update = self.device.update("toy")
        return update.stage if update else None

    @property
    def code(self) -> str | None:
        update = self.device.update("toy")
        return update.code if update else None

    def close(self) -> None:
        self.device.close()
        assert self.device.defects == 0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as started:
        (tmp_path / "agent.toml").write_text(SETTINGS.format(url=started.url, token=TOKEN))
        yield started


@pytest.fixture
def target(service: Service, tmp_path: Path) -> Target:
    service.publish(make_bundle(tmp_path, version="1.0.0"))
    found = service.publish(make_bundle(tmp_path, version="1.1.0", bias=0.5))
    service.want(found)
    return found


def test_in_1970_it_updates_and_goes_on_when_the_time_comes(service: Service, target: Target, tmp_path: Path) -> None:
    made = Clocked(tmp_path, DAWN)
    assert made.run(100, until=lambda: made.stage == "soaking")
    made.at = time.time()
    assert made.run(20, until=lambda: made.stage == "confirmed")
    made.close()


def test_in_2099_nothing_is_installed_and_everything_is_answered(service: Service, target: Target, tmp_path: Path) -> None:
    made = Clocked(tmp_path, FAR)
    assert not made.run(100, until=lambda: made.stage == "soaking")
    assert (made.stage, made.code) == ("downloading", "metadata_expired")
    assert service.target_bytes == 0
    made.at = time.time()
    assert made.run(100, until=lambda: made.stage == "confirmed")
    made.close()


@pytest.mark.parametrize("stage", ["downloading", "soaking"])
def test_a_clock_that_falls_back_to_1970_does_not_freeze_an_update(
    service: Service, target: Target, tmp_path: Path, stage: str
) -> None:
    made = Clocked(tmp_path, time.time())
    if stage == "downloading":
        service.stop()
        made.device.desired(b'{"rev":1,"targets":[' + msgspec.json.encode(target) + b"]}")
    assert made.run(100, until=lambda: made.stage == stage)
    made.at = DAWN
    if stage == "downloading":
        service.start()
    assert made.run(100, until=lambda: made.stage == "confirmed")
    made.close()


def test_windows_are_told_while_the_clock_falls_and_jumps(service: Service, target: Target, tmp_path: Path) -> None:
    made = Clocked(tmp_path, time.time())
    for at in (DAWN, FAR, time.time()):
        made.at = at
        told = len(service.telemetry)
        made.run(10)
        assert len(service.telemetry) > told
    made.close()


def test_sessions_and_numbers_grow_over_restarts_in_1970(service: Service, target: Target, tmp_path: Path) -> None:
    numbers = []
    for at in (FAR, DAWN, time.time()):
        made = Clocked(tmp_path, at)
        numbers.append((made.device.conversation.session, made.device.spool.next_seq()))
        made.close()
    assert numbers == sorted(set(numbers))


@pytest.mark.slow
@pytest.mark.skipif(FAKETIME is None, reason="no libfaketime here: apt-get install faketime")
@pytest.mark.parametrize("moment", [DAWN + 86_400.0, FAR], ids=["1970", "2099"])
def test_a_real_process_lives_in_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: float) -> None:
    bundles = {version: make_bundle(tmp_path, version=version) for version in ("1.0.0", "1.1.0")}
    with Service(tmp_path) as service:
        service.publish(bundles["1.0.0"])
        rev = service.want(service.publish(bundles["1.1.0"]))
        config = write_settings(tmp_path, service, bundles["1.0.0"])
        monkeypatch.setenv("LD_PRELOAD", str(FAKETIME))
        monkeypatch.setenv("FAKETIME", f"{moment - time.time():+.0f}")
        with running(config) as process:
            monkeypatch.undo()
            assert process.line()["version"] == "1.0.0"
            if moment < FAR:
                service.wait_for(rev, "confirmed")
                return
            with service.heard:
                expired = lambda: any(r.get("code") == "metadata_expired" for r in service.reports.values())  # noqa: E731
                assert service.heard.wait_for(expired, 30)
        with running(config) as process:  # in our time
            assert process.line()["version"] == "1.0.0"
            service.wait_for(rev, "confirmed")


@contextlib.contextmanager
def running(config: Path) -> Iterator[Process]:
    """The application; killed at the end."""
    process = Process(config)
    try:
        yield process
    finally:
        process.kill()
