"""int8 on MLPerf Tiny's five published models: ours beside what rivals' defaults give, from the same samples.

    python -m benchmarks.int8_peers [--json] [--models kws,ad] [--data FOLDER]

Rivals: ONNX Runtime's `quantize_static` as it comes, and per channel with `reduce_range`; TFLiteConverter's full int8;
ai-edge-quantizer's `static_wi8_ai8`. Each quantizes in a process of its own (wall time without imports, peak memory with them).
`agree`: same class as fp32 · `max`: largest |difference| of an output · `rms`: rms difference / standard deviation of fp32 ·
`corr`: correlation of anomaly scores (mean squared error of the reconstruction) · `drop`: points of accuracy, one-sided 95 %
bound in brackets · `kernel`: what of `max` comes from this machine's kernels. Nothing is chosen by evaluation samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks._int8_data import Split, load
from edgeml.exporter.calibrate.feeds import outputs
from edgeml.exporter.parity import score
from edgeml.runtime.backends import Array, EngineOptions, opener
from edgeml.wire.errors import EdgemlError
from edgeml.wire.manifest import Format

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = {
    "kws": ("kws_dscnn_savedmodel", "savedmodel"),
    "resnet8": ("ic_resnet8.h5", "keras-h5"),
    "vww": ("vww_mobilenetv1.h5", "keras-h5"),
    "sww": ("sww_ds_tcn.h5", "keras-h5"),
    "ad": ("ad_autoencoder.h5", "keras-h5"),
}
QUANTIZERS: Final[dict[str, Format]] = {
    "edgeml-onnx": "onnx",
    "ort": "onnx",
    "ort-per-channel": "onnx",
    "edgeml-tflite": "tflite",
    "tflite-converter": "tflite",
    "ai-edge-quantizer": "tflite",
}


@dataclass(frozen=True, slots=True)
class Row:
    model: str
    quantizer: str
    format: str
    bytes: int
    max: float
    rms: float
    kernel: float
    agree: float | None
    corr: float | None
    drop: float | None
    upper95: float | None
    wall_s: float
    rss_mib: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", default=",".join(SOURCES))
    parser.add_argument("--data", type=Path, default=None, help="folder with kws01.npz, cifar10_jpeg1000.npz, …")
    parser.add_argument("--child", nargs=3, metavar=("QUANTIZER", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child)
        return
    data = asked.data or found("data")
    rows = []
    for name in asked.models.split(","):
        for row in measured(name, load(name, data)):
            rows.append(row)
            if not asked.json:
                print(text(row), flush=True)
    if asked.json:
        print(json.dumps({"int8_peers": [asdict(row) for row in rows]}))


def found(name: str) -> Path:
    """The folder `name` in EDGEML_MODELS, the models' cache, or beside the checkout."""
    places = [Path(os.environ["EDGEML_MODELS"])] if os.environ.get("EDGEML_MODELS") else []
    places += [Path.home() / ".cache" / "edgeml" / "models", ROOT.parent / "shared" / "models", ROOT.parent / "shared"]
    for place in places:
        for folder in (place / name, place.parent / name):
            if folder.is_dir():
                return folder
    sys.exit(f"no {name!r} here: run scripts/models, or set EDGEML_MODELS to the folder that holds it")


def measured(name: str, split: Split) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="edgeml-int8-") as temporary:
        folder = Path(temporary)
        np.save(folder / "calibrate.npy", split.calibrate)
        run_child("convert", name, folder)
        for quantizer, format_ in QUANTIZERS.items():
            spent = run_child(quantizer, name, folder)
            reference = answers((folder / f"fp32.{format_}").read_bytes(), format_, split.evaluate)
            model = (folder / quantizer).read_bytes()
            got, exact = (answers(model, format_, split.evaluate, kernels) for kernels in ("stock", "exact"))
            spent = spent | {"model": name, "quantizer": quantizer, "format": format_, "bytes": len(model)}
            yield Row(kernel=float(np.abs(got - exact).max()), **spent, **compared(name, split, reference, got))


def run_child(quantizer: str, name: str, folder: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_USE_LEGACY_KERAS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.int8_peers", "--child", quantizer, name, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{quantizer} on {name} failed: {ended.stderr[-2000:]}")
    spent: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return spent


def compared(name: str, split: Split, reference: Array, got: Array) -> dict[str, Any]:
    difference = np.abs(got.astype(np.float64) - reference)
    found: dict[str, Any] = dict.fromkeys(("agree", "corr", "drop", "upper95"))
    found |= {"max": float(difference.max()), "rms": float(np.sqrt(np.mean(difference**2)) / reference.std())}
    if name == "ad":
        scores = [np.mean((each - split.evaluate) ** 2, axis=1) for each in (reference, got)]
        return found | {"corr": float(np.corrcoef(*scores)[0, 1])}
    found["agree"] = float(np.mean(reference.argmax(axis=-1) == got.argmax(axis=-1)))
    if split.labels is not None:
        task = score({"y": reference}, {"y": got}, split.labels, task="classify", budget=1.0)
        found |= {"drop": task.drop, "upper95": task.upper95}
    return found


def text(row: Row) -> str:
    quality = f"agree {row.agree:.4f}" if row.agree is not None else f"corr {row.corr:.4f}"
    drop = f"drop {row.drop:+.2f} [{row.upper95:.2f}]" if row.drop is not None else ""
    return (
        f"{row.model:8} {row.quantizer:18} {row.bytes:8,} {quality:14} max {row.max:8.4f} rms {row.rms:.4f} "
        f"kernel {row.kernel:.4f} {drop:20} {row.wall_s:5.1f} s {row.rss_mib:5} MiB"
    )


