"""One device: its update machines, slots, spool and link, wired together and driven from outside.

    device = Device(config, engine=engine, sensor=engine, workers=workers)
    device.start()
    while running:
        wait for device.link.socket, or a quarter of a second
        device.tick()

The agent drives one with a real engine; a simulated fleet drives hundreds in one loop. All methods but `desired` belong to the
owner's thread. Slow work (network, self-test, loading) goes to the workers, which run one device's jobs of a kind in order, and
comes back as events.
"""

from __future__ import annotations

import functools
import logging
import queue
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec
import urllib3

from edgeml.runtime import updater
from edgeml.runtime.config import AgentConfig
from edgeml.runtime.conversation import Conversation
from edgeml.runtime.fetch import Fetcher
from edgeml.runtime.install import Engine, Installer
from edgeml.runtime.managed import Managed, Rules
from edgeml.runtime.slots import Slots
from edgeml.runtime.spool import Lane, Spool
from edgeml.runtime.trust import Trust
from edgeml.runtime.updater import Update
from edgeml.wire.errors import ConfigError, EdgemlError, LinkError
from edgeml.wire.messages import Desired, Drift, Report, State, Telemetry, decode, encode, pack

DETAIL_LIMIT: Final = 500  # characters of a report's explanation
MOST_MODELS: Final = 64  # on one device; a wrong document must not fill the disk with folders

