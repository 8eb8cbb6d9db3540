"""Whatever kills an export, its children end with it, and the next export clears what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeml.exporter.lifeline import LOCK, PREFIX, UNLOCKED_AGE_S, sweep, work_folder
from tests.unit.processes import lives, until

JOBS = """
import os, re, subprocess, sys, time
from pathlib import Path

def tell(path):
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(path + ".new").write_text(f"{os.getpid()} {helper.pid}")
    os.rename(path + ".new", path)

def asleep(path):
    tell(path)
    time.sleep(600)

def never_back_in_python(path):
    tell(path)
    re.match("(a+)+$", "a" * 60 + "b")  # takes years, and no other thread runs meanwhile
"""
PARENT = """
import sys
from pathlib import Path
from edgeml.exporter.lifeline import work_folder
from edgeml.exporter.worker import Worker
with work_folder() as folder, Worker("test", folder) as worker:
    worker.call(sys.argv[1], path=sys.argv[2])
"""


@pytest.mark.parametrize("job", ["asleep", "never_back_in_python"])
def test_a_killed_export_leaves_no_process_and_after_the_next_no_folder(tmp_path: Path, job: str) -> None:
    (tmp_path / "jobs_for_test.py").write_text(JOBS)
    note, temporary = tmp_path / "pids", tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, f"jobs_for_test:{job}", str(note)], env=environment)
    try:
        until(note.exists, "the start of the job")
        children = [int(pid) for pid in note.read_text().split()]
        assert all(map(lives, children))
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    until(lambda: not any(map(lives, children)), "the end of the children")
    assert len(list(temporary.glob(f"{PREFIX}*"))) == 1
    sweep(temporary)
    assert list(temporary.iterdir()) == []


def test_folders_of_living_exports_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with work_folder() as one:
        (one / "model").write_bytes(b"half made")
        with work_folder() as other:
            assert one.is_dir()
            assert other != one
        assert (one / "model").read_bytes() == b"half made"
    assert list(tmp_path.iterdir()) == []


def test_only_own_abandoned_folders_are_cleared(tmp_path: Path) -> None:
    dead, young, old, foreign = (tmp_path / name for name in (f"{PREFIX}a", f"{PREFIX}b", f"{PREFIX}c", "other"))
    for folder in (dead, young, old, foreign):
        folder.mkdir()
    (dead / LOCK).touch()  # nobody holds it
    os.utime(old, (0, time.time() - UNLOCKED_AGE_S - 60))
    (tmp_path / f"{PREFIX}link").symlink_to(foreign)
    (tmp_path / f"{PREFIX}file").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{PREFIX}b", f"{PREFIX}file", f"{PREFIX}link", "other"]
