"""A model ready to answer: the best artifact of a bundle, checked, self-tested and warm."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import msgspec
import numpy as np

from edgeml.runtime.aio import Threads
from edgeml.runtime.backends import PROVIDER_ORDER, Array, EngineOptions, OpenBackend, PlacedBackend, Provider, opener
from edgeml.runtime.bundle import Bundle, open_bundle
from edgeml.runtime.choose import Board, candidates, choose, this_board
from edgeml.runtime.golden import GoldenResult, sample_as
from edgeml.runtime.golden import self_test as run_self_test
from edgeml.runtime.session import Session, open_session
from edgeml.runtime.setup import Setup
from edgeml.wire.errors import EngineError, SelfTestError
from edgeml.wire.manifest import Artifact, Deferral, Format, Manifest, PostProcessing, Precision, TensorSpec

Engines = Callable[[Format], OpenBackend]  # such as `opener`

DEFAULT_SETUP: Final = Setup()
WARM_RUNS: Final = 2  # the first run allocates, the second shows that it is over


@dataclass(frozen=True, slots=True)
class Result:
    """One answer.

    `label`, `class_index` and `score` are of the output that the manifest's post-processing names: `None` for tasks without
    classes and for several samples in one call. `fallback` says why the answer did not come from where it was wanted first.
    """

    outputs: dict[str, Array]
    label: str | None
    class_index: int | None
    score: float | None
    source: Literal["device", "cloud"]
    latency_s: float
    model: str
    version: str
    request_id: str
    fallback: str | None = None


class Model:
    """A loaded bundle. Thread-safe; a context manager that frees the engine.

    `reason` says why this artifact was picked, `golden` what the self-test found (`None` if it was left out), `warm_latency_s`
    what one call took when it was warm (`None` if nobody measured).
    """

    def __init__(
        self,
        manifest: Manifest,
        session: Session,
        *,
        reason: str = "",
        golden: GoldenResult | None = None,
        warm_latency_s: float | None = None,
        setup: Setup = DEFAULT_SETUP,
    ) -> None:
        self.manifest = manifest
        self.session = session
        self.artifact: Artifact = session.artifact
        self.name: str = manifest.name
        self.version: str = manifest.version
        self.digest = manifest.digest
        self.reason = reason
        self.golden = golden
        self.warm_latency_s = warm_latency_s
        self.setup = setup
        self._reader = AnswerReader(manifest, session.artifact.deferral)
        self._cloud_reader = AnswerReader(manifest)
        self._answer = session.run
        if setup.max_batch > 1 and session.batches:
            from edgeml.runtime.batching import Batcher

            self._answer = Batcher(session, max_batch=setup.max_batch, max_wait_s=setup.max_wait_s).run
        elif setup.max_batch > 1:
            self.reason += ", calls are not batched because the model file has a fixed batch"
        self._threads = Threads(setup.max_batch, "edgeml-run")

    def run(self, inputs: Mapping[str, Array], *, request_id: str | None = None, deadline_s: float | None = None) -> Result:
        """Answer on this device.

        Raises:
            InputError: the inputs do not fit the signature.
            DeadlineError: no answer within `deadline_s`, or within the model's own deadline.
            EngineError: the engine failed, or gave values that are not finite.
        """
        started = time.perf_counter()
        outputs = self._answer(inputs, deadline_s=self.setup.deadline_s if deadline_s is None else deadline_s)
        class_index, label, score = self._reader.read(outputs)
        latency_s = time.perf_counter() - started
        identifier = new_request_id() if request_id is None else request_id
        return Result(outputs, label, class_index, score, "device", latency_s, self.name, self.version, identifier)

    async def run_async(
        self, inputs: Mapping[str, Array], *, request_id: str | None = None, deadline_s: float | None = None
    ) -> Result:
        """`run` for an asyncio application: the event loop goes on meanwhile."""
        return await self._threads.run(lambda: self.run(inputs, request_id=request_id, deadline_s=deadline_s))

    @property
    def defer_below(self) -> float | None:
        """The score below which this artifact's answers are better asked of the cloud; `None`: never."""
        deferral, post = self.artifact.deferral, self.manifest.post
        if deferral is not None:
            return deferral.defer_below
        return None if post is None else post.defer_below

    def read(self, outputs: Mapping[str, Array]) -> tuple[int | None, str | None, float | None]:
        """(class index, label, score) of outputs that came from elsewhere, as sure as the source would be of them."""
        return self._cloud_reader.read(outputs)

    def close(self) -> None:
        self._threads.close()
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load(
    path: Path | str,
    *,
    format: Format | None = None,  # noqa: A002 - the field's word
    precision: Precision | None = None,
    threads: int = 1,
    cpus: Sequence[int] = (),
    providers: Sequence[Provider] = PROVIDER_ORDER,
    delegates: Sequence[str] = (),
    isolated: bool = False,
    deadline_s: float | None = None,
    max_batch: int = 1,
    max_wait_s: float = 0.0,
    measure: bool = False,
    self_test: bool = True,
) -> Model:
    """Open a bundle, pick the best artifact for this board, run its golden vectors, warm it up.

    Args:
        path: the bundle.
        format: of the artifact; `None` leaves it to the board.
        precision: of the artifact; `None` leaves it to the board.
        threads: that the engine computes with.
        cpus: the cores that these threads may use; empty means all.
        providers: where ONNX Runtime may compute, in this order; one that is missing, does not start or misses the golden
            vectors gives way to the next.
        delegates: libraries that LiteRT hands work to, by path.
        isolated: keep the engine in a process of its own: its crash is an error, closing it gives all memory back.
        deadline_s: how long a call may take that says nothing else; `None` means that it may take its time.
        max_batch: how many samples of calls that come at the same time may be run as one.
        max_wait_s: how long such a call waits for others beyond the time that the engine is busy.
        measure: time every artifact that can run here, once, and let the fastest answer; kept in the user's cache folder.
        self_test: run the golden vectors.

    Raises:
        BundleError: the bundle's bytes are not what its manifest promises.
        UnsupportedError, MissingExtraError: nothing in it runs here.
        SelfTestError: the artifact does not compute here what it did at export.
        ModelError, EngineError: the engine refuses it.
    """
    file = None
    if measure:
        from edgeml.runtime.latency import default_file

        file = str(default_file())
    engine = EngineOptions(threads, cpus=tuple(cpus), providers=tuple(providers), delegates=tuple(delegates))
    setup = Setup(format, precision, engine, isolated, deadline_s, max_batch, max_wait_s, latency_file=file)
    with open_bundle(path) as bundle:
        return load_as(bundle, setup, self_test=self_test)


