"""The runtime on emulated aarch64: the processors of a Raspberry Pi 4 and 5, both engines, compared with this machine.

`scripts/arm64` makes the emulated Python: once, some 200 MB of downloads. Without that and a network the tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.models.published import ic, kws

ROOT = Path(__file__).resolve().parents[2]
ARM64 = ROOT / "scripts/arm64"
CANNOT = 6  # exit code: the environment stands in the way
PROCESSORS = ["cortex-a72", "cortex-a76"]  # Raspberry Pi 4; Raspberry Pi 5, which has dot products
COMPARED = 100  # samples: enough to see a wrong kernel, few enough for an emulator
UNIT_TESTS = [
    "test_runtime_backends.py", "test_runtime_session.py", "test_runtime_model.py", "test_runtime_fallback.py",
    "test_slots.py", "test_spool.py", "test_update_resume.py", "test_updater.py",
]  # fmt: skip
LONG_EMULATED = "thousand or kill_nine or full_ring"  # tens of seconds here; nothing in them is about the processor

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("arm64")]


@pytest.fixture(scope="session", autouse=True)
def emulated() -> None:
    done = subprocess.run([str(ARM64), "prepare"], capture_output=True, text=True, check=False)
    if done.returncode == CANNOT:
        pytest.skip(f"no emulated aarch64: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def export(folder: Path, source: str, name: str, calibration: Path, evaluation: Path, *, precision: str) -> Path:
    out = folder / "out"
    command = [sys.executable, "-m", "edgeml.cli", "export", source, "--to", "onnx,tflite", "--precision", precision]
    options = ["--calib", calibration, "--eval", evaluation, "--max-drop", "3", "--name", name, "--version", "1.0.0", "-o", out]
    done = subprocess.run([*command, *map(str, options)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / f"{name}-1.0.0.edgeml"


def answers(python: list[str | Path], bundle: Path, samples: Path, out: Path, **environment: str) -> dict[str, np.ndarray]:
    command = [*map(str, python), "-m", "tests.system.arm64_answers", str(bundle), str(samples), str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(out, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def compare(bundle: Path, samples: Path, folder: Path, processor: str) -> dict[str, float]:
    """By artifact, the largest difference of any output, as a share of the range of what this machine answers."""
    few = folder / "few.npz"
    with np.load(samples, allow_pickle=False) as stored:
        np.savez(few, **{name: stored[name][:COMPARED].astype(np.float32) for name in stored.files if name != "y"})
    here = answers([sys.executable], bundle, few, folder / "here.npz")
    there = answers([ARM64, "python"], bundle, few, folder / f"{processor}.npz", QEMU_CPU=processor)
    assert sorted(there) == sorted(here), "the same artifacts run on both"
    found = {name: float(np.abs(there[name] - here[name]).max() / np.ptp(here[name])) for name in here}
    print(processor, {name: f"{share:.2g}" for name, share in found.items()})
    return {name.split("/")[0]: share for name, share in found.items()}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The digits bundle, and images from the field."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, "-m", "examples.digits.data", folder], cwd=ROOT, check=True)
    bundle = export(
        folder, "examples/digits/model.py:v1_0_0", "meter", folder / "calib.npz", folder / "eval.npz", precision="fp32,int8"
    )
    return bundle, folder / "field.npz"


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_digits_bundle_proves_itself_and_answers_as_here(digits: tuple[Path, Path], processor: str, tmp_path: Path) -> None:
    differences = compare(*digits, tmp_path, processor)
    assert sorted(differences) == ["onnx:fp32", "onnx:int8", "tflite:fp32", "tflite:int8"]
    assert max(differences["tflite:fp32"], differences["onnx:fp32"]) <= 1e-5  # another order of float32 sums
    # A sum between two int8 values may round the other way in a kernel with dot products.
    assert max(differences["tflite:int8"], differences["onnx:int8"]) <= 0.01


@pytest.mark.published
@pytest.mark.parametrize(("name", "file"), [("kws", "kws_dscnn_savedmodel"), ("ic", "ic_resnet8.h5")])
def test_published_models_prove_themselves_and_answer_as_here(
    name: str, file: str, models_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    samples = {"kws": kws, "ic": ic}[name](data_dir, tmp_path)
    bundle = export(tmp_path, str(models_dir / file), name, samples.calibration, samples.evaluation, precision="int8")
    differences = compare(bundle, samples.evaluation, tmp_path, "cortex-a76")
    assert sorted(differences) == ["onnx:int8", "tflite:int8"]
    assert max(differences.values()) <= 0.05


def test_the_runtimes_own_tests_pass_there() -> None:
    files = [f"tests/unit/{name}" for name in UNIT_TESTS]
    command = [str(ARM64), "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not ({LONG_EMULATED})", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
