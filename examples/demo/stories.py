"""The two stories the demo can tell, and how each prepares its samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeml.wire.errors import EnvironmentProblem

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Release:
    """A version as its makers export it. `calib` and `evaluation` are file names in the story's folder."""

    version: str
    source: str
    precisions: str
    formats: str
    calib: str
    evaluation: str
    max_drop: str
    who: str  # one clause: what its makers think it is


@dataclass(frozen=True, slots=True)
class Story:
    name: str
    title: str
    model: str
    releases: tuple[Release, Release, Release]
    labels: tuple[str, ...]
    least_score: float  # below it the device asks the cloud
    moral: str  # what was wrong with the last release

    prepare: Callable[[Path], None]  # writes the .npz files, field.npz among them, into a folder


def digits() -> Story:
    def prepare(folder: Path) -> None:
        from examples.digits import data

        data.write(folder)

    model = str(ROOT / "examples" / "digits" / "model.py")
    every = ("fp32,fp16,int8", "onnx,tflite,coreml")
    return Story(
        name="digits",
        title="a meter-reading camera",
        model="meter",
        releases=(
            Release("1.0.0", f"{model}:v1_0_0", *every, "calib.npz", "eval.npz", "2", "the first good one"),
            Release("1.1.0", f"{model}:v1_1_0", *every, "calib.npz", "eval.npz", "2", "trained half as long again"),
            Release(
                "1.2.0", f"{model}:v1_2_0", *every, "calib-workshop.npz", "eval-workshop.npz", "2",
                "trained and judged on clean workshop images alone",
            ),
        ),
        labels=tuple("0123456789"),
        least_score=0.6,
        moral="1.2.0 never saw the dim light inside a meter, and neither did its evaluation set",
        prepare=prepare,
    )  # fmt: skip


NEW_FRONT_END = 16.0
KEYWORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown")


def kws() -> Story:
    source, sounds = published()

    def prepare(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with np.load(sounds, allow_pickle=False) as stored:
            x, y = stored["x"], stored["y"].astype(np.int64)
        order = np.arange(len(x))
        calibrate = order % 5 == 0
        np.savez(folder / "calib.npz", x=x[calibrate], y=y[calibrate])
        np.savez(folder / "eval.npz", x=x[~calibrate], y=y[~calibrate])
        np.savez(folder / "field.npz", input_1=x[~calibrate], y=y[~calibrate])
        # The new front end's features are a sixteenth of the old one's; nobody has labelled its recordings yet.
        np.savez(folder / "calib-new.npz", x=(x[calibrate] / NEW_FRONT_END).astype(np.float32))
        np.savez(folder / "eval-new.npz", x=(x[~calibrate] / NEW_FRONT_END).astype(np.float32))

    return Story(
        name="kws",
        title="a keyword spotter (MLPerf Tiny's DS-CNN, as published)",
        model="kws",
        releases=(
            Release("1.0.0", source, "fp32,int8", "onnx,tflite,coreml", "calib.npz", "eval.npz", "1", "int8"),
            Release("1.1.0", source, "fp32,fp16", "onnx,tflite,coreml", "calib.npz", "eval.npz", "1", "fp16, to compare"),
            Release(
                "1.2.0", source, "int8", "onnx,tflite", "calib-new.npz", "eval-new.npz", "1",
                "int8 for the next front end, whose features are a sixteenth as large",
            ),
        ),
        labels=KEYWORDS,
        least_score=0.5,
        moral="1.2.0 fits a front end that the devices do not have: their features are beyond what its numbers reach",
        prepare=prepare,
    )  # fmt: skip


def published() -> tuple[str, Path]:
    """The published keyword spotter, and its evaluation sounds.

    Raises:
        EnvironmentProblem: the files are not here.
    """
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "models"), "--json"], capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        raise EnvironmentProblem("the published keyword spotter is not here", hint="run scripts/models; or scripts/demo digits")
    models = Path(json.loads(found.stdout)["folder"])
    places = [models.parent.parent / "data", models.parent / "data", Path(os.environ.get("EDGEML_MODELS", ".")) / "data"]
    for place in places:
        if (place / "kws01.npz").is_file():
            return str(models / "kws_dscnn_savedmodel"), place / "kws01.npz"
    raise EnvironmentProblem(
        "the keyword spotter's evaluation sounds (kws01.npz) are not here",
        hint="put them into a folder `data` beside the models, or run scripts/demo digits",
    )


STORIES: dict[str, Callable[[], Story]] = {"digits": digits, "kws": kws}
