"""All five MLPerf Tiny models as published, to three formats in three precisions, judged on real samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from edgeml.exporter.pipeline import Exported, export
from edgeml.exporter.plan import make_plan
from edgeml.exporter.report.structs import ArtifactReport
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.golden import self_test
from edgeml.runtime.session import open_session
from edgeml.wire.manifest import Format
from tests.models.published import MODELS, Published

pytestmark = [pytest.mark.slow, pytest.mark.published]

BY_NAME: Final = {model.name: model for model in MODELS}
NAMES: Final = sorted(BY_NAME)
FORMATS: Final[tuple[Format, ...]] = ("onnx", "tflite", "coreml")
RIVALS_AGREEMENT: Final[dict[tuple[str, Format], float]] = {
    # The best default of TFLiteConverter 2.21 and ai-edge-quantizer 0.10, of ORT 1.32 per tensor and per channel.
    ("kws", "tflite"): 0.985,
    ("kws", "onnx"): 0.985,
    ("ic", "tflite"): 0.973,
    ("ic", "onnx"): 0.941,
    ("vww", "tflite"): 1.0,
    ("vww", "onnx"): 1.0,
    ("sww", "tflite"): 1.0,
    ("sww", "onnx"): 1.0,
}
RIVALS_RMS: Final[dict[Format, float]] = {"tflite": 0.063, "onnx": 0.150}  # AD: rms error over standard deviation

Export = Callable[[str], Exported]


@pytest.fixture(scope="session")
def exported(models_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export a model by name, once for the whole session."""

    @functools.cache
    def made(name: str) -> Exported:
        model: Published = BY_NAME[name]
        folder = tmp_path_factory.mktemp(name)
        samples = model.make(data_dir, folder)
        return export(
            make_plan(
                str(models_dir / model.path),
                precision="fp32,fp16,int8",
                calib=samples.calibration,
                evaluation=samples.evaluation,
                name=name,
                out=folder / "out",
                cache=False,
            )
        )

    return made


def artifact(exported: Exported, format_: Format, precision: str) -> ArtifactReport:
    return next(a for a in exported.report.artifacts if (a.format, a.precision) == (format_, precision))


@pytest.mark.parametrize("name", NAMES)
def test_all_nine_artifacts_are_made_and_none_fails(exported: Export, name: str) -> None:
    failures = {f"{a.format} {a.precision}": a.error for a in exported(name).report.artifacts if a.error or a.status == "fail"}
    assert failures == {}
    assert len(exported(name).report.artifacts) == 9
    assert exported(name).exit_code == 0


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_fp32_is_the_source(exported: Export, name: str, format_: Format) -> None:
    parity = artifact(exported(name), format_, "fp32").parity
    assert parity is not None
    assert parity.max_abs <= 1e-4
    assert parity.top1_agreement in {1.0, None}
    assert (parity.top1_agreement is None) == (name == "ad")


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", ["kws", "ic"])
def test_int8_is_within_a_point_of_the_source_on_800_samples(exported: Export, name: str, format_: Format) -> None:
    task = artifact(exported(name), format_, "int8").task
    assert task is not None
    assert (task.metric, task.n) == ("top1_accuracy", 800)
    assert task.drop <= 1.0


@pytest.mark.parametrize(("name", "format_"), RIVALS_AGREEMENT, ids=str)
def test_int8_agrees_with_the_source_no_less_than_rivals_defaults(exported: Export, name: str, format_: Format) -> None:
    parity = artifact(exported(name), format_, "int8").parity
    assert parity is not None
    assert parity.top1_agreement is not None
    assert parity.top1_agreement >= RIVALS_AGREEMENT[name, format_]


@pytest.mark.parametrize("format_", RIVALS_RMS)
def test_int8_autoencoder_errs_no_more_than_rivals_defaults(exported: Export, format_: Format) -> None:
    parity = artifact(exported("ad"), format_, "int8").parity
    assert parity is not None
    assert parity.rms <= RIVALS_RMS[format_]


@pytest.mark.parametrize("name", NAMES)
def test_smaller_precisions_are_what_they_say(exported: Export, name: str) -> None:
    for format_ in FORMATS:
        whole, half, eighth = (artifact(exported(name), format_, precision) for precision in ("fp32", "fp16", "int8"))
        assert whole.precision_found == "float32"
        assert half.precision_found.startswith("float16")
        assert eighth.precision_found.startswith(("int8", "uint8"))
        assert eighth.bytes < half.bytes < whole.bytes


@pytest.mark.parametrize("name", NAMES)
def test_the_bundle_proves_itself_on_this_machine(exported: Export, name: str) -> None:
    bundle_path = exported(name).bundle
    assert bundle_path is not None
    with open_bundle(bundle_path) as bundle:
        for one in bundle.manifest.artifacts:
            if one.format == "coreml":
                continue  # no engine for it outside Apple's systems
            with open_session(bundle, one) as session:
                assert self_test(bundle, one, session).samples >= 32
