"""What stands in deploy/: the unit, the container file and the example settings, and what systemd hears from the agent."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeml.runtime.config import load_config
from edgeml.runtime.supervisor import Supervisor
from tests.unit.bundles import make_bundle

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy/edgeml-agent.service"
CONTAINERFILE = ROOT / "deploy/Containerfile"
MOST_EXPOSURE = "20"  # of 100, as `systemd-analyze security` counts; a unit without hardening has 96
WATCHDOG_S = 2.0

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is on this machine: systemd refuses one that starts nothing."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/edgeml/bin/edgeml", sys.executable))
    return copy


@needs_systemd
def test_systemd_takes_the_unit_without_a_word(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_systemd_finds_the_unit_well_shut_in(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_unit_waits_for_ready_and_lives_by_the_watchdog() -> None:
    settings = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if re.match(r"[A-Z]\w+=", line))
    assert (settings["Type"], settings["Restart"], settings["ProtectSystem"]) == ("notify", "always", "strict")
    assert int(settings["WatchdogSec"]) > 0
    assert "edgeml agent run --config /etc/edgeml/agent.toml" in settings["ExecStart"]
    assert settings["StateDirectory"] == "edgeml"


class Listener:
    """What systemd is for the agent: a datagram socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))

    def next(self, timeout_s: float) -> str | None:
        """What comes within the time; `None` if nothing does."""
        self.socket.settimeout(timeout_s)
        try:
            return self.socket.recv(4096).decode()
        except TimeoutError:
            return None

    def wait_for(self, line: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.next(deadline - time.monotonic()) == line:
                return
        raise AssertionError(f"{line!r} did not come in {timeout_s} s")


@pytest.fixture
def listener() -> Iterator[Listener]:
    path = Path(f"/tmp/edgeml-notify-{os.getpid()}")  # not in tmp_path: a socket's path has at most 108 characters
    listener = Listener(path)
    yield listener
    listener.socket.close()
    path.unlink()


@pytest.mark.slow
def test_signs_of_life_come_until_the_agents_thread_hangs_and_again_when_it_goes_on(listener: Listener, tmp_path: Path) -> None:
    make_bundle(tmp_path)
    settings = tmp_path / "agent.toml"
    settings.write_text('[device]\nid = "gate-7"\ndata = "data"\n[models.toy]\nbundle = "toy-1.0.0.edgeml"\n')
    hang = tmp_path / "hang"
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": listener.socket.getsockname(),
        "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "tests.system.hanging_agent", str(hang), str(settings)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        listener.wait_for("READY=1", 60.0)
        listener.wait_for("STATUS=link: no fleet configured; toy: answers with 1.0.0", 30.0)
        for _ in range(2):
            listener.wait_for("WATCHDOG=1", 30.0)
        hang.touch()
        while listener.next(2 * WATCHDOG_S) is not None:  # the last round before the hang is still told
            pass
        hang.unlink()
        listener.wait_for("WATCHDOG=1", 30.0)
        process.send_signal(signal.SIGTERM)
        listener.wait_for("STOPPING=1", 30.0)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1].endswith("stopped")


@pytest.mark.slow
def test_a_watchdog_that_kills_leaves_in_the_log_where_the_agent_hung(tmp_path: Path) -> None:
    settings = tmp_path / "agent.toml"
    settings.write_text('[device]\nid = "gate-7"\ndata = "data"\n')
    (tmp_path / "hang").touch()
    command = [sys.executable, "-m", "tests.system.hanging_agent", str(tmp_path / "hang"), str(settings)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().endswith("up\n")
    process.send_signal(signal.SIGABRT)
    assert "hanging_agent.py" in process.communicate(timeout=30)[1]


def test_nothing_is_sent_where_nobody_listens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "2000000"}):
        supervisor = Supervisor(environment)
        supervisor.ready()
        supervisor.ping(1)
        supervisor.stopping()


def test_a_thread_that_stands_still_is_not_vouched_for(listener: Listener) -> None:
    now = 100.0
    environment = {"NOTIFY_SOCKET": listener.socket.getsockname(), "WATCHDOG_USEC": "10000000"}
    supervisor = Supervisor(environment, clock=lambda: now)
    heard = []
    for seconds, rounds in ((0, 1), (1, 2), (5, 3), (10, 3), (11, 4)):  # one in five seconds, and only after a new round
        now = 100.0 + seconds
        supervisor.ping(rounds)
        heard.append(listener.next(0.01))
    assert heard == ["WATCHDOG=1", None, "WATCHDOG=1", None, "WATCHDOG=1"]


def test_another_process_s_watchdog_is_none_of_ours() -> None:
    assert Supervisor({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid() + 1)}).timeout_s is None
    assert Supervisor({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}).timeout_s == 2.0


def test_a_status_that_is_not_kept_is_a_failed_health_check(tmp_path: Path) -> None:
    settings = tmp_path / "agent.toml"
    settings.write_text('[device]\nid = "gate-7"\ndata = "."\n')
    status = {"device": "gate-7", "pid": 1, "link": "l", "service": "ok", "spool_rows": 0, "spool_dropped": 0, "ignored": 0}
    command = [sys.executable, "-m", "edgeml.cli", "agent", "status", "--config", str(settings)]
    codes = []
    for age_s in (0, 3600):
        (tmp_path / "status.json").write_text(str({**status, "at": time.time() - age_s, "models": []}).replace("'", '"'))
        codes.append(subprocess.run(command, capture_output=True, text=True, check=False).returncode)
    assert codes == [0, 6]


def test_the_container_file_copies_what_is_there_and_installs_extras_that_exist() -> None:
    text = CONTAINERFILE.read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.MULTILINE) for word in line.split()]
    assert {"pyproject.toml", "runtime", "exporter", "fleet"} <= {*copied}  # what the wheel is built of
    assert [name for name in copied if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", text, flags=re.MULTILINE)
    assert {*extras.split(",")} <= {*project["optional-dependencies"]}
    assert re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert re.findall(r"^ARG BASE=(\S+)$", text, flags=re.MULTILINE) == ["docker.io/library/python:3.11-slim"]


def test_the_container_runs_as_nobody_special_and_is_asked_how_it_is() -> None:
    last = CONTAINERFILE.read_text().split("\nFROM ")[-1]
    assert last.index("\nUSER edgeml\n") < last.index("\nENTRYPOINT ")
    (asked,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", last, flags=re.MULTILINE)
    assert asked == '["edgeml", "agent", "status", "--config", "/etc/edgeml/agent.toml"]'


def test_the_example_settings_are_ones_the_agent_takes() -> None:
    config = load_config(ROOT / "deploy/agent.example.toml")
    assert config.data == Path("/var/lib/edgeml")
    assert config.service is not None
    assert list(config.models) == ["meter"]
