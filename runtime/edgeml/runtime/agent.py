"""The agent: models that answer at once, kept up to date, watched and backed up by threads that no call ever waits for.

with Agent("agent.toml") as agent:
    result = agent.model("kws").run({"audio": window})
"""

from __future__ import annotations

import difflib
import fcntl
import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edgeml.runtime.atomic import is_unwritable
from edgeml.runtime.backends import Array
from edgeml.runtime.config import AgentConfig, load_config
from edgeml.runtime.device import Device, Job, Workers
from edgeml.runtime.errands import Budget, Errands
from edgeml.runtime.forget import SAMPLES, Wish, erase_beside
from edgeml.runtime.home_assistant import HomeAssistant, Shown
from edgeml.runtime.host import Host, software
from edgeml.runtime.http import make_pool
from edgeml.runtime.loop import Loop
from edgeml.runtime.model import Result
from edgeml.runtime.samples import SampleFolder, Sampler, sample_hook
from edgeml.runtime.status import ErrandStatus, Status, StatusFile, status_of
from edgeml.runtime.tls import service_tls
from edgeml.wire.errors import ConfigError

STOP_S: Final = 15.0  # how long a closing agent waits for each of its threads


class Worker:
    """One thread that does jobs in the order they came; they do not raise."""

    def __init__(self, name: str, *, done: Callable[[], None]) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done = done
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._done()


@dataclass(frozen=True, slots=True)
class Handle:
    """A model by name: each call is answered by the version that is active when it starts."""

    name: str
    _host: Host

    def run(self, inputs: Mapping[str, Array], *, request_id: str | None = None) -> Result:
        """Answer; never waits for an update or, but for the fall-back that was configured, for the network.

        Raises:
            InputError: the inputs do not fit the signature.
            EngineError: the engine failed, or no version is installed.
        """
        return self._host.run(self.name, inputs, request_id)

    async def run_async(self, inputs: Mapping[str, Array], *, request_id: str | None = None) -> Result:
        """`run` for an asyncio application: the event loop goes on meanwhile."""
        return await self._host.threads.run(lambda: self._host.run(self.name, inputs, request_id))

    @property
    def version(self) -> str | None:
        """Of the version that answers now; `None` if none does."""
        serving = self._host.serving(self.name)
        return None if serving is None else serving.model.version

    @property
    def digest(self) -> str | None:
        serving = self._host.serving(self.name)
        return None if serving is None else serving.model.digest


