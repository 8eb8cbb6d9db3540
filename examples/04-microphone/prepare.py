"""Makes out/kws from the published keyword spotter and spoken digits, where they are found:  python prepare.py FOLDER"""

import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np

MODEL, SOUNDS, FEATURES = "mlperf-tiny/kws_dscnn_savedmodel", "fsdd.npz", "kws01.npz"
LABELS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown")
WORDS = 6
PAUSE = np.zeros(8000, np.int16)


def find(name: str) -> Path | None:
    """In EDGEML_MODELS, in the cache of scripts/models, or beside the checkout."""
    given = os.environ.get("EDGEML_MODELS")
    shared = Path(__file__).resolve().parents[3] / "shared"
    places = [*([Path(given), Path(given).parent / "data"] if given else []), Path.home() / ".cache/edgeml/models"]
    return next((p / name for p in (*places, shared / "models", shared / "data") if (p / name).exists()), None)


def main(folder: Path) -> None:
    model, sounds, features = find(MODEL), find(SOUNDS), find(FEATURES)
    if model is None or features is None or sounds is None:
        print("the published keyword spotter or its sounds are not here: `scripts/models` gets the model; nothing was made")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(features, allow_pickle=False) as stored:
        np.savez(folder / "calib.npz", x=stored["x"][::5], y=stored["y"][::5])
        np.savez(folder / "eval.npz", x=stored["x"][1::5], y=stored["y"][1::5])
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    samples = ["--calib", str(folder / "calib.npz"), "--eval", str(folder / "eval.npz"), "--max-drop", "5"]
    options = [
        "--to",
        "tflite",
        "--precision",
        "fp32,int8",
        "--name",
        "kws",
        "--labels",
        str(folder / "labels.txt"),
        "-o",
        str(folder),
    ]
    done = subprocess.run(["edgeml", "export", str(model), *options, *samples], check=False, stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(done.returncode)
    with np.load(sounds, allow_pickle=False) as stored:
        recordings = [stored["samples"][a:b] for a, b in zip(stored["offset"][::500], stored["offset"][1::500], strict=False)]
    spoken = np.concatenate([part for word in recordings[:WORDS] for part in (word, PAUSE)])
    doubled = np.interp(np.arange(2 * len(spoken)) / 2, np.arange(len(spoken)), spoken)  # 8 to 16 kHz
    with wave.open(str(folder / "digits.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(doubled.astype("<i2").tobytes())
    print(f"{folder}/kws-0.1.0.edgeml and {folder}/digits.wav")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
