"""Olive and optimum-onnx, run by a python of their own that has no edgeml.

    OLIVE-PYTHON benchmarks/_elsewhere.py olive FOLDER

`FOLDER` holds fp32.onnx and calibrate-onnx.npz, whose arrays (n, ...) are named after the model's inputs. The result is
FOLDER/olive or FOLDER/optimum, and the last line printed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, Any]


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    with np.load(folder / "calibrate-onnx.npz", allow_pickle=False) as file:
        feeds = dict(file)
    work = {"olive": olive, "optimum": optimum}[name](folder, feeds)
    started = time.perf_counter()
    made = work()
    wall = time.perf_counter() - started
    (folder / name).write_bytes(made.read_bytes())
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.partition("VmHWM:")[2].split()[0]) >> 10
    print(json.dumps({"wall_s": round(wall, 2), "rss_mib": peak, "bytes": made.stat().st_size}))


def olive(folder: Path, feeds: Feeds) -> Callable[[], Path]:
    """Olive's pass `OnnxStaticQuantization` as it comes."""
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    rows = [({name: values[index] for name, values in feeds.items()}, 0) for index in range(_count(feeds))]

    @Registry.register_dataset("calibration_samples")  # type: ignore[untyped-decorator, unused-ignore]
    def samples(**_: object) -> list[Any]:
        return rows

    data = DataConfig(name="samples", load_dataset_config=DataComponentConfig(type="calibration_samples"))
    made = create_pass_from_dict(OnnxStaticQuantization, {"data_config": data}, disable_search=True)

    def quantize() -> Path:
        handler = made.run(ONNXModelHandler(str(folder / "fp32.onnx")), str(folder / "olive-out" / "model.onnx"))
        return Path(handler.model_path)

    return quantize


def optimum(folder: Path, feeds: Feeds) -> Callable[[], Path]:
    """optimum-onnx's `ORTQuantizer` for AVX-512 VNNI, statically, with min-max ranges: the example of its documentation."""
    from datasets import Dataset
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

    source = folder / "optimum-in"
    source.mkdir()
    (source / "model.onnx").write_bytes((folder / "fp32.onnx").read_bytes())
    dataset = Dataset.from_dict({name: list(values) for name, values in feeds.items()}).with_format("numpy")

    def quantize() -> Path:
        quantizer = ORTQuantizer.from_pretrained(source, file_name="model.onnx")
        settings = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=False)
        ranges = quantizer.fit(
            dataset, AutoCalibrationConfig.minmax(dataset), str(folder / "augmented.onnx"), settings.operators_to_quantize
        )
        quantizer.quantize(settings, folder / "optimum-out", calibration_tensors_range=ranges)
        return next((folder / "optimum-out").glob("*.onnx"))

    return quantize


def _count(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


if __name__ == "__main__":
    main()
