"""`edgeml export --for DEVICE`: what a device's preset chooses, records and says."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeml.cli import COMMANDS, main
from edgeml.exporter.plan import FORMATS, ExportPlan, make_plan
from edgeml.exporter.precision import PRECISIONS
from edgeml.exporter.target.presets import PRESETS, Preset, preset
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Artifact, Parity, Requirement
from tests.conftest import ROOT


@pytest.fixture
def calib(tmp_path: Path) -> Path:
    path = tmp_path / "calib.npz"
    path.touch()
    return path


@pytest.mark.parametrize("found", PRESETS.values(), ids=lambda found: found.name)
def test_every_preset_makes_a_plan_that_says_why(found: Preset, calib: Path) -> None:
    plan = make_plan("m.onnx", target=found.name, calib=calib)
    assert plan.formats == tuple(word for word in FORMATS if word in found.formats)
    assert plan.precisions == tuple(word for word in PRECISIONS if word in found.precisions)
    assert plan.options()["target"] == found.name
    (note,) = plan.notes
    assert note.startswith(f"--for {found.name} ({found.device}")
    assert found.why in note
    assert found.after in COMMANDS


def test_the_note_names_the_device_and_what_it_has() -> None:
    assert preset("pi4").needs == "Raspberry Pi 4, aarch64 or armv7l, 1 GiB of memory or more"
    assert preset("cortex-m4").needs == "a Cortex-M4 microcontroller, 256 KiB of memory or more"
    assert preset("browser").needs == "a web browser"


def test_what_is_asked_for_goes_before_the_preset(calib: Path) -> None:
    plan = make_plan("m.onnx", target="pi4", to="tflite", calib=calib)
    assert (plan.formats, plan.precisions) == (("tflite",), ("fp32", "int8"))
    assert "tflite in fp32, int8 as asked; onnx, tflite in fp32, int8 would be usual" in plan.notes[0]
    assert make_plan("m.onnx", target="pi4", precision="fp16").precisions == ("fp16",)


def test_without_a_device_nothing_changes() -> None:
    plan = make_plan("m.onnx")
    assert (plan.formats, plan.precisions, plan.notes) == (("onnx", "tflite", "coreml"), ("fp32",), ())
    assert "target" not in plan.options()


def test_an_unknown_device_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        PlanError, match="--for: expected pi4 or pi5 or jetson-orin or iphone or cortex-m4 or browser, got 'pi3'"
    ):
        make_plan("m.onnx", target="pi3")


def test_a_preset_with_int8_asks_for_calibration_samples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", "m.onnx", "--for", "cortex-m4"])
    assert left.value.code == 2
    assert "int8 for tflite needs activation ranges; give samples with --calib FILE.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("cortex-m4", 2 << 20, "tflite int8 has 2,097,152 bytes; a Cortex-M4 microcontroller has 1,048,576 of flash"),
        ("pi4", 2 << 30, "tflite int8 has 2,147,483,648 bytes; Raspberry Pi 4 has 1,073,741,824 of memory"),
        ("cortex-m4", 46_136, None),
        ("browser", 2 << 30, None),
    ],
)
def test_an_artifact_that_the_device_cannot_hold_is_named(name: str, size: int, said: str | None) -> None:
    artifact = Artifact(
        "tflite", "int8", "int8 100 %", "0" * 64, size, Requirement("litert"), (), (), Parity("pass", "verified", 1, 0.0, 0.0)
    )
    assert preset(name).misfits(artifact) == said


def test_presets_are_listed_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in PRESETS)


def test_the_table_in_the_documents_is_this_one() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "export.md").read_text().splitlines() if line.startswith("| `")]
    said = {name.strip(" `"): (row[2], row[3]) for row in rows if len(row) == 6 for name in row[1].split(",")}
    for found in PRESETS.values():
        formats, precisions = said[found.name]
        assert [word.strip().lower().replace(" ", "") for word in formats.split(",")] == list(found.formats)
        assert [word.strip() for word in precisions.replace("no layer float", "").split(",") if word.strip()] == list(
            found.precisions
        )


def test_a_plan_without_a_device_is_the_record_it_was() -> None:
    assert ExportPlan("m", ("onnx",), ("fp32",), "m", "0.1.0", Path()).target is None