def load_open(
    bundle: Bundle,
    *,
    format: Format | None = None,  # noqa: A002 - the field's word
    precision: Precision | None = None,
    threads: int = 1,
    self_test: bool = True,
) -> Model:
    """`load` from a bundle that is open already; it may be closed afterwards."""
    return load_as(bundle, Setup(format, precision, EngineOptions(threads)), self_test=self_test)


def load_as(bundle: Bundle, setup: Setup, *, self_test: bool = True, engines: Engines = opener) -> Model:
    """`load_open` with everything that can be set; `engines` gives the engine for a format."""
    board = this_board()
    measured_s = _measured(bundle, setup, board, engines) if setup.latency_file is not None else None
    choice = choose(bundle.manifest, board, format=setup.format, precision=setup.precision, measured_s=measured_s)
    orders = _orders(setup, choice.artifact)
    reason = choice.reason
    for engine in orders:
        try:
            return _ready(bundle, choice.artifact, replace(setup, engine=engine), engines, reason, self_test=self_test)
        except (EngineError, SelfTestError) as error:
            if engine is orders[-1]:
                raise
            reason += f", not with {engine.providers[0]} ({error})"
    raise AssertionError("the last order returns or raises")


def _orders(setup: Setup, artifact: Artifact) -> list[EngineOptions]:
    """The options to try one after the other: with each provider that is here in front, the CPU last."""
    if artifact.format != "onnx":
        return [setup.engine]
    from edgeml.runtime.backends.onnx import present_providers

    present = present_providers(setup.engine.providers)
    return [replace(setup.engine, providers=present[first:]) for first in range(len(present))]


def _ready(bundle: Bundle, artifact: Artifact, setup: Setup, engines: Engines, reason: str, *, self_test: bool) -> Model:
    session = _open(bundle, artifact, setup, engines)
    try:
        golden = run_self_test(bundle, artifact, session) if self_test else None
        warm_latency_s = _warm(bundle, session)
    except BaseException:
        session.close()
        raise
    if isinstance(session.backend, PlacedBackend) and session.backend.provider != "cpu":
        reason += f", computing on {session.backend.provider}"
    return Model(bundle.manifest, session, reason=reason, golden=golden, warm_latency_s=warm_latency_s, setup=setup)


def _open(bundle: Bundle, artifact: Artifact, setup: Setup, engines: Engines) -> Session:
    open_backend = engines(artifact.format)
    if setup.isolated:
        from edgeml.runtime.isolated import isolate

        open_backend = isolate(open_backend)
    return open_session(bundle, artifact, options=setup.engine, open_backend=open_backend)


