"""What the runtime costs beyond the engine under it:  python -m benchmarks.runtime [--json]

Every figure is a difference taken in one process, round by round, between neighbours in time: bare engine, session, model, and
the window that counts. Beside them, on the same ONNX file: another embeddable runtime library (OpenVINO, where it can be
imported), and the model with its engine in a process of its own. A table shows the median and the 10th and 90th percentile over
the rounds; with `--json` the last line is one object. Memory and import time are measured in fresh processes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks._models import sample, write_conv_bundle
from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.cloud import CloudClient
from edgeml.runtime.cloud_gate import CloudGate
from edgeml.runtime.fallback import Policy
from edgeml.runtime.hybrid import Hybrid
from edgeml.runtime.model import Model, Result, load
from edgeml.runtime.telemetry import Window
from edgeml.wire.manifest import Format

ROUNDS: Final = 300
CALLS: Final = 20  # of one kind in a row, in each round
PROCESSES: Final = 5

_IMPORT: Final = "import numpy, time; t = time.{clock}(); import edgeml.runtime; print(1e3 * (time.{clock}() - t))"
_RSS: Final = """
import gc, re, sys, time
import numpy as np
{body}
gc.collect()
time.sleep({settle_s})
print(int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 1024)
"""
_BARE_ENGINE: Final = """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(open({onnx!r}, "rb").read(), options, providers=["CPUExecutionProvider"])
session.run(None, {{"x": np.zeros((1, 16, 16, 1), np.float32)}})
"""
_MODEL: Final = """
from edgeml.runtime import load
model = load({bundle!r}, format="onnx")
model.run({{"x": np.zeros((16, 16, 1), np.float32)}})
"""
_AGENT: Final = """
from edgeml.runtime import Agent
agent = Agent({config!r})
agent.__enter__()
agent.model("conv").run({{"x": np.zeros((16, 16, 1), np.float32)}})
import atexit; atexit.register(agent.__exit__, None, None, None)
"""


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    p10: float
    p90: float


@dataclass(frozen=True, slots=True)
class EngineCost:
    """Microseconds a call; `session` and `wrapper` are beyond the bare engine, `telemetry` and `fallback` beyond the model."""

    engine: str
    version: str
    bare_us: Spread
    session_us: Spread
    wrapper_us: Spread
    telemetry_us: Spread
    fallback_us: Spread


@dataclass(frozen=True, slots=True)
class Beside:
    """Microseconds a call of the same ONNX file and input, in turn with the bare ONNX Runtime."""

    name: str
    onnxruntime_us: Spread
    call_us: Spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_conv_bundle(Path(folder))
        costs = [_measure(bundle, "onnx"), _measure(bundle, "tflite")]
        beside = [_isolated(bundle), *_openvino(bundle)]
        import_ms, import_cpu_ms = (
            _spread([_child(_IMPORT.format(clock=clock)) for _ in range(PROCESSES)])
            for clock in ("perf_counter", "process_time")
        )
        rss = _resident(bundle, Path(folder))
    _show(costs, beside, {"import beyond numpy, ms": import_ms, "  of these, of a processor": import_cpu_ms}, rss)
    if arguments.json:
        first = costs[0]
        record = {
            "bare_us": first.bare_us.median,
            "wrapper_us": max(cost.wrapper_us.median for cost in costs),
            "telemetry_us": max(cost.telemetry_us.median for cost in costs),
            "fallback_us": max(cost.fallback_us.median for cost in costs),
            "import_ms": import_ms.median,
            "import_cpu_ms": import_cpu_ms.median,
            "idle_rss_mib": rss["agent"] - rss["bare engine"],
            "model_rss_mib": rss["model"] - rss["bare engine"],
            "peers": {cost.engine: asdict(cost) for cost in costs} | {one.name: asdict(one) for one in beside},
        }
        print(json.dumps(record))


def _measure(bundle: Path, format_: Format) -> EngineCost:
    with load(bundle, format=format_) as model:
        x = sample()
        bare = _bare(bundle, format_, x)
        window = Window(model.manifest, now=0.0)
        feed = {"x": x}
        result = model.run(feed)
        cloud = CloudClient("http://127.0.0.1:9", model.name, model.manifest.signature)
        hybrid = Hybrid(model, cloud, CloudGate(Policy(least_score=0.0)))  # sure of everything: nobody is asked
        kinds: list[Callable[[], object]] = [
            bare,
            lambda: model.session.run(feed),
            lambda: model.run(feed),
            lambda: counted(window, feed, result),
            lambda: hybrid.run(feed),
        ]
        rounds = _interleave(kinds)
        engine = _engine(model)
    return EngineCost(
        engine=engine[0],
        version=engine[1],
        bare_us=_spread([times[0] for times in rounds]),
        session_us=_spread([times[1] - times[0] for times in rounds]),
        wrapper_us=_spread([times[2] - times[0] for times in rounds]),
        telemetry_us=_spread([times[3] for times in rounds]),
        fallback_us=_spread([times[4] - times[2] for times in rounds]),
    )


def counted(window: Window, feed: Mapping[str, Array], result: Result) -> None:
    """What telemetry does with a call: its inputs before, its answer after."""
    window.observe(feed)
    window.record(result)


def _isolated(bundle: Path) -> Beside:
    x = sample()
    with load(bundle, format="onnx", isolated=True) as model:
        feed = {"x": x}
        rounds = _interleave([_bare(bundle, "onnx", x), lambda: model.run(feed)])
    return Beside("edgeml, engine isolated", _spread([t[0] for t in rounds]), _spread([t[1] for t in rounds]))


def _openvino(bundle: Path) -> list[Beside]:
    """One thread, latency mode, as its documentation calls it; nothing where it is not installed."""
    try:
        openvino: Any = importlib.import_module("openvino")
    except ImportError:
        print("OpenVINO is not installed here: not compared (pip install openvino)")
        return []
    from benchmarks._models import conv_onnx

    x = sample()
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(openvino.Core().read_model(conv_onnx()), "CPU", settings).create_infer_request()
    feed = {"x": x}
    rounds = _interleave([_bare(bundle, "onnx", x), lambda: request.infer(feed)])
    name = f"openvino {openvino.__version__.partition('-')[0]}"
    return [Beside(name, _spread([t[0] for t in rounds]), _spread([t[1] for t in rounds]))]


def _interleave(kinds: Sequence[Callable[[], object]]) -> list[list[float]]:
    """Microseconds a call of each kind, round by round; the order turns, so that no kind always comes first."""
    for kind in kinds:
        for _ in range(3 * CALLS):
            kind()
    rounds = []
    for number in range(ROUNDS):
        times = [0.0] * len(kinds)
        for step in range(len(kinds)):
            index = (number + step) % len(kinds)
            kind = kinds[index]
            started = time.perf_counter()
            for _ in range(CALLS):
                kind()
            times[index] = 1e6 * (time.perf_counter() - started) / CALLS
        rounds.append(times)
    return rounds


def _bare(bundle: Path, format_: Format, x: Array) -> Callable[[], object]:
    """The engine as its own documentation calls it, one thread, the same file."""
    with open_bundle(bundle) as opened:
        data = opened.blob(next(a.sha256 for a in opened.manifest.artifacts if a.format == format_))
    if format_ == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"x": x})
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run() -> Any:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return run


def _resident(bundle: Path, folder: Path) -> dict[str, float]:
    """MiB resident, idle, in fresh processes: the bare engine, a loaded model, an agent whose service and broker are away."""
    from benchmarks._models import conv_onnx

    onnx = folder / "conv.onnx"
    onnx.write_bytes(conv_onnx())
    config = _agent_config(bundle, folder)
    bodies = {
        "bare engine": (_BARE_ENGINE.format(onnx=str(onnx)), 0.0),
        "model": (_MODEL.format(bundle=str(bundle)), 0.0),
        "agent": (_AGENT.format(config=str(config)), 2.0),
    }
    return {
        name: statistics.median(_child(_RSS.format(body=body, settle_s=settle_s)) for _ in range(3))
        for name, (body, settle_s) in bodies.items()
    }


def _agent_config(bundle: Path, folder: Path) -> Path:
    config = folder / "agent.toml"
    root = folder / "root.json"
    root.write_text("{}")
    config.write_text(
        f'[device]\nid = "bench"\ndata = "{folder / "data"}"\n'
        f'[service]\nurl = "http://127.0.0.1:9"\ntoken = "none"\nroot = "{root}"\n'
        '[broker]\nurl = "mqtt://127.0.0.1:9"\n'
        f'[models.conv]\nbundle = "{bundle}"\nformat = "onnx"\n'
    )
    return config


def _child(code: str) -> float:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _engine(model: Model) -> tuple[str, str]:
    distribution = {"onnx": "onnxruntime", "tflite": "ai-edge-litert", "coreml": "coremltools"}[model.artifact.format]
    return model.session.backend.engine, version(distribution)


def _spread(values: Sequence[float]) -> Spread:
    ordered = sorted(values)
    at = [round(q * (len(ordered) - 1)) for q in (0.5, 0.1, 0.9)]
    return Spread(*(ordered[i] for i in at))


def _show(costs: Sequence[EngineCost], beside: Sequence[Beside], imports: dict[str, Spread], rss: dict[str, float]) -> None:
    print(f"{'':<36}{'median':>10}{'p10':>10}{'p90':>10}")
    for cost in costs:
        print(f"{cost.engine} {cost.version}")
        rows = (
            ("bare engine, us a call", cost.bare_us),
            ("+ session (checks, names), us", cost.session_us),
            ("+ model (label, score, id), us", cost.wrapper_us),
            ("+ telemetry, us", cost.telemetry_us),
            ("+ fall-back that is not needed, us", cost.fallback_us),
        )
        for name, spread in rows:
            print(f"  {name:<34}{spread.median:>10.2f}{spread.p10:>10.2f}{spread.p90:>10.2f}")
    print("in turn with the bare ONNX Runtime, us a call")
    for one in beside:
        for name, spread in (("onnxruntime, bare", one.onnxruntime_us), (one.name, one.call_us)):
            print(f"  {name:<34}{spread.median:>10.2f}{spread.p10:>10.2f}{spread.p90:>10.2f}")
    for name, spread in imports.items():
        print(f"{name:<36}{spread.median:>10.1f}{spread.p10:>10.1f}{spread.p90:>10.1f}")
    for name, mib in rss.items():
        print(f"{name + ', idle, MiB resident':<36}{mib:>10.1f}")


if __name__ == "__main__":
    main()