def answers(model: bytes, format_: Format, x: Array, kernels: str = "stock") -> Array:
    """The model's first output as reals, samples on axis 0; integer inputs and outputs by their own scale."""
    backend = opener(format_)(model, EngineOptions(kernels=kernels))
    given, taken = backend.inputs[0], backend.outputs[0]
    if given.quantization is not None:
        limits = np.iinfo(given.dtype)
        codes = np.round(x / given.quantization.scale) + given.quantization.zero_point
        x = np.clip(codes, limits.min, limits.max).astype(given.dtype)
    y = outputs(backend, {given.name: x})[0]
    y = y.reshape(len(x), -1)
    if taken.quantization is not None:
        y = (y.astype(np.float32) - taken.quantization.zero_point) * np.float32(taken.quantization.scale)
    return y


def child(quantizer: str, name: str, place: str) -> None:
    """Convert or quantize in this process; the last line printed is what it took."""
    folder = Path(place)
    if quantizer == "convert":
        convert(name, folder)
        print("{}")
        return
    x: Array = np.load(folder / "calibrate.npy")
    work = WORK[quantizer](name, folder, x)
    start = time.perf_counter()
    (folder / quantizer).write_bytes(work())
    wall = time.perf_counter() - start
    print(json.dumps({"wall_s": round(wall, 2), "rss_mib": peak_mib()}))


def peak_mib() -> int:
    """This process's own peak; `ru_maxrss` would begin with its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def convert(name: str, folder: Path) -> None:
    """fp32 in both formats, and as TensorFlow's converter writes it by itself, with the signature that a rival needs."""
    from edgeml.exporter.convert import onnx, tflite

    path, kind = SOURCES[name]
    source = {"path": str(found("mlperf-tiny") / path), "kind": kind}
    onnx.from_tensorflow(source, str(folder / "fp32.onnx"))
    tflite.from_tensorflow(source, str(folder / "fp32.tflite"))
    (folder / "signed.tflite").write_bytes(converter(name).convert())


def converter(name: str) -> Any:
    import tensorflow as tf

    path, kind = SOURCES[name]
    full = str(found("mlperf-tiny") / path)
    if kind == "savedmodel":
        return tf.lite.TFLiteConverter.from_saved_model(full)
    import tf_keras

    return tf.lite.TFLiteConverter.from_keras_model(tf_keras.models.load_model(full, compile=False))


Work = Callable[[], bytes]


def ours(format_: Format) -> Callable[[str, Path, Array], Work]:
    def work(_: str, folder: Path, x: Array) -> Work:
        from edgeml.exporter.quantize.onnx import to_int8_onnx
        from edgeml.exporter.quantize.tflite import to_int8_tflite

        model = (folder / f"fp32.{format_}").read_bytes()
        feeds = {opener(format_)(model, EngineOptions()).inputs[0].name: x}
        quantize = to_int8_onnx if format_ == "onnx" else to_int8_tflite
        return lambda: quantize(model, feeds).model

    return work


def ort(**options: bool) -> Callable[[str, Path, Array], Work]:
    def work(_: str, folder: Path, x: Array) -> Work:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        name = onnx.load(folder / "fp32.onnx").graph.input[0].name

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library is untyped
            def __init__(self) -> None:
                self.samples = iter(x)

            def get_next(self) -> dict[str, Array] | None:
                sample = next(self.samples, None)
                return None if sample is None else {name: sample[np.newaxis]}

        def quantize() -> bytes:
            quant_pre_process(folder / "fp32.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
            quantize_static(folder / "ready.onnx", folder / "int8.onnx", Reader(), **options)
            return (folder / "int8.onnx").read_bytes()

        return quantize

    return work


def tensorflow_int8(name: str, _: Path, x: Array) -> Work:
    import tensorflow as tf

    made = converter(name)
    made.optimizations = [tf.lite.Optimize.DEFAULT]
    made.representative_dataset = lambda: ([sample[np.newaxis]] for sample in x)
    made.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    made.inference_input_type = made.inference_output_type = tf.int8
    return lambda: bytes(made.convert())


def ai_edge(_: str, folder: Path, x: Array) -> Work:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    model = (folder / "signed.tflite").read_bytes()
    key, signature = next(iter(Interpreter(model_content=model).get_signature_list().items()))
    name = signature["inputs"][0]

    def quantize() -> bytes:
        made = quantizer.Quantizer(bytearray(model), recipe.static_wi8_ai8())
        ranges = made.calibrate({key: [{name: sample[np.newaxis]} for sample in x]}, num_threads=1)
        return bytes(made.quantize(ranges, enable_progress_report=False).quantized_model)

    return quantize


WORK: Final[dict[str, Callable[[str, Path, Array], Work]]] = {
    "edgeml-onnx": ours("onnx"),
    "edgeml-tflite": ours("tflite"),
    "ort": ort(),
    "ort-per-channel": ort(per_channel=True, reduce_range=True),
    "tflite-converter": tensorflow_int8,
    "ai-edge-quantizer": ai_edge,
}


if __name__ == "__main__":
    try:
        main()
    except EdgemlError as error:
        sys.exit(str(error))
