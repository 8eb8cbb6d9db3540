"""What the device has to say, kept on disk until the fleet has it: a ring in SQLite with a byte cap.

Rules:
- every message has a sequence number that grows over restarts, power cuts included; the fleet keeps each number once
- a full ring drops the oldest telemetry first, reports last, and counts what it dropped
- a row leaves when it is acknowledged; sending it twice is harmless, so nothing is marked as sent
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

Lane = Literal["report", "telemetry"]

LANES: Final[dict[Lane, int]] = {"report": 0, "telemetry": 1}  # lower is sent first and dropped last
PAGE_BYTES: Final = 4096
DROP_ROWS: Final = 400  # at a time, at most: 1.1 ms measured, and far fewer deletions than one by one
KEEP_FREE_SHARE: Final = 0.05  # of the cap: room for the pages that a deletion itself needs
WAL_PAGES: Final = 256  # checkpoint after 1 MiB
RESTART_GAP: Final = 1 << 20  # numbers skipped at start: more than a power cut can take from the log's end

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS rows (seq INTEGER PRIMARY KEY, lane INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_lane ON rows (lane, seq);
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Row:
    seq: int
    lane: Lane
    payload: bytes


class Spool:
    """One device's ring. Thread-safe; calls take microseconds and never wait for the network.

    Args:
        path: the database; made if absent. One that is damaged is set aside as `<name>.damaged` and a fresh one begun.
        cap_bytes: of the database file; the write-ahead log takes about 1 MiB on top.

    Attributes:
        was_damaged: the file was no ring any more.
        is_on_disk: `False` while the disk takes nothing and the ring is in memory, for this process.
    """

    def __init__(self, path: Path, *, cap_bytes: int = 16 * 1024 * 1024) -> None:
        self._lock = threading.Lock()
        self._cap_pages = max(cap_bytes // PAGE_BYTES, 16)
        self.was_damaged = False
        self.is_on_disk = True
        self._db = self._opened(path)
        last = self._number("seq", 0)
        self._seq = max(last + RESTART_GAP if last else 0, time.time_ns() // 1000)
        self._in_memory_drops = 0
        self._in_memory_session = 0
        self._unstored_acks: set[int] = set()  # the fleet has them, but the disk would not forget them yet

    def next_seq(self) -> int:
        """A number no message of this device ever had."""
        with self._lock:
            self._seq += 1
            return self._seq

    def put(self, seq: int, lane: Lane, payload: bytes) -> bool:
        """Keep a message; `False` if the disk would not take it (counted in `dropped`)."""

        def store() -> None:
            self._make_room(len(payload))
            self._db.execute("INSERT INTO rows VALUES (?, ?, ?)", (seq, LANES[lane], payload))
            self._set_number("seq", seq)

        with self._lock:
            kept = self._written(store)
            self._in_memory_drops += not kept
            return kept

    def peek(self, limit: int, *, without: Collection[int] = ()) -> list[Row]:
        """The next messages to send, reports first, oldest first; `without` names those already under way."""
        with self._lock:
            leave = {*without, *self._unstored_acks}
            lanes: tuple[Lane, ...] = ("report", "telemetry")
            try:
                cursor = self._db.execute(
                    "SELECT seq, lane, payload FROM rows ORDER BY lane, seq LIMIT ?", (limit + len(leave),)
                )
                rows = [Row(seq, lanes[lane], payload) for seq, lane, payload in cursor if seq not in leave]
            except sqlite3.Error:  # a disk that cannot be read at this moment
                return []
        return rows[:limit]

    def ack(self, seqs: Iterable[int]) -> None:
        """The fleet has these. What a full disk will not forget, the next process sends again: harmless."""

        def forget() -> None:
            self._db.executemany("DELETE FROM rows WHERE seq = ?", [(seq,) for seq in self._unstored_acks])

        with self._lock:
            self._unstored_acks.update(seqs)
            if self._written(forget):
                self._unstored_acks.clear()

    def erase(self) -> None:
        """Forget every message, so that the file holds none of their bytes; the numbers go on."""

        def forget() -> None:
            self._db.execute("DELETE FROM rows")

        with self._lock:
            self._written(forget)
            with contextlib.suppress(sqlite3.Error):  # a disk that takes nothing: the rows are gone, their bytes go later
                self._db.execute("VACUUM")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def next_session(self, now: float) -> int:
        """A number above every earlier session of this device; milliseconds where the clock allows."""
        with self._lock:
            self._in_memory_session = max(self._number("session", 0) + 1, self._in_memory_session + 1, int(now * 1000))
            self._written(lambda: self._set_number("session", self._in_memory_session))
            return self._in_memory_session

    def remember(self, name: str, value: int) -> None:
        """Keep a small number over restarts, if the disk takes it."""
        with self._lock:
            self._written(lambda: self._set_number(f"kept.{name}", value))

    def recall(self, name: str, default: int = 0) -> int:
        with self._lock:
            return self._number(f"kept.{name}", default)

    @property
    def dropped(self) -> int:
        """Messages lost to the cap or a full disk since the ring was made."""
        with self._lock:
            return self._number("dropped", 0) + self._in_memory_drops

    def __len__(self) -> int:
        with self._lock:
            try:
                return int(self._db.execute("SELECT count(*) FROM rows").fetchone()[0])
            except sqlite3.Error:
                return 0

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _opened(self, path: Path) -> sqlite3.Connection:
        """The ring on disk; a fresh one where that is damaged; one in memory where the disk takes nothing."""
        try:
            return self._open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                return self._in_memory(path)
        self.was_damaged = True
        try:
            _set_aside(path)
            return self._open(path)
        except (OSError, sqlite3.Error):
            return self._in_memory(path)

    def _in_memory(self, path: Path) -> sqlite3.Connection:
        """For a disk that takes nothing: the device answers all the same. Numbers go on from the file's if it can be read."""
        self.is_on_disk = False
        database = self._open(Path(":memory:"))
        try:
            with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as old:
                database.executemany(
                    "INSERT INTO numbers VALUES (?, ?)", old.execute("SELECT name, value FROM numbers").fetchall()
                )
        except sqlite3.Error:
            pass  # there is nothing to go on from: the clock gives the numbers
        database.commit()
        return database

    def _written(self, change: Callable[[], None]) -> bool:
        """Whether a transaction went through; a full or read-only disk leaves all as it was."""
        try:
            with self._db:
                change()
        except sqlite3.DatabaseError:
            return False
        return True

    def _open(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
        try:
            database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")  # a power cut may take the last windows, never the file
            database.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
            database.execute(f"PRAGMA journal_size_limit = {WAL_PAGES * PAGE_BYTES}")
            database.execute(f"PRAGMA max_page_count = {self._cap_pages}")
            if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check found damage")
            database.executescript(_SCHEMA)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _make_room(self, payload_bytes: int) -> None:
        most = int(self._cap_pages * (1 - KEEP_FREE_SHARE)) - payload_bytes // PAGE_BYTES - 1
        while self._used_pages() > most:
            cursor = self._db.execute(
                "DELETE FROM rows WHERE seq IN (SELECT seq FROM rows WHERE lane = (SELECT max(lane) FROM rows)"
                " ORDER BY seq LIMIT ?)",
                (max(1, min(DROP_ROWS, self._cap_pages // 16)),),
            )
            if cursor.rowcount == 0:
                return
            self._set_number("dropped", self._number("dropped", 0) + cursor.rowcount)

    def _used_pages(self) -> int:
        pages = int(self._db.execute("PRAGMA page_count").fetchone()[0])
        return pages - int(self._db.execute("PRAGMA freelist_count").fetchone()[0])

    def _number(self, name: str, default: int) -> int:
        try:
            row = self._db.execute("SELECT value FROM numbers WHERE name = ?", (name,)).fetchone()
        except sqlite3.Error:
            return default
        return default if row is None else int(row[0])

    def _set_number(self, name: str, value: int) -> None:
        self._db.execute(
            "INSERT INTO numbers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )


def _set_aside(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.replace(path.with_name(path.name + ".damaged"))
