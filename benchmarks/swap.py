"""Hot swaps at full load:  python -m benchmarks.swap [--json] [--swaps N]

Several threads call the agent's host without a pause while another one changes the version, back and forth. Every answer is
computed again in numpy for the version that it says it is from. The second pass keeps the engine in a process of its own, and
its delegate segfaults on demand: while a version is loaded (it must be refused, and the old one go on) and in the middle of a
call (that one call is an error, all others are answered).

dropped: calls without an answer beyond those that were told to crash · wrong: answers that are not of the version they name
rss_growth: resident memory of the process and its children, the last ten swaps against ten after the warm-up
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from edgeml.runtime.backends import OpenBackend, opener
from edgeml.runtime.config import AgentConfig, DeviceTable, ModelTable
from edgeml.runtime.host import Host
from edgeml.runtime.isolated import IsolatedBackend
from edgeml.wire.errors import EdgemlError, EngineDownError
from edgeml.wire.manifest import Format
from tests.unit import crashing
from tests.unit.bundles import logits, make_bundle, samples

CALLERS: Final = 4
WARM_SWAPS: Final = 15  # until the engine's and Python's own pools have their size
LOOKED_AT: Final = 10  # swaps whose memory is averaged, at the start and at the end
CRASH_EVERY: Final = 10  # swaps
WINDOW_EVERY: Final = 10  # swaps; an agent tells its windows every minute, and with them goes what was left of old versions
BIASES: Final = {"1.0.0": 0.0, "1.1.0": 50.0}  # so that one number tells the versions apart
SETTLE_S: Final = 0.05


@dataclass(slots=True)
class Load:
    """What the callers saw."""

    answers: int = 0
    dropped: int = 0
    wrong: int = 0
    crashed: int = 0
    slowest_s: float = 0.0
    problems: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class Pass:
    name: str
    swaps: int
    refused: int
    seconds: float
    load: Load
    rss_before_mib: float
    rss_after_mib: float

    @property
    def rss_growth(self) -> float:
        return self.rss_after_mib / self.rss_before_mib - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    parser.add_argument("--swaps", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {version: make_bundle(Path(folder), version=version, bias=bias) for version, bias in BIASES.items()}
        flag = Path(folder) / "crash"
        os.environ[crashing.FLAG] = str(flag)
        passes = [run_pass(bundles, arguments.swaps, flag=None), run_pass(bundles, arguments.swaps, flag=flag)]
    show(passes)
    if arguments.json:
        record = {
            "swaps": sum(one.swaps for one in passes),
            "dropped": sum(one.load.dropped for one in passes),
            "wrong": sum(one.load.wrong for one in passes),
            "rss_growth": max(one.rss_growth for one in passes),
            "answers": sum(one.load.answers for one in passes),
            "crashes": sum(one.load.crashed + one.refused for one in passes),
        }
        print(json.dumps(record))


def run_pass(bundles: dict[str, Path], swaps: int, *, flag: Path | None) -> Pass:
    """`flag` makes the engine isolated, and crash at opening while that file is there."""
    is_isolated = flag is not None
    table = ModelTable(format="onnx", precision="fp32", isolated=is_isolated)
    host = Host(
        AgentConfig(DeviceTable("bench", "data"), models={"toy": table}), engines=crashing_engines if is_isolated else opener
    )
    digests = {version: host.check("toy", path) for version, path in bundles.items()}
    versions = sorted(bundles)
    host.switch("toy", digests[versions[0]], bundles[versions[0]])
    load, stop = Load(), threading.Event()
    callers = [threading.Thread(target=call, args=(host, load, stop, seed), daemon=True) for seed in range(CALLERS)]
    for caller in callers:
        caller.start()
    resident: list[float] = []
    sequence = itertools.count(1)
    refused = 0
    started = time.perf_counter()
    for number in range(WARM_SWAPS + swaps):
        version = versions[(number + 1) % 2]
        if flag is not None and number % CRASH_EVERY == 0:
            refused += is_refused(host, flag, digests[version], bundles[version])
            crash_one(host, load)
        host.switch("toy", digests[version], bundles[version])
        if number % WINDOW_EVERY == 0:
            for _ in host.windows("bench", 1, sequence.__next__):
                pass
        resident.append(settled_mib(host))
    seconds = time.perf_counter() - started
    stop.set()
    for caller in callers:
        caller.join()
    host.close()
    before, after = resident[WARM_SWAPS : WARM_SWAPS + LOOKED_AT], resident[-LOOKED_AT:]
    name = "engine isolated, crashing on demand" if is_isolated else "engine within"
    return Pass(name, swaps, refused, seconds, load, statistics.fmean(before), statistics.fmean(after))


def call(host: Host, load: Load, stop: threading.Event, seed: int) -> None:
    x = samples(64, seed)
    while not stop.is_set():
        for one in x:
            started = time.perf_counter()
            try:
                result = host.run("toy", {"x": one})
            except EdgemlError as error:
                with load.lock:
                    load.dropped += 1
                    load.problems.add(str(error))
                continue
            took_s = time.perf_counter() - started
            is_right = np.allclose(result.outputs["logits"], logits(one, BIASES[result.version]), atol=1e-4)
            with load.lock:
                load.answers += 1
                load.wrong += not is_right
                load.slowest_s = max(load.slowest_s, took_s)


def crash_one(host: Host, load: Load) -> None:
    """One call that the delegate does not survive; it must be told so."""
    try:
        host.run("toy", {"x": np.array([crashing.SEGFAULT, 0, 0, 0], np.float32)})
    except EngineDownError:
        load.crashed += 1


def is_refused(host: Host, flag: Path, digest: str, path: Path) -> bool:
    """A version whose delegate crashes while it is opened."""
    flag.touch()
    try:
        host.switch("toy", digest, path)
    except EngineDownError:
        return True
    finally:
        flag.unlink()
    return False


def settled_mib(host: Host) -> float:
    """Resident MiB of the process and its engine, when the old version's has gone."""
    gc.collect()
    me = psutil.Process()
    serving = host.serving("toy")
    backend = serving.model.session.backend if serving is not None else None
    allowed = {backend.pid} if isinstance(backend, IsolatedBackend) else set()
    while {child.pid for child in me.children()} - allowed:
        time.sleep(SETTLE_S)
    time.sleep(SETTLE_S)
    total: int = me.memory_info().rss + sum(psutil.Process(pid).memory_info().rss for pid in allowed if pid is not None)
    return total / 2**20


