"""The published MLPerf Tiny models in Core ML: every precision against the source, run by the interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeml.exporter.mil.backend import open_mil
from edgeml.exporter.worker import Worker
from edgeml.runtime.backends import Array, EngineOptions

pytestmark = [pytest.mark.published, pytest.mark.slow]

SHAPES = {
    "kws_dscnn_savedmodel": (49, 10, 1),
    "ic_resnet8.h5": (32, 32, 3),
    "vww_mobilenetv1.h5": (96, 96, 3),
    "sww_ds_tcn.h5": (30, 1, 40),
    "ad_autoencoder.h5": (640,),
}
SCALES = {"kws_dscnn_savedmodel": 20.0, "ic_resnet8.h5": 60.0, "ad_autoencoder.h5": 5.0}
LIMITS = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.25}  # of the output range, on noise


def _outputs(model: Path, samples: Array) -> Array:
    backend = open_mil(model.read_bytes(), EngineOptions())
    return np.concatenate([backend.run([samples[i : i + 1]])[0] for i in range(len(samples))])


@pytest.mark.parametrize("name", SHAPES)
def test_published_model_computes_the_same_in_every_precision(name: str, models_dir: Path, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(size=(32, *SHAPES[name])).astype(np.float32) * SCALES.get(name, 1.0)
    np.savez(tmp_path / "in.npz", samples)
    source = {"path": str(models_dir / name), "kind": "keras-h5" if name.endswith(".h5") else "savedmodel"}
    with Worker("source", tmp_path, environment={"TF_USE_LEGACY_KERAS": "1"}) as worker:
        worker.call(
            "edgeml.exporter.source.tensorflow:reference",
            source=source,
            inputs=str(tmp_path / "in.npz"),
            out=str(tmp_path / "out.npz"),
        )
        worker.call("edgeml.exporter.convert.coreml:from_tensorflow", source=source, out=str(tmp_path / "fp32"))
    with Worker("quantize", tmp_path, blocked=("tensorflow",)) as worker:
        worker.call("edgeml.exporter.quantize.coreml:write_smaller", model=str(tmp_path / "fp32"), folder=str(tmp_path))
    with np.load(tmp_path / "out.npz") as told:
        want = told[told.files[0]]
    got = {precision: _outputs(tmp_path / precision, samples) for precision in LIMITS}
    assert (got["fp32"].argmax(1) == want.argmax(1)).all()
    for precision, limit in LIMITS.items():
        assert np.abs(got[precision] - want).max() <= limit * np.ptp(want), precision
