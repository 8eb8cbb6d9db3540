"""Every command of docs/sources.md, run as it stands there, on small models that the test makes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from edgeml.runtime import load
from tests.system.export_sources import QUIET

pytestmark = pytest.mark.slow

MANY: Final = 320  # samples: enough for a bound within the budget
FEW: Final = 32  # enough for fp32
PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SAVED: Final = """
import tensorflow as tf


class Two(tf.Module):
    def __init__(self):
        self.weight = tf.Variable([[0.1 * row - 0.2 * column for column in range(8)] for row in range(6)])

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="x")])
    def classify(self, x):
        return {"y": tf.nn.softmax(x @ self.weight)}

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="x")])
    def encode(self, x):
        return {"code": x @ self.weight}


two = Two()
tf.saved_model.save(two, "folder", signatures={"serving_default": two.classify, "encode": two.encode})
open("model.tflite", "wb").write(tf.lite.TFLiteConverter.from_saved_model("folder").convert())
"""
TAGGER: Final = """import torch


class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.each = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.each(x)


"""
CELL: Final = """import torch


class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.scores = torch.nn.GRUCell(6, 16), torch.nn.Linear(16, 4)

    def forward(self, x, h_in):
        h_out = self.cell(x, h_in)
        return {"scores": self.scores(h_out), "h_out": h_out}


def make():
    return Cell(), (torch.zeros(1, 6), torch.zeros(1, 16))
"""
TRAIN: Final = """from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier


def make():
    return MLPClassifier((8,), random_state=0, max_iter=50).fit(*load_iris(return_X_y=True))
"""
PICKLE: Final = "import joblib, train; joblib.dump(train.make(), 'model.joblib')"


def sections() -> dict[str, list[tuple[str, str]]]:
    """The blocks (language, text) under each heading of the second level."""
    parts = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)[1:]
    return {title: BLOCK.findall(text) for title, text in zip(parts[::2], parts[1::2], strict=True)}


def commands() -> list[tuple[str, str]]:
    """(section, command)"""
    lines = [
        (title, line) for title, blocks in sections().items() for word, text in blocks if not word for line in text.splitlines()
    ]
    return [(title, line.partition("#")[0].strip()) for title, line in lines]


def blocks_of(title: str, language: str) -> list[str]:
    return [text for word, text in sections()[title] if word == language]


def samples(folder: Path, count: int, *shape: int) -> None:
    for seed, name in enumerate(("calib.npz", "eval.npz")):
        np.savez(folder / name, x=np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32))


def python(folder: Path, code: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, env={**os.environ, **QUIET}, check=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each section that has commands, with the files that they name."""
    found = {title: tmp_path_factory.mktemp("page") for title in dict(commands())}
    saved = found["Several signatures"]
    python(saved, SAVED)
    (found["TFLite"] / "model.tflite").write_bytes((saved / "model.tflite").read_bytes())
    axes = found["Axes of any size"]
    (axes / "net.py").write_text(TAGGER + blocks_of("Axes of any size", "python")[0])
    (found["Models with a state"] / "net.py").write_text(CELL)
    rows = found["scikit-learn"]
    (rows / "train.py").write_text(TRAIN)
    python(rows, PICKLE)
    samples(found["TFLite"], MANY, 6)
    samples(rows, MANY, 4)
    samples(axes, FEW, 20, 8)
    samples(found["Models with a state"], FEW, 5, 6)
    return found


@pytest.mark.parametrize(("title", "command"), commands(), ids=[command for _, command in commands()])
def test_a_command_of_the_page_does_what_it_says(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, title: str, command: str
) -> None:
    program, *arguments = shlex.split(command)
    assert program == "edgeml"
    told = {"COLUMNS": "200", "EDGEML_CACHE": str(tmp_path_factory.getbasetemp() / "cache")}
    folder = folders[title]
    done = subprocess.run(
        [sys.executable, "-m", "edgeml.cli", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, **told},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = folder.glob("*.edgeml")
    bundle = bundle.rename(folder / "done.bundle")
    if title == "Models with a state":
        drive(bundle)


def drive(bundle: Path) -> None:
    """Run the page's own loop over a stream."""
    with load(bundle) as model:
        scope: dict[str, Any] = {"np": np, "model": model, "stream": np.ones((3, 1, 6), np.float32)}
        exec(blocks_of("Models with a state", "python")[0], scope)
    assert scope["outputs"]["scores"].shape == (1, 4)
    assert np.any(scope["state"] != 0)
