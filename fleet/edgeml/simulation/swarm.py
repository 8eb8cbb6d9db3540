"""A fleet of simulated devices in one process: the device's own machines, slots, spool, trust and link, one engine for all.

    with Swarm(load_settings(Path("swarm.toml"))) as swarm:
        print(swarm.summary())          # it runs in its own threads

One loop drives all links and machines; a few threads do downloads, self-tests and requests, one at a time per device; one
thread feeds every device real samples, in an order of its own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.config import AgentConfig
from edgeml.runtime.device import Device, Job, Workers
from edgeml.runtime.http import make_pool
from edgeml.runtime.loop import Loop
from edgeml.simulation.settings import Identity, Settings, load_identities, load_samples
from edgeml.simulation.shared import Feed, Models, SharedEngine
from edgeml.wire.errors import ConfigError
from edgeml.wire.structs import learn


class InOrder:
    """Runs one device's jobs on shared threads, one after the other."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()

    def submit(self, job: Job) -> None:
        self._jobs.put(job)
        with self._lock:
            self._waiting += 1
            is_idle = self._waiting == 1
        if is_idle:
            self._threads.submit(self._next)

    def _next(self) -> None:
        try:
            self._jobs.get()()
        finally:
            with self._lock:
                self._waiting -= 1
                has_more = self._waiting > 0
            if has_more:
                self._threads.submit(self._next)


class Summary(msgspec.Struct, frozen=True):
    """The fleet at one moment. `versions` and `stages` count devices, over all models."""

    devices: int
    connected: int
    versions: dict[str, int]
    stages: dict[str, int]
    runs: int
    spool_rows: int
    problems: dict[str, int]


class Swarm:
    """See the module. A context manager."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        identities = load_identities(settings.path(settings.devices))
        samples = load_samples(settings.path(settings.samples)) if settings.samples else {}
        self._models = Models()
        self._pool = make_pool(maxsize=settings.threads + 4)
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="swarm")
        self.engines: dict[str, SharedEngine] = {}
        self.devices: list[Device] = []
        feeds = _feeds(samples)
        for identity in identities:
            self._add(identity, _order(feeds, identity.id))
        self._loop = Loop(self.devices)
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        for device in self.devices:
            device.start()
        self._running = [
            threading.Thread(target=self._loop.run, name="swarm-loop", daemon=True),
            threading.Thread(target=self._feed, name="swarm-feed", daemon=True),
        ]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping.set()
        for device in self.devices:
            device.stop()
        self._loop.stop()
        for thread in self._running:
            thread.join()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for device in self.devices:
            device.close()
        self._models.close()
        self._pool.clear()

    def summary(self) -> Summary:
        versions, stages, problems = Counter[str](), Counter[str](), Counter[str]()
        for device in self.devices:
            for update in device.updates:
                versions[device.version(update.model, update.active) or "none"] += 1
                stages[update.stage or "none"] += 1
                if update.code is not None:
                    problems[f"{update.code}: {update.detail}"] += 1
        links = [device.conversation.link for device in self.devices]
        return Summary(
            devices=len(self.devices),
            connected=sum(link is not None and link.connected for link in links),
            versions=dict(versions),
            stages=dict(stages),
            runs=sum(engine.runs for engine in self.engines.values()),
            spool_rows=sum(len(device.spool) for device in self.devices),
            problems=dict(problems.most_common(5)),
        )

    def _add(self, identity: Identity, feeds: list[Feed]) -> None:
        if identity.id in self.engines:
            raise ConfigError(f"device {identity.id!r} is listed twice")
        engine = SharedEngine(self._models, feeds)
        workers = Workers(InOrder(self._threads).submit, InOrder(self._threads).submit)
        config = _config(self.settings, identity)
        self.devices.append(Device(config, engine=engine, sensor=engine, workers=workers, pool=self._pool))
        self.engines[identity.id] = engine

    def _feed(self) -> None:
        """Every device runs `runs_per_s` samples a second, evenly spread."""
        period_s = 1.0 / self.settings.runs_per_s
        engines = list(self.engines.values())
        began = time.monotonic()
        for turn in range(1 << 62):
            for number, engine in enumerate(engines):
                due = began + (turn + number / len(engines)) * period_s
                if self._stopping.wait(max(0.0, due - time.monotonic())):
                    return
                engine.run_once()


def _config(settings: Settings, identity: Identity) -> AgentConfig:
    service, broker = settings.service or identity.url, settings.broker or identity.broker
    if service is None:
        raise ConfigError(f"device {identity.id!r} has no service", hint="give `service`, or a devices file with urls")
    table = {
        "device": {"id": identity.id, "data": str(settings.path(settings.data) / identity.id), "tags": identity.tags},
        "service": {
            "url": service, "token": identity.token, "root": str(settings.path(settings.root).absolute()),
            "poll_s": settings.poll_s, "poll_after_s": settings.poll_after_s,
        },
        "broker": None if broker is None else {"url": broker, "protocol": settings.protocol},
        "update": {"soak_s": settings.soak_s, "health_s": settings.health_s, "backoff_s": settings.backoff_s},
        "telemetry": {"window_s": settings.window_s, "spool_bytes": settings.spool_bytes},
    }  # fmt: skip
    try:
        return msgspec.convert(table, AgentConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"device {identity.id!r}: {error}") from error


def _feeds(samples: Mapping[str, Array]) -> list[Feed]:
    """One call's inputs per sample, shared by all devices."""
    count = min((len(array) for array in samples.values()), default=0)
    return [{name: np.ascontiguousarray(array[i]) for name, array in samples.items()} for i in range(count)]


def _order(feeds: list[Feed], device: str) -> list[Feed]:
    """All samples in an order of the device's own: a device that saw the same two for ever would be no sample of the field."""
    order = np.random.default_rng(list(device.encode())).permutation(len(feeds))
    return [feeds[i] for i in order]


learn(__name__)