def crashing_engines(format_: Format) -> OpenBackend:
    assert format_ == "onnx"
    return crashing.open_crashing


def show(passes: list[Pass]) -> None:
    rows: list[tuple[str, Callable[[Pass], Any]]] = [
        ("swaps (after a warm-up)", lambda p: p.swaps),
        ("answers", lambda p: p.load.answers),
        ("dropped", lambda p: p.load.dropped),
        ("wrong version or value", lambda p: p.load.wrong),
        ("crashed while loading, refused", lambda p: p.refused),
        ("crashed in a call, one error each", lambda p: p.load.crashed),
        ("slowest answer, ms", lambda p: f"{1e3 * p.load.slowest_s:.1f}"),
        ("answers a second", lambda p: f"{p.load.answers / p.seconds:.0f}"),
        ("resident before, MiB", lambda p: f"{p.rss_before_mib:.1f}"),
        ("resident after, MiB", lambda p: f"{p.rss_after_mib:.1f}"),
        ("growth", lambda p: f"{100 * p.rss_growth:+.1f} %"),
    ]
    print(f"{'':<36}" + "".join(f"{one.name:>38}" for one in passes))
    for name, value in rows:
        print(f"{name:<36}" + "".join(f"{value(one):>38}" for one in passes))
    for problem in sorted(set().union(*(one.load.problems for one in passes))):
        print(f"dropped: {problem}")


if __name__ == "__main__":
    main()
