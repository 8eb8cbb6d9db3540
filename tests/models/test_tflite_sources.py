"""MLPerf Tiny's own TFLite files as sources: packed as they are, and what each one really holds."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest

from edgeml.exporter.pipeline import export
from edgeml.exporter.plan import make_plan
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.golden import self_test
from edgeml.runtime.session import open_session
from edgeml.wire.manifest import Precision

pytestmark = [pytest.mark.slow, pytest.mark.published]

FILES: Final[dict[str, Precision]] = {
    "ad_autoencoder_ref_int8.tflite": "int8",
    "ic_resnet8_ref_fp32.tflite": "fp32",
    "ic_resnet8_ref_int8.tflite": "int8",
    "kws_dscnn_ref_fp32.tflite": "int8-dynamic",  # whatever its name says
    "kws_dscnn_ref_int8.tflite": "int8",
    "sww_ds_tcn_ref_int8.tflite": "int8",
    "vww_mobilenetv1_ref_int8.tflite": "int8",
}


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_packed_as_it_is_and_proves_itself(models_dir: Path, tmp_path: Path, name: str) -> None:
    made = export(make_plan(str(models_dir / name), to="tflite", out=tmp_path, cache=False))
    assert made.exit_code == 0, made.report.summary
    assert made.bundle is not None
    with open_bundle(made.bundle) as bundle:
        (artifact,) = bundle.manifest.artifacts
        assert artifact.precision == FILES[name]
        assert artifact.sha256 == sha256((models_dir / name).read_bytes()).hexdigest()
        assert all(spec.dtype == "float32" for spec in bundle.manifest.signature.inputs)
        with open_session(bundle, artifact) as session:
            assert self_test(bundle, artifact, session).samples >= 32
