"""The wheel as a device gets it: in an environment with nothing but its own dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.unit.bundles import FULL, make_bundle, onnx_model

ROOT = Path(__file__).resolve().parents[2]
MOST_WHEEL_BYTES = 1_000_000  # 600 files of code are 0.76 MB; data that slips in shows
NO_REGISTRY = ("No matching distribution", "NewConnectionError", "Temporary failure in name resolution", "ConnectTimeoutError")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `scripts/build` leaves: the wheel and `bare`, an environment without any engine."""
    folder = tmp_path_factory.mktemp("build")
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([ROOT / "scripts/build", folder], env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode and any(words in said for words in NO_REGISTRY):
        pytest.skip("the package registry cannot be reached, so nothing can be installed into a bare environment")
    assert done.returncode == 0, said
    assert "every module of wire and runtime imports" in done.stdout
    return folder


def edgeml(built: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [built / "bare/bin/edgeml", *arguments]
    return subprocess.run(command, env=environment, cwd=built, capture_output=True, text=True, check=False)


def test_the_wheel_is_small_and_holds_code_alone(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size <= MOST_WHEEL_BYTES
    names = zipfile.ZipFile(wheel).namelist()
    assert "edgeml/__init__.py" not in names, "edgeml is a namespace; a file would hide other distributions' parts"
    assert {"edgeml/wire/manifest.py", "edgeml/runtime/agent.py", "edgeml/exporter/cli.py", "edgeml/fleet/cli.py"} <= {*names}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"edgeml", "edgeml_toolkit"}


def test_a_bare_device_lists_the_commands(built: Path) -> None:
    done = edgeml(built, "--help")
    assert done.returncode == 0, done.stderr
    assert "agent" in done.stdout


def test_the_doctor_of_a_bare_device_says_which_extras_to_install(built: Path) -> None:
    done = edgeml(built, "doctor")
    assert done.returncode == 0, done.stderr
    assert "no engine here: install edgeml-toolkit[onnx] or edgeml-toolkit[tflite]" in done.stdout


def test_a_bare_device_checks_its_settings(built: Path) -> None:
    (built / "agent.toml").write_text('[device]\nid = "gate-7"\ndata = "data"\n')
    done = edgeml(built, "agent", "check", "--config", "agent.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "device   gate-7" in done.stdout


def test_a_bundle_on_a_bare_device_says_which_engine_is_missing(built: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, artifacts=FULL)
    (built / "load.py").write_text(f"from edgeml.runtime import load\nload({str(bundle)!r})\n")
    done = subprocess.run([built / "bare/bin/python", built / "load.py"], capture_output=True, text=True, check=False)
    assert "no engine for onnx is installed" in done.stderr
    assert "install edgeml-toolkit[onnx,tflite]" in done.stderr


@pytest.mark.parametrize(
    "command", [["export", "model.onnx", "--to", "onnx"], ["fleet", "--help"], ["serve", "--help"]], ids=str
)
def test_a_command_that_needs_an_extra_says_so_in_one_line(built: Path, command: list[str], tmp_path: Path) -> None:
    (built / "model.onnx").write_bytes(onnx_model())
    done = edgeml(built, *command)
    assert (done.returncode, done.stderr.count("\n")) == (6, 1), done.stdout + done.stderr
    assert f"install edgeml-toolkit[{command[0]}]" in done.stderr
