"""How fast each artifact of a bundle is on this board, measured once and kept in a file.

    {"<manifest digest>": {"onnx:int8@onnxruntime-1.30.0,1": 0.000131, …}, …}        seconds

A new version of an engine, or another number of threads, is measured again.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.atomic import write_file
from edgeml.runtime.choose import Board
from edgeml.wire.contract import label
from edgeml.wire.errors import EdgemlError
from edgeml.wire.manifest import Artifact

BUDGET_S: Final = 0.5  # for timing one artifact
LEAST_RUNS: Final = 3
MOST_RUNS: Final = 50
BUNDLES_KEPT: Final = 32

_Kept = dict[str, dict[str, float]]


def default_file() -> Path:
    """Where an application without a data folder of its own keeps it."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgeml" / "latency.json"


def latencies(
    file: Path,
    digest: str,
    artifacts: Iterable[Artifact],
    board: Board,
    *,
    threads: int,
    measure: Callable[[Artifact], float],
) -> dict[str, float]:
    """Seconds a call by label (`onnx:int8`), measuring what the file does not hold yet.

    An artifact that does not open, or fails its golden vectors, is left out: one that cannot be timed is not preferred.
    """
    kept = _read(file)
    held = kept.pop(digest, {})
    fresh: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for artifact in artifacts:
        engine = board.engines[artifact.format]
        key = f"{label(artifact)}@{engine.name}-{engine.version},{threads}"
        if key not in held:
            try:
                fresh[key] = measure(artifact)
            except EdgemlError:
                continue
        seconds[label(artifact)] = held[key] if key in held else fresh[key]
    if fresh:
        newest = dict(list(kept.items())[1 - BUNDLES_KEPT :])
        _write(file, {**newest, digest: {**held, **fresh}})
    return seconds


def time_call(call: Callable[[], object]) -> float:
    """The median seconds of a call that is warm already."""
    times: list[float] = []
    until = time.perf_counter() + BUDGET_S
    while len(times) < LEAST_RUNS or (len(times) < MOST_RUNS and time.perf_counter() < until):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _read(file: Path) -> _Kept:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Kept)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}  # it only saves time: measure again


def _write(file: Path, kept: _Kept) -> None:
    with contextlib.suppress(OSError):  # a full disk costs a measurement at the next start
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, msgspec.json.encode(kept))
