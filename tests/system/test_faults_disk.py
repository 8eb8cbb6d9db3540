"""A kill, a full disk, a read-only disk or a torn file at every step that a device persists: it converges, and it answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.agent_toml import GATE_7
from tests.system.fault_device import ERRORS, FAULTS
from tests.system.standin import TOKEN, Service
from tests.unit.bundles import make_bundle

ROOT = Path(__file__).resolve().parents[2]
LEAST_POINTS = 40
EVERY_DAY = 4  # points of the table that the everyday tests look at

SETTINGS = f"""{GATE_7}poll_s = 0.2
[update]
soak_s = 3
health_s = 1
backoff_s = 1
backoff_cap_s = 2
shadow_s = 4
shadow_calls = 3
least_agreement = 0.0
most_latency_ratio = 1000.0
[telemetry]
window_s = 2
[models.toy]
bundle = "toy-1.0.0.edgeml"
"""


class Table:
    """The process that forks a device per fault, and the points of an update that goes well."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._service = Service(folder)
        self._service.start()
        self._service.chunk_bytes = 1024
        self._service.publish(make_bundle(folder, version="1.0.0"))
        self._service.want(self._service.publish(make_bundle(folder, version="1.1.0", bias=0.5)))
        command = [sys.executable, "-m", "tests.system.fault_device"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        calm = self.run(None, 0)["second"]
        assert (calm["stage"], calm["version"], calm["defects"]) == ("confirmed", "1.1.0", 0), calm
        assert {"shadow", "soaking"} <= {report["state"] for report in self._service.reports.values()}
        self.steps: list[str] = calm["steps"]
        assert any(".parts" in step for step in self.steps)  # the bundle was built from blobs
        assert {"replace forget.json", "replace samples/sent.json", "replace samples/second.sample"} <= set(self.steps)
        assert (self._service.samples, len(self._service.forgotten)) == ([b"first"], 1)

    def points(self) -> list[int]:
        """Numbers of the steps, each kind of step at its first, second and last time."""
        where: dict[str, list[int]] = {}
        for number, name in enumerate(self.steps, start=1):
            where.setdefault(name, []).append(number)
        return sorted({number for numbers in where.values() for number in (*numbers[:2], numbers[-1])})

    def run(self, fault: str | None, at: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        folder = self._folder / f"device-{self._number}"
        self._number += 1
        folder.mkdir()
        (folder / "agent.toml").write_text(SETTINGS.format(url=self._service.url, token=TOKEN))
        for name in ("root.json", "toy-1.0.0.edgeml"):
            shutil.copy(self._folder / name, folder)
        self._process.stdin.write(json.dumps({"folder": str(folder), "fault": fault, "at": at}) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        shutil.rmtree(folder)
        return found

    def check(self, fault: str, at: int) -> str | None:
        """What went wrong at this point, if anything did."""
        outcome = self.run(fault, at)
        second = outcome["second"]
        lives = [life for life in (outcome["first"], second) if life is not None]
        where = f"{fault} at step {at}, {self.steps[at - 1]!r}"
        if any("raised" in life for life in lives):
            return f"{where}: {[life.get('raised') and life for life in lives]}"
        if second is None or (second["stage"], second["version"]) != ("confirmed", "1.1.0"):
            return f"{where}: ended at {second and {**second, 'steps': len(second['steps'])}}"
        if not second["forgotten"]:
            return f"{where}: what was to be forgotten is still here"
        if not all(life["answered"] for life in lives):
            return f"{where}: a call was not answered"
        if any(life["defects"] for life in lives):
            return f"{where}: an error that nothing foresaw"
        return None

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._service.stop()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    made = Table(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sample_of_the_steps_with_this_fault_converges(table: Table, fault: str) -> None:
    points = table.points()
    some = points[FAULTS.index(fault) :: len(points) // EVERY_DAY]
    assert [problem for at in some if (problem := table.check(fault, at)) is not None] == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_persisted_step_with_this_fault_converges(table: Table, fault: str) -> None:
    points = table.points()
    assert len({table.steps[at - 1] for at in points}) >= LEAST_POINTS // 2
    assert len(points) >= LEAST_POINTS
    if fault in ERRORS:
        points = points[1:]  # the first is the data folder itself: without it, the start is refused with a clear error
    assert [problem for at in points if (problem := table.check(fault, at)) is not None] == []
