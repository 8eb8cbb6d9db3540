"""Ours and the rivals, each as a process of its own: one quantized file, its wall time without imports, its peak memory.

    python -m benchmarks._quantizers NAME FOLDER

`FOLDER` is `_subject.prepare`'s; the result is FOLDER/NAME and the last line printed.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks._subject import Facts, read_calibration, read_facts
from edgeml.exporter.artifact import warm_tools
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import Format

FORMAT: Final[dict[str, Format]] = {
    "edgeml-onnx": "onnx",
    "ort": "onnx",
    "ort-per-channel": "onnx",
    "olive": "onnx",
    "optimum": "onnx",
    "edgeml-tflite": "tflite",
    "tflite-converter": "tflite",
    "ai-edge-quantizer": "tflite",
    "edgeml-coreml": "coreml",
    "coremltools": "coreml",
}
KERAS: Final = frozenset({"keras", "keras-h5", "savedmodel"})
SMALLER: Final[dict[Format, tuple[str, str]]] = {
    "onnx": ("onnx", "smaller_onnx"),
    "tflite": ("tflite", "smaller_tflite"),
    "coreml": ("coreml", "smaller_coreml"),
}
Work = Callable[[], bytes]


class Inapplicable(Exception):  # noqa: N818 - not an error: a rival that does not take such a source
    """Why a rival cannot be asked."""


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    facts = read_facts(folder)
    try:
        work = WORK[name](folder, facts)
        started = time.perf_counter()
        made = work()
    except Inapplicable as reason:
        print(json.dumps({"inapplicable": str(reason)}))
        return
    wall = time.perf_counter() - started
    (folder / name).write_bytes(made)
    print(json.dumps({"wall_s": round(wall, 2), "rss_mib": peak_mib(), "bytes": len(made)}))


def peak_mib() -> int:
    """This process's own peak; `ru_maxrss` would begin with its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def ours(format_: Format) -> Callable[[Path, Facts], Work]:
    """What an export calls for int8, before anything is kept in float."""

    def work(folder: Path, facts: Facts) -> Work:
        module, name = SMALLER[format_]
        quantize = getattr(importlib.import_module(f"edgeml.exporter.quantize.{module}"), name)
        warm_tools(format=format_)
        feeds, model = read_calibration(folder, facts, format_), (folder / f"fp32.{format_}").read_bytes()
        return lambda: bytes(quantize(model, "int8", feeds).model)

    return work


def ort(**options: bool) -> Callable[[Path, Facts], Work]:
    def work(folder: Path, facts: Facts) -> Work:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        feeds = read_calibration(folder, facts, "onnx")

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library is untyped
            def __init__(self) -> None:
                self.at = 0

            def get_next(self) -> dict[str, Array] | None:
                self.at += 1
                if self.at > len(next(iter(feeds.values()))):
                    return None
                return {name: values[self.at - 1 : self.at] for name, values in feeds.items()}

        def quantize() -> bytes:
            quant_pre_process(folder / "fp32.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
            quantize_static(folder / "ready.onnx", folder / "int8.onnx", Reader(), **options)
            return (folder / "int8.onnx").read_bytes()

        return quantize

    return work


def tensorflow_int8(folder: Path, facts: Facts) -> Work:
    if facts.kind not in KERAS:
        raise Inapplicable("it takes Keras models and SavedModels alone")
    import tensorflow as tf

    samples = next(iter(np.load(folder / "calibrate.npz", allow_pickle=False).values()))
    made = _converter(tf, facts)
    made.optimizations = [tf.lite.Optimize.DEFAULT]
    made.representative_dataset = lambda: ([sample[np.newaxis]] for sample in samples)
    made.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    made.inference_input_type = made.inference_output_type = tf.int8
    return lambda: bytes(made.convert())


def _converter(tf: Any, facts: Facts) -> Any:
    if facts.kind == "savedmodel":
        return tf.lite.TFLiteConverter.from_saved_model(facts.source)
    if facts.kind == "keras-h5":
        import tf_keras as keras
    else:
        import keras
    return tf.lite.TFLiteConverter.from_keras_model(keras.models.load_model(facts.source, compile=False))


def ai_edge(folder: Path, facts: Facts) -> Work:
    """On our fp32 file; where it has no signature, which this rival needs, on what TensorFlow's converter writes."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    model = (folder / "fp32.tflite").read_bytes()
    signatures = Interpreter(model_content=model).get_signature_list()
    if not signatures:
        if facts.kind not in KERAS:
            raise Inapplicable("our fp32 TFLite has no signature, which it needs")
        import tensorflow as tf

        model = _converter(tf, facts).convert()
        signatures = Interpreter(model_content=model).get_signature_list()
    key, signature = next(iter(signatures.items()))
    feeds = list(read_calibration(folder, facts, "tflite").values())
    names = _in_order(Interpreter(model_content=model), signature["inputs"], key)
    rows = [{name: values[i : i + 1] for name, values in zip(names, feeds, strict=True)} for i in range(len(feeds[0]))]

    def quantize() -> bytes:
        made = quantizer.Quantizer(bytearray(model), recipe.static_wi8_ai8())
        ranges = made.calibrate({key: rows}, num_threads=1)
        return bytes(made.quantize(ranges, enable_progress_report=False).quantized_model)

    return quantize


def _in_order(interpreter: Any, names: list[str], key: str) -> list[str]:
    """A signature's input names in the order of the model's inputs."""
    runner = interpreter.get_signature_runner(key)
    by_index = {details["index"]: name for name, details in runner.get_input_details().items() if name in names}
    return [by_index[details["index"]] for details in interpreter.get_input_details()]


def coremltools_int8(folder: Path, _: Facts) -> Work:
    """Weights as `linear_quantize_weights` does it by default, on the float16 program that coremltools writes by default."""
    from edgeml.exporter.convert.coreml import coremltools, packed
    from edgeml.exporter.mil.package import unpack_mlpackage
    from edgeml.exporter.quantize.coreml import to_fp16_coreml

    ct = coremltools()
    place = folder / "fp16.mlpackage"
    unpack_mlpackage(to_fp16_coreml((folder / "fp32.coreml").read_bytes()), place)
    model = ct.models.MLModel(str(place), skip_model_load=True)
    from coremltools.optimize import coreml as compress

    settings = compress.OptimizationConfig(global_config=compress.OpLinearQuantizerConfig())

    return lambda: packed(compress.linear_quantize_weights(model, settings))


WORK: Final[dict[str, Callable[[Path, Facts], Work]]] = {
    "edgeml-onnx": ours("onnx"),
    "edgeml-tflite": ours("tflite"),
    "edgeml-coreml": ours("coreml"),
    "ort": ort(),
    "ort-per-channel": ort(per_channel=True, reduce_range=True),
    "tflite-converter": tensorflow_int8,
    "ai-edge-quantizer": ai_edge,
    "coremltools": coremltools_int8,
}


if __name__ == "__main__":
    main()
