"""The models of one process: which version answers, switched between two calls, with its telemetry and its fall-back.

A call leases the version that answers at its start and keeps it to its end (`swap`). No call waits for a switch, a download or
the network, and none is dropped.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.aio import Threads
from edgeml.runtime.backends import Array, opener
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.choose import this_board
from edgeml.runtime.cloud import CloudClient
from edgeml.runtime.cloud_gate import CloudGate
from edgeml.runtime.config import AgentConfig, ChallengerTable, FallbackTable, ModelTable
from edgeml.runtime.golden import self_test
from edgeml.runtime.hook import load_hook
from edgeml.runtime.hybrid import Hybrid
from edgeml.runtime.install import Vitals
from edgeml.runtime.journal import STDERR, Journal
from edgeml.runtime.model import Engines, Model, Result, load_as
from edgeml.runtime.samples import Sampler
from edgeml.runtime.serving import BackedUp, Serving
from edgeml.runtime.shadow import Shadow
from edgeml.runtime.swap import leased
from edgeml.runtime.telemetry import Window
from edgeml.runtime.trial import try_bundle
from edgeml.runtime.trust import Custom
from edgeml.runtime.update import Tally
from edgeml.runtime.variants import Arm
from edgeml.wire.errors import BundleError, EdgemlError, EngineError, UpdateError
from edgeml.wire.messages import ShadowCounts, State, Telemetry

SPENT_FILE: Final = "spent.json"  # in the data folder: what the cloud has cost today
ASYNC_CALLS: Final = 8  # of asyncio applications at once: some wait for the cloud, some make a batch


class Host:
    """Engine and sensor of a real device (see `install.Engine` and `device.Sensor`).

    Attributes:
        notes: model -> a problem that stops nothing, for people to see.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        now: Callable[[], float] = time.time,
        engines: Engines = opener,
        sampler: Sampler | None = None,
    ) -> None:
        self._config = config
        self._sampler = sampler
        self._engines = engines
        self._now = now
        self._serving: dict[str, Serving] = {}
        self._journal = _journal(config)
        self._gate: CloudGate | None = None
        self._backed_up: BackedUp | None = None
        if config.fallback is not None:
            self._gate, self._backed_up = _cloud(config, config.fallback, now)
        self._prepared: dict[str, Serving] = {}
        self._retired: list[Serving] = []
        self._beside: dict[str, Shadow | Arm] = {}
        self._arms: dict[str, Serving] = {}
        self._told: dict[str, Tally] = {}  # of candidates, by digest
        self._lock = threading.Lock()
        self._board = this_board()
        self.threads = Threads(ASYNC_CALLS, "edgeml-run")
        self.notes: dict[str, str] = {}

    def run(self, model: str, inputs: Mapping[str, Array], request_id: str | None = None) -> Result:
        """One answer from the version that is active now, or from its challenger."""
        beside = self._beside.get(model)
        if beside is None:
            return self._champion(model, inputs, request_id)
        return beside.run(inputs, request_id, lambda identifier: self._champion(model, inputs, identifier))

    def serving(self, model: str) -> Serving | None:
        return self._serving.get(model)

    def answering(self) -> dict[str, Serving]:
        """What answers now, by model."""
        return dict(self._serving)

    def accepts(self, model: str, custom: Custom) -> None:
        serving, table = self._serving.get(model), self._table(model)
        if serving is not None and custom.signature not in {None, serving.model.manifest.signature.digest}:
            fed = serving.model.version
            what = f"{model} {custom.version} has other inputs or outputs than {fed}, which the application feeds"
            raise UpdateError(what, code="signature", retryable=False)
        fitting = [
            v for v in custom.artifacts
            if v.format in self._board.engines and table.format in {None, v.format} and table.precision in {None, v.precision}
        ]  # fmt: skip
        if custom.artifacts and not fitting:
            held = ", ".join(f"{v.format}:{v.precision}" for v in custom.artifacts)
            raise UpdateError(f"{model} {custom.version} has {held}; none can run here", code="no_variant", retryable=False)

    def check(self, model: str, path: Path) -> str:
        with open_bundle(path) as bundle:
            if bundle.manifest.name != model:
                raise BundleError("model of the bundle", expected=repr(model), got=repr(bundle.manifest.name))
            return bundle.digest

    def prepare(self, model: str, digest: str, path: Path) -> None:
        table = self._table(model)
        if not table.isolated:  # an isolated engine is tried where it will run
            try_bundle(path, table.setup(self._config.data), timeout_s=table.trial_s)
        self._forget_prepared(model)
        prepared = self._load(model, path, self_test=table.isolated)
        if prepared.model.digest != digest:
            prepared.retire()
            raise BundleError(f"bundle of {model}", expected=digest[:12], got=prepared.model.digest[:12])
        self._prepared[model] = prepared

    def switch(self, model: str, digest: str | None, path: Path | None) -> None:
        now_serving = self._serving.get(model)
        if digest is None or path is None:
            self._end_beside(model)
            self._replace(model, None)
            return
        if now_serving is not None and now_serving.model.digest == digest:
            return
        prepared = self._prepared.pop(model, None)
        if prepared is not None and prepared.model.digest != digest:
            prepared.retire()
            prepared = None
        new = prepared or self._checked(model, digest, path)
        self._end_candidate(model)
        self._replace(model, new)
        self._set_beside(model)

    def run_beside(self, model: str, digest: str) -> None:
        prepared = self._prepared.get(model)
        if prepared is None or prepared.model.digest != digest:
            raise EngineError(f"{digest[:12]} of {model!r} is not prepared")
        self._end_beside(model)  # a challenger rests meanwhile
        self._told[digest] = Tally()
        share = self._config.update.shadow_cpu_share
        self._beside[model] = Shadow(prepared.model, share=1.0, cpu_share=share, owned=False)

    def compared(self, model: str, digest: str) -> Tally | None:
        beside = self._beside.get(model)
        if not isinstance(beside, Shadow) or beside.model.digest != digest or digest not in self._told:
            return None
        total = beside.total
        told, self._told[digest] = self._told[digest], total
        return total.minus(told)

    def stop_beside(self, model: str) -> None:
        self._forget_prepared(model)
        if model in self._serving:
            self._set_beside(model)

    def vitals(self, model: str, digest: str) -> Vitals:
        serving = self._serving.get(model)
        if serving is None or serving.model.digest != digest:
            return Vitals(0, 0, "the version is not loaded")
        problem = None
        with self._lease(model) as leased:
            try:
                with open_bundle(leased.path) as bundle:
                    self_test(bundle, leased.model.artifact, leased.model.session)
            except EdgemlError as error:
                problem = str(error)
        return Vitals(serving.runs, serving.errors, problem)

    def version(self, model: str, digest: str) -> str | None:
        serving = self._serving.get(model)
        return serving.model.version if serving is not None and serving.model.digest == digest else None

    def note(self, model: str, problem: str) -> None:
        self.notes[model] = problem

    def describe(self) -> State:
        return State(
            device="",
            session=0,
            online=True,
            runtime=software(),
            arch=platform.machine().lower(),
            engines={engine.name: engine.version for engine in self._board.engines.values()},
            ram_bytes=self._board.ram_bytes,
            models={name: serving.model.manifest.signature.digest for name, serving in list(self._serving.items())},
        )

    def windows(self, device: str, session: int, next_seq: Callable[[], int]) -> Iterator[Telemetry]:
        self._save_spending()
        now = self._now()
        with self._lock:
            drained = [serving for serving in self._retired if serving.is_drained]
            self._retired = [serving for serving in self._retired if not serving.is_drained]
            serving_now = [*drained, *self._retired, *self._arms.values(), *self._serving.values()]
        for serving in serving_now:
            counts = serving.window.take(now)
            if not counts.is_empty or serving in self._serving.values():
                telemetry = counts.telemetry(device, session, next_seq())
                yield msgspec.structs.replace(telemetry, shadow=self._shadowed(serving))

    def close(self) -> None:
        self.threads.close()
        self._save_spending()
        for model in list(self._beside):
            self._end_beside(model)
        for model in list(self._serving):
            self._replace(model, None)
        for model in list(self._prepared):
            self._forget_prepared(model)

    def _save_spending(self) -> None:
        if self._gate is not None:
            self._gate.save()

    def _champion(self, model: str, inputs: Mapping[str, Array], request_id: str | None) -> Result:
        with self._lease(model) as serving:
            return serving.run(inputs, request_id)

    def _set_beside(self, model: str) -> None:
        """Let the configured challenger run beside what answers now; one that cannot is noted and harms nothing."""
        table, serving = self._table(model), self._serving[model]
        if table.challenger is None:
            return
        beside = self._beside.get(model)
        try:
            with open_bundle(self._config.path(table.challenger.bundle)) as bundle:
                digest, signature = bundle.digest, bundle.manifest.signature.digest
            is_of_use = digest != serving.model.digest and signature == serving.model.manifest.signature.digest
            if not is_of_use:
                self._end_beside(model)
                self.note(model, "the challenger is the version that answers, or has other inputs or outputs")
            elif beside is None:
                self._beside[model] = self._challenger(model, table, table.challenger)
        except EdgemlError as error:
            self.note(model, f"the challenger does not run: {error}")

    def _challenger(self, model: str, table: ModelTable, challenger: ChallengerTable) -> Shadow | Arm:
        path = self._config.path(challenger.bundle)
        if not table.isolated:
            try_bundle(path, table.setup(self._config.data), timeout_s=table.trial_s)
        if challenger.mode == "shadow":
            loaded = self._load_model(model, path, self_test=table.isolated)
            return Shadow(loaded, share=challenger.share, cpu_share=challenger.cpu_share)
        serving = self._load(model, path, self_test=table.isolated)
        self._arms[model] = serving
        return Arm(serving.run, serving.retire, share=challenger.share, salt=challenger.salt)

    def _end_candidate(self, model: str) -> None:
        """Let a version that runs beside before it answers leave its inputs to itself; it stays loaded."""
        beside = self._beside.get(model)
        if isinstance(beside, Shadow) and self._told.pop(beside.model.digest, None) is not None:
            self._end_beside(model)

    def _end_beside(self, model: str) -> None:
        beside, arm = self._beside.pop(model, None), self._arms.pop(model, None)
        if beside is not None:
            beside.retire()
        if arm is not None:
            with self._lock:
                self._retired.append(arm)

    def _shadowed(self, serving: Serving) -> ShadowCounts | None:
        beside = self._beside.get(serving.model.name)
        is_champion = self._serving.get(serving.model.name) is serving
        return beside.take() if isinstance(beside, Shadow) and is_champion else None

    @contextmanager
    def _lease(self, model: str) -> Iterator[Serving]:
        with leased(lambda: self._serving.get(model)) as serving:
            if serving is None:
                raise EngineError(
                    f"no version of {model!r} is installed yet", hint="give [models.NAME] a bundle, or roll one out"
                )
            yield serving

    def _replace(self, model: str, new: Serving | None) -> None:
        with self._lock:
            old = self._serving.pop(model, None) if new is None else self._serving.get(model)
            if new is not None:
                self._serving[model] = new
            if old is not None:
                self._retired.append(old)
        if old is not None:
            old.retire()

    def _checked(self, model: str, digest: str, path: Path) -> Serving:
        serving = self._load(model, path, self_test=True)
        if serving.model.digest != digest:
            serving.retire()
            raise BundleError(f"bundle of {model}", expected=digest[:12], got=serving.model.digest[:12])
        return serving

    def _load_model(self, model: str, path: Path, *, self_test: bool) -> Model:
        with open_bundle(path) as bundle:
            return load_as(bundle, self._table(model).setup(self._config.data), self_test=self_test, engines=self._engines)

    def _load(self, model: str, path: Path, *, self_test: bool) -> Serving:
        loaded = self._load_model(model, path, self_test=self_test)
        return Serving(
            loaded, path, self._backed_up, self._now(), watched=self._config.telemetry.drift, journal=self._journal,
            sampler=self._sampler,
        )  # fmt: skip

    def _forget_prepared(self, model: str) -> None:
        self._end_candidate(model)
        prepared = self._prepared.pop(model, None)
        if prepared is not None:
            prepared.retire()

    def _table(self, model: str) -> ModelTable:
        return self._config.models.get(model, ModelTable())


def _journal(config: AgentConfig) -> Journal | None:
    table = config.log
    if table is None:
        return None
    to = STDERR if table.to == STDERR else config.path(table.to)
    return Journal(to, share=table.share, lines_per_s=table.lines_per_s, size_bytes=table.bytes)


def _cloud(config: AgentConfig, table: FallbackTable, now: Callable[[], float]) -> tuple[CloudGate, BackedUp]:
    """The one gate of this device, and what puts a version in front of it."""
    gate = CloudGate(table.policy(), clock=now, file=config.data / SPENT_FILE)
    redact = None if table.redact is None else load_hook("[fallback] redact", table.redact, Path(config.folder))

    def backed_up(model: Model, window: Window) -> Hybrid:
        cloud = CloudClient(table.url, model.name, model.manifest.signature, token=table.token)
        return Hybrid(model, cloud, gate, drifting=lambda: table.on_drift and window.is_drifting, redact=redact)

    return gate, backed_up


def software() -> str:
    """The version of edgeml that runs here; empty where it was not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("edgeml-toolkit")
    except PackageNotFoundError:
        return ""