def _measured(bundle: Bundle, setup: Setup, board: Board, engines: Engines) -> dict[str, float] | None:
    """Seconds a call of every artifact there is a choice between."""
    from edgeml.runtime.latency import latencies, time_call

    fitting = candidates(bundle.manifest, board, format=setup.format, precision=setup.precision)
    if len(fitting) < 2 or setup.latency_file is None:
        return None

    def measure(artifact: Artifact) -> float:
        with _open(bundle, artifact, setup, engines) as session:
            run_self_test(bundle, artifact, session)
            feed = _feed(bundle, session)
            return time_call(lambda: session.run(feed))

    file, threads = Path(setup.latency_file), setup.engine.threads
    return latencies(file, bundle.digest, fitting, board, threads=threads, measure=measure)


class AnswerReader:
    """Reads class, label and score from outputs, as the manifest's post-processing says.

    score = activation(output / temperature) of the best class; of probabilities without an activation, p^(1 / temperature) over
    the sum of these. With one output p, class 1 where p >= 0.5. An artifact's own temperature goes before the manifest's.
    """

    def __init__(self, manifest: Manifest, deferral: Deferral | None = None) -> None:
        post = manifest.post if manifest.task == "classify" else None
        if post is not None and deferral is not None:
            post = msgspec.structs.replace(post, temperature=deferral.temperature)
        self._post = post
        self._labels = manifest.labels

    def read(self, outputs: Mapping[str, Array]) -> tuple[int | None, str | None, float | None]:
        """(class index, label, score); all `None` where the task has no classes or the call had several samples.

        Raises:
            EngineError: a value is not finite.
        """
        post = self._post
        if post is None:
            for name, array in outputs.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise _not_finite(name)
            return None, None, None
        values = outputs[post.output]
        if values.ndim > 1 and values.size != values.shape[-1]:
            if not np.isfinite(values).all():
                raise _not_finite(post.output)
            return None, None, None
        index, score = _best(values.ravel(), post)
        label = self._labels[index] if index < len(self._labels) else None
        return index, label, score


def new_request_id() -> str:
    """A UUID of version 7: made on the device, sorted by time, kept through fall-back and retries (RFC 9562, 5.7)."""
    noise = int.from_bytes(os.urandom(10), "big")
    value = (time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80 | noise
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _best(values: Array, post: PostProcessing) -> tuple[int, float]:
    index = int(values.argmax())  # numpy gives the first NaN, so one look at the best finds it
    best = float(values[index])
    if best - best != 0.0:
        raise _not_finite(post.output)
    if post.activation == "softmax":
        shifted = values - values[index]
        if post.temperature != 1.0:
            shifted = shifted / post.temperature
        return index, 1.0 / float(np.exp(shifted).sum())
    if post.activation == "sigmoid":
        share = _sigmoid(best / post.temperature)
        return _of_two(share) if values.size == 1 else (index, share)
    if values.size == 1:
        return _of_two(_sharpened(np.asarray([1.0 - best, best]), 1, post.temperature))
    return index, best if post.temperature == 1.0 else _sharpened(values, index, post.temperature)


def _of_two(share: float) -> tuple[int, float]:
    return (1, share) if share >= 0.5 else (0, 1.0 - share)


def _sharpened(shares: Array, index: int, temperature: float) -> float:
    if temperature == 1.0:
        return float(shares[index])
    powers = np.maximum(shares, 0.0) ** (1.0 / temperature)
    return float(powers[index] / powers.sum())


def _sigmoid(x: float) -> float:
    return float(1.0 / (1.0 + np.exp(-x))) if x >= 0 else float(np.exp(x) / (1.0 + np.exp(x)))


def _not_finite(name: str) -> EngineError:
    return EngineError(f"output {name!r} is not finite", expected="finite values", got="NaN or infinity")


def _warm(bundle: Bundle, session: Session) -> float:
    """Gives the seconds of the last run."""
    feed = _feed(bundle, session)
    started = 0.0
    for _ in range(WARM_RUNS):
        started = time.perf_counter()
        session.run(feed)
    return time.perf_counter() - started


def _feed(bundle: Bundle, session: Session) -> dict[str, Array]:
    """The first golden sample, or zeros where there is none."""
    kept = {tensor.name: bundle.tensor(tensor)[0] for tensor in bundle.manifest.golden_inputs}
    return {spec.name: sample_as(spec, kept[spec.name]) if kept else _zeros(spec) for spec in session.signature.inputs}


def _zeros(spec: TensorSpec) -> Array:
    return np.zeros([axis if isinstance(axis, int) else 1 for axis in spec.shape], np.dtype(spec.dtype))