Job = Callable[[], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workers:
    """Where slow work runs, each in order: `update` downloads and tests, `ask` talks to the service."""

    update: Callable[[Job], None]
    ask: Callable[[Job], None]


class Sensor(Protocol):
    """What the device knows about itself."""

    def describe(self) -> State:
        """A birth message; the device fills in who and when."""
        ...

    def windows(self, device: str, session: int, next_seq: Callable[[], int]) -> Iterable[Telemetry]:
        """The telemetry windows that ended since the last call."""
        ...


class Device:
    """See the module.

    Args:
        config: whose device this is, and how patient.
        pool: HTTP connections, shared by a process.
        now: Unix seconds.
        jitter: uniform in [0, 1).

    Attributes:
        ignored: messages that were not what they claimed; counted, never acted on.
        drift: by model, its manifest's digest and the newest comparison of each stream with the bundle's reference.
        dirty: set whenever something changed that a status file would show.
        rules: of updates; the application may set `rules.postpone`.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        engine: Engine,
        sensor: Sensor,
        workers: Workers,
        pool: urllib3.PoolManager,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self.id = config.device.id
        self._engine, self._sensor, self._workers, self._pool = engine, sensor, workers, pool
        self._now = now
        self._inbox: queue.SimpleQueue[tuple[str, updater.Event]] = queue.SimpleQueue()
        self._managed: dict[str, Managed] = {}
        self._closing = False
        self.ignored = 0
        self._defects = 0
        self.drift: dict[str, tuple[str, dict[str, Drift]]] = {}
        self.dirty = True
        _make_folder(config.data)
        self.spool = Spool(config.data / "spool.sqlite", cap_bytes=config.telemetry.spool_bytes)
        self._trust = _trust(config, pool, now)
        self.rules = Rules(config.update, note=engine.note, now=now, jitter=jitter)
        self.conversation = Conversation(
            config, pool=pool, spool=self.spool, describe=self._state, on_desired=self.desired, ask=self._ask, jitter=jitter
        )
        self._window_ends = now() + config.telemetry.window_s * (0.5 + 0.5 * jitter())

    def start(self) -> None:
        """Take up where the last process stopped; afterwards every installed model answers."""
        folder = self.config.data / "models"
        known = sorted(self.config.models)
        known += [place.name for place in sorted(folder.glob("*")) if place.is_dir() and place.name not in known]
        for model in known:
            self._boot(self._manage(model))

    def desired(self, payload: bytes) -> None:
        """Hear what the fleet wants; from any thread. What is not a desired document changes nothing."""
        try:
            document = decode(Desired, payload)
        except LinkError:
            self.ignored += 1
            return
        for target in document.targets:
            self._inbox.put((target.model, updater.Wanted(document.rev, target)))

    def tick(self) -> None:
        """Handle what arrived, let time pass, send. Does not raise: the thread has other work."""
        self.guarded(self._tick)

    def _tick(self) -> None:
        now = self._now()
        while not self._inbox.empty():
            model, event = self._inbox.get()
            self._handle(model, event)
        for managed in list(self._managed.values()):
            for event in managed.due():
                self._step(managed, event)
        if not 0 < self._window_ends - now <= self.config.telemetry.window_s:  # it is over, or the clock was put back
            self.flush()
            ends, window_s = self._window_ends, self.config.telemetry.window_s
            self._window_ends = ends + window_s if 0 <= now - ends < window_s else now + window_s
        self.conversation.tick()

    def flush(self) -> None:
        """Put the telemetry since the last time into the spool."""
        for window in self._sensor.windows(self.id, self.conversation.session, self.spool.next_seq):
            self._keep(window.seq, "telemetry", pack(window))
            digest, known = self.drift.get(window.model, ("", {}))
            known = known if digest == window.manifest_sha256 else {}
            self.drift[window.model] = (window.manifest_sha256, {**known, **window.drift})

    def update(self, model: str) -> Update | None:
        managed = self._managed.get(model)
        return None if managed is None else managed.update

    @property
    def defects(self) -> int:
        """Errors that nothing foresaw; each cost one job or one try of an update, and is in the log."""
        return self._defects + sum(managed.installer.defects for managed in list(self._managed.values()))

    @property
    def updates(self) -> tuple[Update, ...]:
        return tuple(managed.update for managed in self._managed.values())

    def version(self, model: str, digest: str | None) -> str | None:
        """Which version a manifest digest of this device is, where that is known."""
        managed = self._managed.get(model)
        if managed is None or digest is None:
            return None
        slot = managed.installer.slots.find(digest)
        return self._engine.version(model, digest) if slot is None else slot.version

    def stop(self) -> None:
        """Take up no more work; a running download ends at its next chunk and goes on at the next start."""
        self._closing = True

    def close(self) -> None:
        """Put the last telemetry into the spool and say good-bye. The workers must have ended."""
        self._closing = True
        self.flush()
        self.conversation.close()
        self.spool.close()

    def _manage(self, model: str) -> Managed:
        folder = self.config.data / "models" / model
        slots = Slots(folder, model)
        update = self.config.update
        fetcher = Fetcher(self._pool, stall_s=update.stall_s, bytes_per_s=update.bytes_per_s)
        installer = Installer(model, slots, self._trust, fetcher, self._engine, lambda: self._wanted(model))
        self._managed[model] = managed = Managed(installer, folder / "update.json", self.rules)
        return managed

    def _wanted(self, model: str) -> str | None:
        managed = self._managed.get(model)
        return None if managed is None or self._closing else managed.update.wanted

    def _boot(self, managed: Managed) -> None:
        installer = managed.installer
        table = self.config.models.get(installer.model)
        if table is not None and table.bundle is not None:
            path = self.config.path(table.bundle)
            try:
                installer.factory = (self._engine.check(installer.model, path), path)
            except EdgemlError as error:
                if not installer.slots.installed:
                    raise
                self._engine.note(installer.model, f"factory bundle: {error}")
        installed = tuple(slot.digest for slot in installer.slots.installed)
        factory = installer.factory[0] if installer.factory else None
        events: list[updater.Event] = [updater.Booted(installed, factory)]
        while events:
            actions = managed.boot(events.pop(0))
            self._carry_out(managed, managed.update, [a for a in actions if isinstance(a, updater.Switch)], events.append)
            later = [a for a in actions if not isinstance(a, updater.Switch) and not (events and isinstance(a, updater.Tell))]
            self._submit(managed, later)

    def _handle(self, model: str, event: updater.Event) -> None:
        managed = self._managed.get(model)
        if managed is None and isinstance(event, updater.Wanted):
            if event.target.version is None:
                return
            if len(self._managed) >= MOST_MODELS:
                self.ignored += 1
                return
            managed = self._manage(model)
        if managed is not None:
            self._step(managed, event)

    def _step(self, managed: Managed, event: updater.Event) -> None:
        """One step of the machine: its new state is stored, then we act."""
        self._submit(managed, managed.step(event))

    def _submit(self, managed: Managed, actions: Sequence[updater.Action]) -> None:
        self.dirty = True
        if actions:
            model = managed.update.model
            job = functools.partial(
                self._carry_out, managed, managed.update, actions, lambda event: self._inbox.put((model, event))
            )
            self._workers.update(functools.partial(self.guarded, job))

    def _ask(self, job: Job) -> None:
        self._workers.ask(functools.partial(self.guarded, job))

    def guarded(self, job: Job) -> None:
        """Run a job; a defect of ours costs that one job, never the thread that keeps the device up to date."""
        try:
            job()
        except Exception:
            self._defects += 1
            self.dirty = True
            if self._defects & (self._defects - 1) == 0:  # the 1st, 2nd, 4th, 8th, …: one in every tick must not fill a disk
                log.exception("device %s: defect number %d", self.id, self._defects)

    def _carry_out(
        self, managed: Managed, update: Update, actions: Sequence[updater.Action], post: Callable[[updater.Event], None]
    ) -> None:
        is_damaged = False
        for action in actions:
            if self._closing:
                return
            if isinstance(action, updater.Tell):
                if not is_damaged:
                    self._tell(managed, update, action.stage)
                continue
            event = managed.installer.carry_out(action)
            is_damaged = is_damaged or isinstance(event, updater.Damaged)
            if event is not None:
                post(event)

    def _tell(self, managed: Managed, update: Update, stage: updater.Stage) -> None:
        target = update.target
        seq = self.spool.next_seq()
        report = Report(
            device=self.id,
            session=self.conversation.session,
            seq=seq,
            at=self._now(),
            rev=update.rev,
            model=update.model,
            state=stage,
            version=target.version if target else None,
            manifest_sha256=update.wanted,
            rollout=target.rollout if target else None,
            code=update.code,
            detail=update.detail[:DETAIL_LIMIT] if update.detail else None,
            retryable=update.retryable,
            downloaded_bytes=update.downloaded_bytes,
            slots=managed.installer.slots.report(),
        )
        self._keep(seq, "report", encode(report))

    def _keep(self, seq: int, lane: Lane, payload: bytes) -> None:
        self.spool.put(seq, lane, payload)
        self.dirty = True

    def _state(self, session: int) -> State:
        rev = max((update.rev for update in self.updates), default=0)
        slots = {name: managed.installer.slots.report() for name, managed in list(self._managed.items())}
        return msgspec.structs.replace(
            self._sensor.describe(), device=self.id, session=session, online=True, at=self._now(), rev=rev,
            tags=dict(self.config.device.tags), slots=slots,
        )  # fmt: skip


def _trust(config: AgentConfig, pool: urllib3.PoolManager, now: Callable[[], float]) -> Trust | None:
    if config.service is None:
        return None
    path = config.path(config.service.root)
    try:
        root = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"TUF root {str(path)!r} cannot be read: {error.strerror}", hint="copy root.json from your fleet"
        ) from error
    return Trust(config.data / "trust", config.service.url, root, pool=pool, now=now)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data folder {str(folder)!r} cannot be made: {error.strerror}") from error
