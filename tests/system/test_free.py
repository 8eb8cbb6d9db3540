"""`edgeml export --free`: axes that are free on the device in every format, and those that cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.session import open_session

pytestmark = pytest.mark.slow

FACTORY = """
import torch


def make():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4)), (
        torch.zeros(1, 1, 8, 8),
    )


class Centred(torch.nn.Module):
    def forward(self, x):
        return x - x.mean()


def lone():
    return Centred(), (torch.zeros(1, 4),)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("free")
    (place / "net.py").write_text(FACTORY)
    np.savez(place / "calib.npz", x=np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32))
    return place


def export(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeml.cli", "export", *arguments, "-o", "out"]
    told = {"COLUMNS": "200", "EDGEML_CACHE": str(folder / "cache")}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **told})


def test_a_free_batch_runs_as_one_call_in_every_format_and_precision(folder: Path) -> None:
    done = export(
        folder, "net.py:make", "--free", "batch=1..8", "--calib", "calib.npz", "--precision", "fp32,fp16,int8", "--max-drop",
        "100", "--repair-time", "0", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert [one["status"] for one in report["artifacts"]] == ["pass"] * 9
    (bundle,) = (folder / "out").glob("*.edgeml")
    x = np.random.default_rng(1).normal(size=(5, 1, 8, 8)).astype(np.float32)
    with open_bundle(bundle) as opened:
        assert opened.manifest.options["free"] == "batch=1..8"
        for one in opened.manifest.artifacts:
            assert one.inputs[0].shape[0] == one.outputs[0].shape[0] == "batch"
            assert "axis 'batch' is free, from 1 to 8" in one.notes
            if one.format == "coreml":  # runs on macOS alone
                continue
            with open_session(opened, one) as session:
                assert session.batches
                alone = [session.run({"input": sample[None]})["output"] for sample in x]
                np.testing.assert_allclose(session.run({"input": x})["output"], np.concatenate(alone), atol=1e-5)


def test_an_axis_that_the_source_does_not_have_ends_before_the_work(folder: Path) -> None:
    done = export(folder, "net.py:make", "--free", "time", "--calib", "calib.npz")
    assert done.returncode == 2
    assert "--free time: the source has no free axis of that name: expected 'batch', got 'time'" in done.stderr


def test_a_batch_of_a_source_that_mixes_its_samples_is_refused_by_name(folder: Path) -> None:
    np.savez(folder / "rows.npz", x=np.ones((4, 4), np.float32))
    done = export(folder, "net.py:lone", "--free", "batch", "--to", "tflite", "--calib", "rows.npz")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "axis 'batch' cannot be free: the source takes one sample a call" in done.stdout + done.stderr
