"""A process that loads one artifact, calls it, and says how long everything took.

A round is a fresh process, so that its memory is its own and a crash is one artifact's. The request comes on stdin, the answer
goes to stdout, where nothing else may go.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.bundle import Bundle, open_bundle
from edgeml.runtime.golden import sample_as, self_test
from edgeml.runtime.session import Session, open_session
from edgeml.wire.contract import label
from edgeml.wire.errors import EdgemlError
from edgeml.wire.manifest import Artifact, Format
from edgeml.wire.structs import learn

WARM_CALLS: Final = 5
WARM_S: Final = 0.5  # a slow model is warm after fewer
LEAST_CALLS: Final = 3
KIB: Final = 1024
ENGINES: Final[dict[Format, tuple[str, ...]]] = {  # the first that is there
    "onnx": ("onnxruntime",),
    "tflite": ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"),
    "coreml": ("coremltools",),
}

Feed = Mapping[str, Array]


class Request(msgspec.Struct, frozen=True):
    """`calls` are made unless `limit_s` is over before; `prove` runs the golden vectors first."""

    bundle: str
    artifact: str
    calls: int
    limit_s: float | None
    threads: int
    prove: bool


class Answer(msgspec.Struct, frozen=True):
    """`error` is what stood in the way, everything else empty then. `peak_bytes` is `None` where the system does not say."""

    engine: str = ""
    load_s: float = 0.0
    first_s: float = 0.0
    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    error: str | None = None


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # engines print
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        answer = measure(request)
    except EdgemlError as error:
        answer = Answer(error=str(error))
    with os.fdopen(answers, "wb") as out:
        out.write(msgspec.json.encode(answer))


def measure(request: Request) -> Answer:
    """Load, first call, warm calls.

    Raises:
        EdgemlError: the artifact does not open, fails its golden vectors, or fails in a call.
    """
    with open_bundle(request.bundle) as bundle:
        artifact = next(one for one in bundle.manifest.artifacts if label(one) == request.artifact)
        feeds = list(_feeds(bundle))
        before = _memory("VmRSS")
        _import_engine(artifact)
        started = time.perf_counter()
        with open_session(bundle, artifact, options=EngineOptions(threads=request.threads)) as session:
            load_s = time.perf_counter() - started
            first_s = _time(session, feeds[0])
            if request.prove:
                self_test(bundle, artifact, session)
            samples = cycle(feeds)
            _repeat(session, samples, WARM_CALLS, WARM_S)
            seconds = _repeat(session, samples, request.calls, request.limit_s)
            peak = _memory("VmHWM")
            engine = f"{session.backend.engine} {session.backend.version}"
    return Answer(engine, load_s, first_s, tuple(seconds), None if peak is None or before is None else max(0, peak - before))


def _repeat(session: Session, samples: Iterator[Feed], calls: int, limit_s: float | None) -> list[float]:
    """Seconds of `calls` calls, or of as many as fit in the limit and a few at least."""
    seconds: list[float] = []
    until = None if limit_s is None else time.perf_counter() + limit_s
    for feed in islice(samples, calls):
        seconds.append(_time(session, feed))
        if until is not None and len(seconds) >= LEAST_CALLS and time.perf_counter() > until:
            break
    return seconds


def _time(session: Session, feed: Feed) -> float:
    started = time.perf_counter()
    session.run(feed)
    return time.perf_counter() - started


def _feeds(bundle: Bundle) -> Iterator[Feed]:
    """The golden samples; where the bundle has none, one of zeros."""
    signature, golden = bundle.manifest.signature, bundle.manifest.golden_inputs
    if not golden:
        yield {s.name: np.zeros([a if isinstance(a, int) else 1 for a in s.shape], s.dtype) for s in signature.inputs}
        return
    inputs = {tensor.name: bundle.tensor(tensor) for tensor in golden}
    for i in range(golden[0].shape[0]):
        yield {spec.name: sample_as(spec, inputs[spec.name][i]) for spec in signature.inputs}


def _import_engine(artifact: Artifact) -> None:
    """Import the engine before the clock runs: its time depends on the disk cache, and a device pays it once."""
    for module in ENGINES[artifact.format]:
        with suppress(ImportError):
            importlib.import_module(module)
            return


def _memory(field: str) -> int | None:
    """Bytes of a field of /proc/self/status."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith(f"{field}:")), None)


learn(__name__)

if __name__ == "__main__":
    main()
