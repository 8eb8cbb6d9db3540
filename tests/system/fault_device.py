"""A device in a process that forks for each fault: real files, signed metadata over HTTP, a real engine, a clock of its own.

    python fault_device.py                reads JSON lines {"folder", "fault", "at"}, answers each with its outcome

Every persisted step (open for writing, write, fsync, rename, delete, folder, SQLite statement that writes) is counted; at step
`at` the fault begins:

    kill       SIGKILL instead of the step
    full       this and each later write fails with ENOSPC, through a restart, until the disk is freed
    readonly   the same with EROFS
    torn       the step is done, the file is cut to half, SIGKILL: a power cut on a disk that lies about fsync

Then the device starts again, as a new process, and must come to the version that is wanted, and answer all the time. On that
version it brings a sample to the service; then somebody asks it to forget, while another sample waits.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

FAULTS: Final = ("kill", "full", "readonly", "torn")
ERRORS: Final = {"full": errno.ENOSPC, "readonly": errno.EROFS}
SQLITE_SAYS: Final = {"full": "database or disk is full", "readonly": "attempt to write a readonly database"}
WRITING: Final = os.O_WRONLY | os.O_RDWR
STEP_S: Final = 0.5  # of the device's clock, each tick
MOST_TICKS: Final = 2000
TICKS_IN_TROUBLE: Final = 8
BETWEEN_LIVES_S: Final = 10_000.0  # more than any life's ticks take: the clock never falls back


class Disk:
    """Stands between the process and what it persists below one folder."""

    def __init__(self, folder: str, fault: str | None, at: int) -> None:
        self.folder, self.fault, self.at = folder, fault, at
        self.steps: list[str] = []
        self.is_broken = False
        self._names: dict[int, str] = {}

    def step(self, name: str, do: Callable[[], Any], path: str = "", *, sqlite: bool = False) -> Any:
        self.steps.append(name)
        if self.fault is not None and len(self.steps) == self.at:
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "torn":
                do()
                tear(path)
            self.is_broken = True
        if self.is_broken and self.fault in ERRORS and not name.startswith("unlink" if self.fault == "full" else "-"):
            if sqlite:
                raise sqlite3.OperationalError(SQLITE_SAYS[self.fault])
            raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]), path)
        return do()

    def is_ours(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    def install(self) -> None:
        """From here on, this process persists through us."""
        for name in ("replace", "rename"):
            setattr(os, name, self._renaming(getattr(os, name), name))
        for name in ("unlink", "remove", "mkdir"):
            setattr(os, name, self._naming(getattr(os, name), name))
        os.open = self._opening(os.open)
        os.close = self._closing(os.close)
        for name in ("write", "fsync", "ftruncate"):
            setattr(os, name, self._by_descriptor(getattr(os, name), name))
        builtins.open = self._builtin_open(builtins.open)
        connect, disk = sqlite3.connect, self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                if sql.lstrip().upper().startswith(("SELECT", "PRAGMA")):
                    return super().execute(sql, *rest)
                name = "sqlite " + " ".join(sql.split()[:3])
                return disk.step(name, lambda: sqlite3.Connection.execute(self, sql, *rest), sqlite=True)  # type: ignore[no-any-return]

            def executemany(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                run = lambda: sqlite3.Connection.executemany(self, sql, *rest)  # noqa: E731
                return disk.step("sqlite " + " ".join(sql.split()[:3]), run, sqlite=True)  # type: ignore[no-any-return]

            def executescript(self, sql: str) -> sqlite3.Cursor:
                return disk.step("sqlite schema", lambda: sqlite3.Connection.executescript(self, sql), sqlite=True)  # type: ignore[no-any-return]

        def connected(place: Any, *arguments: Any, **rest: Any) -> sqlite3.Connection:
            if str(place) == ":memory:" or rest.get("uri"):
                return connect(place, *arguments, **rest)  # type: ignore[no-any-return]
            return connect(place, *arguments, factory=Connection, **rest)

        sqlite3.connect = connected  # type: ignore[assignment]

    def _label(self, path: Any) -> str:
        name = os.path.relpath(os.fspath(path), self.folder)
        return name if len(name) < 40 else f"{Path(name).parent}/…{Path(name).suffix}"

    def _renaming(self, real: Any, verb: str) -> Any:
        def rename(source: Any, destination: Any, **rest: Any) -> None:
            if not self.is_ours(destination):
                return real(source, destination, **rest)  # type: ignore[no-any-return]
            name = f"{verb} {self._label(destination)}"
            return self.step(name, lambda: real(source, destination, **rest), os.fspath(destination))  # type: ignore[no-any-return]

        return rename

    def _naming(self, real: Any, verb: str) -> Any:
        def named(path: Any, *arguments: Any, **rest: Any) -> None:
            there = os.path.lexists(path)
            if not self.is_ours(path) or there == (verb == "mkdir"):
                return real(path, *arguments, **rest)  # type: ignore[no-any-return]
            return self.step(f"{verb} {self._label(path)}", lambda: real(path, *arguments, **rest), os.fspath(path))  # type: ignore[no-any-return]

        return named

    def _opening(self, real: Any) -> Any:
        def opened(path: Any, flags: int, *arguments: Any, **rest: Any) -> int:
            if not (self.is_ours(path) and flags & WRITING):
                return int(real(path, flags, *arguments, **rest))
            name = self._label(path)
            descriptor = int(self.step(f"open {name}", lambda: real(path, flags, *arguments, **rest), os.fspath(path)))
            self._names[descriptor] = os.fspath(path)
            return descriptor

        return opened

    def _closing(self, real: Any) -> Any:
        def close(descriptor: int) -> None:
            self._names.pop(descriptor, None)
            real(descriptor)

        return close

    def _by_descriptor(self, real: Any, verb: str) -> Any:
        def through(descriptor: Any, *arguments: Any) -> Any:
            path = self._names.get(descriptor) if isinstance(descriptor, int) else None
            if path is None:
                return real(descriptor, *arguments)
            return self.step(f"{verb} {self._label(path)}", lambda: real(descriptor, *arguments), path)

        return through

    def _builtin_open(self, real: Any) -> Any:
        def opened(path: Any, mode: str = "r", *arguments: Any, **rest: Any) -> Any:
            if not self.is_ours(path) or not set(mode) & set("wax+"):
                return real(path, mode, *arguments, **rest)
            return self.step(f"open {self._label(path)}", lambda: real(path, mode, *arguments, **rest), os.fspath(path))

        return opened


def tear(path: str) -> None:
    """Half of the file is all that reached the disk."""
    if path and Path(path).is_file():
        os.truncate(path, Path(path).stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def live(folder: Path, disk: Disk, *, is_second: bool) -> dict[str, Any]:
    """One life of the device, until it has what is wanted or time is up; its first answer comes before its first tick."""
    import urllib3

    from edgeml.runtime import reuse
    from edgeml.runtime.config import load_config
    from edgeml.runtime.device import Device, Workers
    from edgeml.runtime.errands import Budget, Errands
    from edgeml.runtime.forget import SAMPLES, Wish, erase_beside
    from edgeml.runtime.samples import SampleFolder
    from edgeml.simulation.shared import Models, SharedEngine
    from tests.unit.bundles import samples

    mock.patch.object(reuse, "LEAST_BYTES", 0).start()  # the test's bundles are small: build them from their blobs all the same
    clock = [time.time() - (0.0 if is_second else BETWEEN_LIVES_S)]
    engine = SharedEngine(Models(), [{"x": sample} for sample in samples(8)], now=lambda: clock[0])
    workers = Workers(lambda job: job(), lambda job: job())
    config = load_config(folder / "agent.toml")
    pool = urllib3.PoolManager(retries=False)
    device = Device(config, engine=engine, sensor=engine, workers=workers, pool=pool, now=lambda: clock[0], jitter=lambda: 0.5)
    poller, samples_ = device.conversation.poller, SampleFolder(config.data / SAMPLES, cap_bytes=1000)
    assert poller is not None
    wish = Wish(config.data, clock=lambda: clock[0])
    errands = Errands(
        poller, device.spool, wish, samples_, Budget(config.data / SAMPLES / "sent.json", 10**6),
        ask=lambda job: job(), clock=lambda: clock[0], jitter=lambda: 0.5,
    )  # fmt: skip
    owner = Owner(samples_, wish)
    device.start()
    answered = _answers(engine)
    in_trouble = 0
    for _ in range(MOST_TICKS):
        device.conversation._ask_at = device.conversation._post_at = 0.0  # the clock of this test, not the wall's
        device.tick()
        if wish.is_new():
            erase_beside(config, wish, device.spool, samples_, has_service=True)
        errands.tick()
        clock[0] += STEP_S
        answered = _answers(engine) and answered
        in_trouble += disk.is_broken
        if in_trouble == TICKS_IN_TROUBLE:
            if not is_second:
                os.write(1, json.dumps({"answered": answered, "defects": device.defects}).encode() + b"\n")
                os.kill(os.getpid(), signal.SIGKILL)
            disk.is_broken, disk.fault = False, None  # somebody has freed the disk
        update = device.update("toy")
        wanted = update is not None and update.stage == "confirmed" and update.active == update.wanted
        if wanted:
            owner.look()
        if owner.is_content and not disk.is_broken and len(device.spool) == 0:
            break
    update = device.update("toy")
    assert update is not None
    return {
        "answered": answered,
        "defects": device.defects,
        "stage": update.stage,
        "version": device.version("toy", update.active),
        "steps": disk.steps,
        "waiting": len(device.spool),
        "forgotten": owner.is_content,
    }


class Owner:
    """Whose device it is: takes a sample, and when it has left, another one, and asks the device to forget."""

    def __init__(self, samples: Any, wish: Any) -> None:
        self._samples, self._wish = samples, wish
        self._has_taken = self._has_asked = False

    @property
    def is_content(self) -> bool:
        return self._has_asked and not self._wish.is_there and len(self._samples) == 0

    def look(self) -> None:
        if not self._has_taken:
            self._has_taken = self._samples.add("first", b"first", self._samples.epoch)
            return
        is_ready = not self._has_asked and len(self._samples) == 0
        if is_ready and self._samples.add("second", b"second", self._samples.epoch):
            with contextlib.suppress(OSError):  # the disk does not take it: later
                self._wish.ask()
                self._has_asked = True


def _answers(engine: Any) -> bool:
    """One call; no error, and a version that answered."""
    serving = engine._serving.get("toy")
    if serving is None:
        return False
    errors = serving.errors
    engine.run_once()
    return bool(serving.errors == errors)


def in_a_fork(folder: Path, fault: str | None, at: int, *, is_second: bool) -> tuple[int, dict[str, Any] | None]:
    """(wait status, what the child had to say)."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        os.dup2(writes, 1)
        try:
            disk = Disk(str(folder / "data"), fault, at)
            disk.install()
            said = live(folder, disk, is_second=is_second)
            os.write(1, json.dumps(said).encode() + b"\n")
        except BaseException as error:  # noqa: BLE001 - the parent wants to know
            import traceback

            os.write(1, json.dumps({"raised": repr(error), "at": traceback.format_exc()[-1500:]}).encode() + b"\n")
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return status, json.loads(text) if text.strip() else None


def run(folder: Path, fault: str | None, at: int) -> dict[str, Any]:
    """The life that meets the fault, then the next one."""
    _, first = in_a_fork(folder, fault, at, is_second=False)
    if fault is None:
        return {"first": first, "second": first}
    goes_on = fault in ERRORS
    _, second = in_a_fork(folder, fault if goes_on else None, 1, is_second=True)
    return {"first": first, "second": second}


def main() -> None:
    import onnxruntime  # noqa: F401 - loaded once, before the forks
    import tuf.ngclient.updater  # noqa: F401

    import edgeml.runtime.agent
    import edgeml.simulation.shared  # noqa: F401
    import tests.unit.bundles  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(run(Path(asked["folder"]), asked["fault"], asked["at"])), flush=True)


if __name__ == "__main__":
    main()
