"""What calibration holds in memory as samples grow: a network whose outputs are pictures, 100 and 2,000 samples, each format.

    scripts/bench calibration_memory [--json]

Each case runs in a process of its own. The samples are a file on disk, as in an export; what is told is the most private memory
(not pages of that file, which the system takes back when it wants to) beyond what the process had before it quantized.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.exporter.calibrate.stored import map_arrays
from edgeml.exporter.source.model import write_arrays
from edgeml.runtime.backends import Array

SIDE: Final = 48
COUNTS: Final = (100, 2000)
FORMATS: Final = ("onnx", "tflite")
MIB: Final = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("FORMAT", "COUNT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(_one(asked.one[0], int(asked.one[1]))))
        return
    rows = [_apart(format_, count) for format_ in FORMATS for count in COUNTS]
    print(f"{'format':8} {'samples':>8} {'samples, MiB':>13} {'outputs, MiB':>13} {'held, MiB':>10} {'s':>6}")
    for row in rows:
        print(
            f"{row['format']:8} {row['samples']:8} {row['input_mib']:13.0f} {row['output_mib']:13.0f} "
            f"{row['held_mib']:10.1f} {row['seconds']:6.1f}"
        )
    if asked.json:
        print(json.dumps({"calibration_memory": rows}))


def _apart(format_: str, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.calibration_memory", "--one", format_, str(count)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row: dict[str, float] = json.loads(told.splitlines()[-1])
    return row


def _one(format_: str, count: int) -> dict[str, float | str]:
    model, shape = (_onnx(), (1, SIDE, SIDE)) if format_ == "onnx" else (_tflite(), (SIDE, SIDE, 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.npz"
        write_arrays(path, [np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)])
        feeds = map_arrays(path, ["x"])
        _quantize(format_, model, {"x": feeds["x"][:40]})  # imports and buffers, once
        before, most, start = _private_bytes(), _Most(), time.monotonic()
        with most:
            _quantize(format_, model, feeds)
        seconds = time.monotonic() - start
    elements = count * SIDE * SIDE * 4
    return {
        "format": format_, "samples": count, "input_mib": elements / MIB, "output_mib": 8 * elements / MIB,
        "held_mib": max(0, most.bytes - before) / MIB, "seconds": seconds,
    }  # fmt: skip


def _quantize(format_: str, model: bytes, feeds: dict[str, Array]) -> None:
    if format_ == "onnx":
        from edgeml.exporter.quantize.onnx import smaller_onnx

        smaller_onnx(model, "int8", feeds)
    else:
        from edgeml.exporter.quantize.tflite import smaller_tflite

        smaller_tflite(model, "int8", feeds)


def _private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class _Most:
    """The most private memory while it is open, looked at every 5 ms."""

    def __init__(self) -> None:
        self.bytes, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, _private_bytes())

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _weights() -> tuple[Array, Array]:
    chance = np.random.default_rng(1)
    return chance.normal(0, 0.3, (8, 3, 3, 1)).astype(np.float32), chance.normal(0, 0.1, (8, 3, 3, 8)).astype(np.float32)


def _onnx() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    first, second = (kernel.transpose(0, 3, 1, 2) for kernel in _weights())
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["y"], pads=[1] * 4),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "pictures",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, SIDE, SIDE])],
        [numpy_helper.from_array(np.ascontiguousarray(first), "a"), numpy_helper.from_array(np.ascontiguousarray(second), "b")],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString())


def _tflite() -> bytes:
    from benchmarks._models import pictures_tflite

    return pictures_tflite(SIDE, *_weights())


if __name__ == "__main__":
    main()
