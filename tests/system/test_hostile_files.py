"""Every hostile file ends in one clear line and the right exit code: nothing runs, nothing is written, little is taken."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from edgeml.cli import main
from tests.system.hostile_files import CANARY, PLAIN, ZIPS, Hostile, pickle_of_payload, zipped
from tests.system.hostile_frameworks import KERAS, SAVED, TORCH
from tests.system.hostile_onnx import ONNX
from tests.system.hostile_readers import CALIBRATION, READERS
from tests.system.hostile_tflite import TFLITE

AT_SIGHT = {f"{kind}: {name}": case for kind, cases in (("file", PLAIN), ("reader", READERS)) for name, case in cases.items()}
WORKERS = {"zip": ZIPS, "onnx": ONNX, "keras": KERAS, "saved": SAVED, "torch": TORCH, "tflite": TFLITE, "samples": CALIBRATION}
IN_A_WORKER = {f"{kind}: {name}": case for kind, cases in WORKERS.items() for name, case in cases.items()}
TIME_S = 30.0  # for one file on a busy machine; the one that never ends sets itself 4 s
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


PROGRAM = """
import torch
torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),)), "true.pt2")
"""


@pytest.mark.slow
def test_a_pickle_in_a_true_torch_program_runs_only_if_its_user_trusts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """torch.export.load unpickles everything where its safe unpickler refuses: here, the example inputs."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], cwd=tmp_path, check=True)
    with zipfile.ZipFile(tmp_path / "true.pt2") as true:
        entries = [(name, true.read(name)) for name in true.namelist()]
    assert any("sample_inputs" in name for name, _ in entries)
    payload = pickle_of_payload(tmp_path)
    evil = [(name, payload if "sample_inputs" in name and name.endswith(".pt") else data) for name, data in entries]
    case = Hostile(zipped("m.pt2", evil), "export m.pt2 --to onnx", 2, "'m.pt2' cannot be loaded")
    check(case, tmp_path, monkeypatch, capfd)
    with pytest.raises(SystemExit):
        main(["export", "m.pt2", "--to", "onnx", "--no-cache", "-o", "out", "--trust"])
    assert (tmp_path / CANARY).exists(), "the payload is live: without --trust it was stopped"
