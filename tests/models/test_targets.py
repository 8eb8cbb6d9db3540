"""MLPerf Tiny's keyword spotter where it is meant to run: in a microcontroller's interpreter and in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeml.exporter.pipeline import Exported, export
from edgeml.exporter.plan import make_plan
from edgeml.exporter.target.micro import make_micro
from edgeml.exporter.target.web import make_page
from edgeml.exporter.target.web_check import check, find_browser
from edgeml.exporter.target.web_engine import find_engine
from edgeml.wire.errors import EnvironmentProblem
from tests.models.published import kws

pytestmark = [pytest.mark.slow, pytest.mark.published]

RESEARCH_ARENA_BYTES = 24_272  # what the reference int8 file of MLPerf Tiny needs, measured with the same interpreter
FLOAT_KERNELS = {"QUANTIZE", "DEQUANTIZE"}


@pytest.fixture(scope="module")
def spotter(models_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("targets")
    samples = kws(data_dir, folder)
    return export(
        make_plan(
            str(models_dir / "kws_dscnn_savedmodel"), target="cortex-m4", to="onnx,tflite", precision="fp32,int8",
            calib=samples.calibration, evaluation=samples.evaluation, name="kws", out=folder,
        )
    )  # fmt: skip


def test_int8_without_float_layers_stays_within_the_budget(spotter: Exported) -> None:
    assert spotter.exit_code == 0
    artifact = next(a for a in spotter.report.artifacts if (a.format, a.precision) == ("tflite", "int8"))
    assert artifact.task is not None
    assert artifact.task.drop <= 1.0
    assert any("onnx, tflite in fp32, int8 as asked" in note for note in spotter.report.notes)


def test_a_microcontroller_gives_the_golden_answers_in_no_larger_an_arena_than_the_reference(
    spotter: Exported, tmp_path: Path
) -> None:
    pytest.importorskip("tflite_micro", reason="no tflite-micro here: install edgeml-toolkit[micro]")
    assert spotter.bundle is not None
    made = make_micro(spotter.bundle, tmp_path)
    assert made.artifact == "tflite:int8"
    assert (made.golden.samples, made.golden.agreement) == (32, 1.0)
    assert made.golden.max_abs <= made.golden.tolerance
    assert made.arena_bytes <= RESEARCH_ARENA_BYTES
    assert made.float_operators == ()
    assert not FLOAT_KERNELS & set(made.operators)
    assert (made.integer_inputs, made.integer_outputs) == (("input_1",), ("dense",))


def test_a_browser_gives_the_golden_answers(spotter: Exported, tmp_path: Path) -> None:
    assert spotter.bundle is not None
    try:
        find_browser()
        engine = find_engine(None)
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    make_page(spotter.bundle, tmp_path / "page", engine)
    record, _ = check(tmp_path / "page")
    assert [(found.artifact, found.status) for found in record.artifacts] == [("onnx:fp32", "pass"), ("onnx:int8", "pass")]
    for found in record.artifacts:
        assert (found.samples, found.failed, found.agreement) == (32, 0, 1.0)
