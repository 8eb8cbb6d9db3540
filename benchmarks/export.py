"""What an export costs in time and memory, how the zoo fares, and how rivals do: the whole of the exporter in one object.

    scripts/bench export [--json] [--rounds 3] [--only kws]

MLPerf Tiny's keyword spotter goes to ONNX, TFLite and Core ML in fp32, fp16 and int8, by the command line.
*Wall* is with the operating system's caches warm and edgeml's own cache empty, *cached* is the same command again. *Memory* is
the largest sum of resident sizes over the whole tree of processes, looked at every 50 ms; pages that processes share count once
for each of them. The zoo and the rivals go on from the results that are there (`zoo`, `int8_peers`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from benchmarks import int8_peers
from benchmarks.zoo import results
from benchmarks.zoo.registry import ZOO
from benchmarks.zoo.running import FORMATS, PRECISIONS

MODEL: Final = "mlperf-kws"
LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Spent:
    wall_s: float
    rss_mib: float
    processor_s: float
    stages: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("kws",), default=None)
    asked = parser.parse_args()
    found = timings(asked.rounds)
    if asked.only is None:
        found |= whole()
    if asked.json:
        print(json.dumps(found))


def timings(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgeml-export-") as temporary:
        folder = Path(temporary)
        splits = ZOO[MODEL].splits()
        splits.calibrate.write(folder / "calibrate.npz")
        splits.evaluate.write(folder / "evaluate.npz")
        spent_on(folder, "to-warm")
        fresh, cached = [], []
        for number in range(rounds):
            fresh.append(spent_on(folder, f"round-{number}"))
            cached.append(spent_on(folder, f"round-{number}"))
    for name, some in (("wall", fresh), ("cached", cached)):
        seconds = sorted(one.wall_s for one in some)
        memory = max(one.rss_mib for one in some)
        print(
            f"kws {name:6} {median(seconds):6.1f} s ({seconds[0]:.1f} to {seconds[-1]:.1f}), "
            f"{median(one.processor_s for one in some):.1f} s of processor, at most {memory:,.0f} MiB",
            file=sys.stderr,
        )
        slowest = sorted(some[-1].stages.items(), key=lambda stage: -stage[1])[:6]
        print("  " + ", ".join(f"{stage} {taken:.1f} s" for stage, taken in slowest), file=sys.stderr)
    return {
        "kws_wall_s": round(median(one.wall_s for one in fresh), 1),
        "kws_cached_s": round(median(one.wall_s for one in cached), 1),
        "kws_rss_mib": round(max(one.rss_mib for one in (*fresh, *cached))),
        "kws_processor_s": round(median(one.processor_s for one in fresh), 1),
        "load": round(os.getloadavg()[0], 1),
    }


def spent_on(folder: Path, cache: str) -> Spent:
    """One export by the command line, with the cache `cache`."""
    out = folder / "out"
    command = [
        sys.executable, "-m", "edgeml.cli", "export", ZOO[MODEL].source, "--to", FORMATS, "--precision", PRECISIONS,
        "--calib", str(folder / "calibrate.npz"), "--eval", str(folder / "evaluate.npz"), "--name", "kws", "-o", str(out),
    ]  # fmt: skip
    environment = {**os.environ, "EDGEML_CACHE": str(folder / cache)}
    before = os.times()
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_rss(process.pid))
            time.sleep(LOOK_S)
        wall = time.perf_counter() - started
        told = process.stderr.read() if process.stderr is not None else ""
    if process.returncode:
        sys.exit(f"the export of {MODEL} ended with {process.returncode}: {told[-2000:]}")
    after = os.times()
    report = json.loads((out / "kws-0.1.0.report.json").read_text(encoding="utf-8"))
    stages = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    for path in out.iterdir():
        path.unlink()
    return Spent(wall, peak / 2**20, processor, stages)


def tree_rss(pid: int) -> int:
    """Bytes that the process and all its descendants have resident."""
    total = 0
    try:
        for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        pass
    return total


def whole() -> dict[str, Any]:
    """The zoo's summary over all its models, and the rivals'."""
    for command in (["benchmarks.zoo", "export"], ["benchmarks.int8_peers", "--json"]):
        subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    rivals = int8_peers.summary(int8_peers.read(int8_peers.place()).values())
    return results.summary(results.read(results.place()).values()) | {"peers": rivals}


if __name__ == "__main__":
    main()
