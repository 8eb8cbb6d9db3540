"""A log of answers for machines: one JSON object a line, of a share of the calls and of every error, within a rate and a size.

    {"at":"2026-11-23T21:40:03.125Z","request_id":"0193…","model":"kws","version":"1.2.0","latency_ms":3.1,"source":"device"}

Which calls are logged is told from the request id, so that the cloud behind a device logs the same ones. Inputs and answers are
never in it. A log that cannot be written stops nothing; what is missing is counted in `dropped` of the next line.
"""

from __future__ import annotations

import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.model import Result
from edgeml.wire.structs import learn

STDERR: Final = "stderr"
OLD_SUFFIX: Final = ".1"  # of the file before the current one


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    at: str  # UTC, ISO 8601
    request_id: str | None
    model: str
    version: str
    latency_ms: float
    source: str | None = None  # "device" or "cloud"; none where there was no answer
    fallback: str | None = None
    error: str | None = None  # code
    detail: str | None = None
    dropped: int = 0  # lines that the rate or the disk kept out since the last one


class Journal:
    """Thread-safe; no call raises.

    Args:
        to: the file, or `STDERR`.
        share: of the answers; errors are logged whatever it is.
        lines_per_s: at most, with a burst of ten times that.
        size_bytes: of the file; then it becomes `<name>.1`, replacing the one before.
        clock: seconds that only grow.
        now: Unix seconds.
    """

    def __init__(
        self,
        to: Path | str,
        *,
        share: float = 0.01,
        lines_per_s: float = 10.0,
        size_bytes: int = 4 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = None if to == STDERR else Path(to)
        self._share, self._rate, self._size = share, lines_per_s, size_bytes
        self._clock, self._now = clock, now
        self._tokens, self._at = 10 * lines_per_s, clock()
        self._dropped = 0
        self._lock = threading.Lock()

    def answered(self, result: Result) -> None:
        """Log an answer, if it is one of the share."""
        if self._is_chosen(result.request_id):
            self._put(
                request_id=result.request_id, model=result.model, version=result.version, latency_s=result.latency_s,
                source=result.source, fallback=result.fallback,
            )  # fmt: skip

    def failed(self, model: str, version: str, *, request_id: str | None, latency_s: float, code: str, detail: str) -> None:
        """Log a call that gave no answer."""
        self._put(request_id=request_id, model=model, version=version, latency_s=latency_s, error=code, detail=detail)

    def _is_chosen(self, request_id: str) -> bool:
        return zlib.crc32(request_id.encode()) < self._share * 2**32

    def _put(
        self,
        *,
        request_id: str | None,
        model: str,
        version: str,
        latency_s: float,
        source: str | None = None,
        fallback: str | None = None,
        error: str | None = None,
        detail: str | None = None,
    ) -> None:
        with self._lock:
            if not self._may_write():
                self._dropped += 1
                return
            at = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = Line(
                at, request_id, model, version, round(1e3 * latency_s, 3), source, fallback, error, detail, self._dropped
            )
            try:
                self._write(msgspec.json.encode(line) + b"\n")
            except (OSError, ValueError):  # disk full, folder gone, stderr closed
                self._dropped += 1
            else:
                self._dropped = 0

    def _may_write(self) -> bool:
        at = self._clock()
        self._tokens = min(10 * self._rate, self._tokens + (at - self._at) * self._rate)
        self._at = at
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _write(self, line: bytes) -> None:
        if self._path is None:
            sys.stderr.write(line.decode())
            return
        with suppress(FileNotFoundError):
            if self._path.stat().st_size + len(line) > self._size:
                self._path.replace(self._path.with_name(self._path.name + OLD_SUFFIX))
        with self._path.open("ab", buffering=0) as file:
            file.write(line)


learn(__name__)
