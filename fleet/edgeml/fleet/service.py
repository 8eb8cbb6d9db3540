"""The fleet service: everything it owns, started and stopped in order.

    with Fleet(config) as fleet: …          # store, keys, broker, link, controller's clock

What it decided is stored before anyone is told, so a kill at any moment leaves a state from which the next start goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from edgeml.fleet import brokers
from edgeml.fleet import trust as trusts
from edgeml.fleet.broker import Broker
from edgeml.fleet.config import Config, Places
from edgeml.fleet.controller import Controller
from edgeml.fleet.devices import Inventory
from edgeml.fleet.disk import PRIVATE, private_folder, write_whole
from edgeml.fleet.ingest import Ingest
from edgeml.fleet.link import Link
from edgeml.fleet.registry import Registry
from edgeml.fleet.samples import SampleStore
from edgeml.fleet.store import Store, devices, events
from edgeml.fleet.store.ledger import StoreLedger
from edgeml.fleet.trust import Trust
from edgeml.fleet.waiting import Waiting
from edgeml.wire.errors import EnvironmentProblem

REFRESH_EVERY_S: Final = 600.0  # far below half of the shortest-lived signature
_STOP_LIMIT_S: Final = 10.0
log = logging.getLogger(__name__)


class Fleet:
    """The service without its HTTP side.

    Args:
        say: gets the lines a person should see at the first start.

    Raises on `__enter__`:
        EnvironmentProblem: another service uses the data folder, the broker's port is taken, the disk refuses.
        ConfigError: keys or broker address that cannot be used.
    """

    def __init__(
        self, config: Config, *, clock: Callable[[], float] = time.time, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.config = config
        self.clock = clock
        self.started_at = clock()
        self.waiting = Waiting()
        self.deciding = threading.Lock()  # a tick and an operator's command read, decide and save one after the other
        self.broker: Broker | None = None
        self.link: Link | None = None
        self.ticks = 0
        self.failed_ticks = 0
        self.bundle_requests = 0
        self._counting = threading.Lock()
        self._say = say
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._run_clock, name="clock", daemon=True)
        self._open = ExitStack()

    def count_bundle_request(self) -> None:
        """A bundle, or a part of one, goes out."""
        with self._counting:
            self.bundle_requests += 1

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._stopping.set()
        self._open.close()

    def _start(self) -> None:
        places = self.config.places
        self.broker = brokers.choose(self.config)  # a wrong address is told before anything is made
        private_folder(places.data)
        self._open.enter_context(_locked(places))
        password = os.environ.get(trusts.PASSWORD_VARIABLE)
        if not trusts.exists(places):
            trusts.create(places, self.clock(), password)
            self._say(f"made signing keys for one person in {places.keys} (keep a copy; `edgeml fleet keys --help`)")
        self.operator_key = operator_key(places)
        self.store = Store(places.database)
        self._open.callback(self.store.close)
        self.trust = Trust(places, password)
        self.trust.refresh(self.clock())
        self.registry = Registry(self.store, self.trust, places)
        for row in self.registry.recover(self.clock()):
            self._say(f"finished publishing {row.model}@{row.version}")
        self.inventory = Inventory(self.store, self._passwords_changed)
        self.ingest = Ingest(self.store, self.clock)
        self.samples = SampleStore(places.samples, cap_bytes=self.config.samples_bytes, days=self.config.samples_days)
        self.ledger = StoreLedger(self.store, self.tell)
        self.controller = Controller(self.ledger)
        self._start_broker()
        self._ticker.start()
        self._open.callback(self._stop_clock)

    def _start_broker(self) -> None:
        if self.broker is None:
            self._say("no broker: devices poll")
            return
        self.broker.start(self._passwords())
        self._open.callback(self.broker.stop)
        self.link = Link(self.broker.address, self.config.tenant, self.store, self.ingest)
        self.link.start()
        self._open.callback(self.link.stop)

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def tell(self, changed: Sequence[str]) -> None:
        """Somebody is wanted something new: by broker at once, and to those who wait in a poll."""
        if self.link is not None:
            self.link.tell()
        self.waiting.wake(changed)

    def record(self, actor: str, kind: str, subject: str, body: object = None) -> None:
        with self.store.write() as connection:
            events.append(connection, at=self.clock(), actor=actor, kind=kind, subject=subject, body=body)

    def forget(self, device: str, before_seq: int | None, actor: str) -> dict[str, int]:
        """Delete what a device said and showed; it stays enrolled. Gives what was deleted.

        Raises:
            ServiceError: (404) there is no such device.
        """
        samples = self.samples.forget(device)
        found = self.inventory.forget(device, before_seq, samples, self.clock(), actor)
        self.ledger.forget_sums()
        return found

    def remove(self, device: str, actor: str) -> None:
        """End a device's enrolment, and delete what it said and showed.

        Raises:
            ServiceError: (404) there is no such device.
        """
        self.inventory.remove(device, self.clock(), actor)
        self.samples.forget(device)
        if self.link is not None:
            self.link.forget(device)

    def _passwords(self) -> dict[str, str]:
        with self.store.read() as connection:
            return devices.passwords(connection)

    def _passwords_changed(self) -> None:
        if self.broker is not None:
            try:
                self.broker.admit(self._passwords())
            except EnvironmentProblem:
                log.exception("the broker does not take the new passwords; it is started again")

    def _run_clock(self) -> None:
        refreshed_at = self.clock()
        while not self._stopping.wait(self.config.tick_s):
            try:
                with self.deciding:
                    self.controller.tick(self.clock())
                self.ticks += 1
                if self.broker is not None and self.broker.check() and self.link is not None:
                    self.link.tell_again()
                if self.clock() - refreshed_at > REFRESH_EVERY_S:
                    refreshed_at = self.clock()
                    self.trust.refresh(self.clock())
                    self.samples.expire(self.clock())
            except Exception:
                # One rollout's defect or a full disk must not stop the clock: the next tick reads everything anew.
                self.failed_ticks += 1
                log.exception("a tick of the controller failed; trying again")

    def _stop_clock(self) -> None:
        self._stopping.set()
        self.waiting.wake_all()
        self._ticker.join(_STOP_LIMIT_S)


def operator_key(places: Places) -> str:
    """The key of the operator's API, made at the first start."""
    with contextlib.suppress(FileNotFoundError):
        return places.operator_key.read_text().strip()
    key = secrets.token_urlsafe(32)
    write_whole(places.operator_key, f"{key}\n".encode(), PRIVATE)
    return key


@contextlib.contextmanager
def _locked(places: Places) -> Iterator[None]:
    with places.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EnvironmentProblem(
                f"another service uses {str(places.data)!r}", hint="stop it, or give another folder with --data"
            ) from error
        yield