class Agent:
    """See the module. A context manager; one at a time may use a data folder.

    Raises:
        ConfigError: the settings cannot be used, or another agent uses the folder.
        BundleError, SelfTestError: the factory bundle is unusable, and nothing else is installed.
    """

    def __init__(self, config: AgentConfig | Path | str) -> None:
        self.config = config if isinstance(config, AgentConfig) else load_config(config)
        self._lock: int | None = None

    def __enter__(self) -> Self:
        table = self.config.samples
        redact = None if table is None else sample_hook(table, Path(self.config.folder))
        self._pool = make_pool(maxsize=2, tls=service_tls(self.config))
        self._lock = take_folder(self.config.data)
        if self._lock is None:  # two agents on one spool would send each other's numbers
            hint = "stop it, or give [device] another data folder"
            raise ConfigError(f"another agent uses {str(self.config.data)!r}", hint=hint)
        self._samples, self._sampler = None, None
        if table is not None:
            self._samples = SampleFolder(self.config.data / SAMPLES, cap_bytes=table.spool_bytes)
            self._sampler = Sampler(table, self._samples, redact)
        self._host = Host(self.config, sampler=self._sampler)
        self._update_worker = Worker("edgeml-update", done=self._wake)
        self._ask_worker = Worker("edgeml-ask", done=self._wake)
        workers = Workers(self._update_worker.submit, self._ask_worker.submit)
        self._loop: Loop | None = None
        try:
            self._device = Device(self.config, engine=self._host, sensor=self._host, workers=workers, pool=self._pool)
            self._home = self._make_home()
            self._device.start()
        except BaseException:
            self._update_worker.stop()
            self._ask_worker.stop()
            self._close_sampler()
            self._release()
            raise
        self._wish = Wish(self.config.data)
        self._errands = self._make_errands()
        self._status = StatusFile(self._device, pid=os.getpid(), host=self._host, errands=self._errands_status)
        self._loop = Loop([self._device], after_tick=lambda: self._device.guarded(self._round))
        self._thread = threading.Thread(target=self._loop.run, name="edgeml-agent", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._device.stop()
        for worker in (self._update_worker, self._ask_worker):
            worker.stop()
        if self._loop is not None:
            self._loop.stop()
            self._thread.join(STOP_S)
        if self._home is not None:
            self._home.close()
        self._device.close()
        self._host.close()
        self._close_sampler()
        self._pool.clear()
        self._release()

    def model(self, name: str) -> Handle:
        """A model of the configuration, or one that the fleet has installed.

        Raises:
            ConfigError: neither.
        """
        known = {*self.config.models, *(update.model for update in self._device.updates)}
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"add [models.{name}] to the agent's configuration"
            raise ConfigError(f"no model {name!r}", hint=hint)
        return Handle(name, self._host)

    def postpone(self, ask: Callable[[], bool]) -> None:
        """Let the application keep a new version waiting: `ask` gives true while it must not be disturbed.

        It is asked on the agent's thread before a version is tested and switched to, and again every `[update] postpone_s`; it
        should answer at once. A rollback does not wait, and no wait is longer than `[update] most_postpone_s`.
        """
        self._device.rules.postpone = ask

    @property
    def status(self) -> Status:
        return status_of(self._device, os.getpid(), self._host, self._errands_status())

    @property
    def rounds(self) -> int:
        """How often the agent's own thread went round; a watchdog sees by it that the thread lives."""
        return 0 if self._loop is None else self._loop.rounds

    def _round(self) -> None:
        if self._wish.is_new():
            self._forget()
        if self._errands is not None:
            self._errands.tick()
        if self._home is not None:
            self._home.tick()
        self._status.refresh()

    def _forget(self) -> None:
        self._device.flush()  # what is in memory goes with the rest
        self._device.drift.clear()
        erase_beside(self.config, self._wish, self._device.spool, self._samples, has_service=self._errands is not None)

    def _make_home(self) -> HomeAssistant | None:
        table = self.config.home_assistant
        if table is None:
            return None

        def shown() -> dict[str, Shown]:
            return {name: (serving.model.manifest, serving.last) for name, serving in self._host.answering().items()}

        return HomeAssistant(self.config, table, shown, software())

    def _make_errands(self) -> Errands | None:
        poller, table = self._device.conversation.poller, self.config.samples
        if poller is None:
            return None
        budget = None if table is None else Budget(self.config.data / SAMPLES / "sent.json", table.daily_bytes)
        return Errands(poller, self._device.spool, self._wish, self._samples, budget, ask=self._ask_worker.submit)

    def _errands_status(self) -> ErrandStatus:
        errands = self._errands
        counts: dict[str, int] = {}
        if self._samples is not None and self._sampler is not None and errands is not None:
            counts = {"waiting": len(self._samples), "sent": errands.sent, "refused": errands.refused}
            counts |= {"overflow": self._samples.dropped, **self._sampler.counts}
        problem = None if errands is None else errands.problem
        return ErrandStatus(counts, problem, is_forgetting=self._wish.before_seq is not None)

    def _close_sampler(self) -> None:
        if self._sampler is not None:
            self._sampler.close()

    def _wake(self) -> None:
        if self._loop is not None:
            self._loop.wake()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def take_folder(data: Path) -> int | None:
    """Lock a data folder until the descriptor is closed; `None` if an agent has it.

    Raises:
        ConfigError: it cannot be made or opened.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(data / "lock")
    except OSError as error:
        raise ConfigError(f"data folder {str(data)!r} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if not is_unwritable(error):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # what is installed must answer though nothing can be written
