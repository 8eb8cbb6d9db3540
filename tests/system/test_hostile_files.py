"""Every hostile file ends in one clear line and the right exit code: nothing runs, nothing is written, little is taken."""

from __future__ import annotations

import resource
import shlex
import time
from pathlib import Path

import pytest

from edgeml.cli import main
from tests.system.hostile_files import CANARY, PLAIN, ZIPS, Hostile
from tests.system.hostile_frameworks import KERAS, SAVED, TORCH
from tests.system.hostile_onnx import ONNX
from tests.system.hostile_readers import CALIBRATION, READERS
from tests.system.hostile_tflite import TFLITE

AT_SIGHT = {f"{kind}: {name}": case for kind, cases in (("file", PLAIN), ("reader", READERS)) for name, case in cases.items()}
WORKERS = {"zip": ZIPS, "onnx": ONNX, "keras": KERAS, "saved": SAVED, "torch": TORCH, "tflite": TFLITE, "samples": CALIBRATION}
IN_A_WORKER = {f"{kind}: {name}": case for kind, cases in WORKERS.items() for name, case in cases.items()}
TIME_S = 30.0  # for one file on a busy machine; the largest limit that a case sets is 2 s
OURS_BYTES = 300 << 20  # what the command itself may take, above what it had
WORKER_BYTES = 2 << 30  # what a worker may: a case that grows sets its limit to a quarter of that


def resident_peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def largest_child_bytes() -> int:
    """Of all child processes that ever ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10


def check(case: Hostile, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    case.make(folder)
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EDGEML_CACHE", str(folder / "cache"))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
    started, peak, workers = time.monotonic(), resident_peak_bytes(), largest_child_bytes()
    arguments = shlex.split(case.command)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *(["-o", "out", "--no-cache"] if arguments[0] == "export" else [])])
    said = capfd.readouterr().err
    assert ended.value.code == case.code, said
    assert said.startswith("error: "), said
    assert case.message in said
    assert said.count("\n") == 1
    assert time.monotonic() - started < TIME_S
    assert resident_peak_bytes() - peak < OURS_BYTES
    assert largest_child_bytes() <= max(workers, WORKER_BYTES)
    assert not (folder / CANARY).exists()
    assert not any((place / "evil").exists() for place in (Path("/tmp"), *folder.parents))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", AT_SIGHT)
def test_a_file_that_is_refused_at_sight(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check(AT_SIGHT[name], tmp_path, monkeypatch, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_A_WORKER)
def test_a_file_that_a_worker_looks_into(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check(IN_A_WORKER[name], tmp_path, monkeypatch, capfd)
