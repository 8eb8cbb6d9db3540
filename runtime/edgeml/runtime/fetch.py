"""Downloads one file whose length and sha256 are known from signed metadata.

What a server may do and what happens: an endless or longer body is cut at the promised length; a body that drips is given up;
a connection that breaks leaves the part for a later Range request; a server that ignores Range is read from the start; a
redirect to another host is refused; bytes of another hash are deleted. The file is hashed whole, from disk, before it counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urljoin, urlsplit

import urllib3

from edgeml.runtime.atomic import Write, discard, write_all
from edgeml.runtime.slots import storage_error
from edgeml.wire.errors import UpdateError

CHUNK_BYTES: Final = 64 * 1024
MOST_REDIRECTS: Final = 3
LEAST_PROGRESS_BYTES: Final = 1024  # per stall time: slower than this is a server that only keeps us busy
ALGORITHMS: Final = ("sha256", "sha512")  # of signed hashes, the one we prefer first
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Remote:
    """A file as signed metadata promises it, or the slice of one that begins at `offset`."""

    url: str
    length_bytes: int
    digest: str
    algorithm: str = ALGORITHMS[0]
    offset: int = 0

    def range(self, start: int) -> str | None:
        """The Range header that asks for everything from the slice's byte `start` on; `None` for a whole file."""
        if self.offset:
            return f"bytes={self.offset + start}-{self.offset + self.length_bytes - 1}"
        return f"bytes={start}-" if start else None


class Superseded(Exception):  # noqa: N818 - not an error: nobody wants the file any more
    """The caller asked to stop; the part stays."""


@dataclass(slots=True)
class Fetcher:
    """Downloads files into parts.

    Attributes:
        stall_s: give up when so long no LEAST_PROGRESS_BYTES arrived.
        bytes_per_s: no faster than this on average; at least 1024.
        write: stands for `os.write`.
        moved_bytes: body bytes received so far, over all calls.
    """

    pool: urllib3.PoolManager
    stall_s: float = 30.0
    bytes_per_s: int | None = None
    write: Write = os.write
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    moved_bytes: int = 0

    def fetch(self, remote: Remote, part: Path, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Complete `part`, going on where it ends, and check it.

        Raises:
            UpdateError: `unreachable` (the part stays), `download`, `redirect` or `disk_full` (the part is gone).
            Superseded: `stop` said so; the part stays.
        """
        size = part.stat().st_size if part.exists() else 0
        if size > remote.length_bytes:
            discard(part)
            size = 0
        if size < remote.length_bytes or not part.exists():
            self._complete(remote, part, size, stop)
        if file_digest(part, remote.algorithm) != remote.digest:
            discard(part)
            raise UpdateError(f"{remote.url!r} gave bytes of another {remote.algorithm}", code="download", retryable=True)

    def head(self, remote: Remote, size: int) -> bytes:
        """The first bytes of a file, fewer where it ends.

        Raises:
            UpdateError: `unreachable`, `download` or `redirect`.
        """
        with self._open(remote.url, f"bytes=0-{size - 1}") as response:
            if response.status in _BUSY:
                raise unreachable(f"{remote.url!r} answered {response.status}")
            if response.status not in {200, 206}:
                _refuse(f"{remote.url!r} answered {response.status}")
            head = b""
            for chunk in self._chunks(response, remote.url, most=size):
                head += chunk
                if len(head) >= size:
                    break
        self.moved_bytes += len(head)
        return head[:size]

    def _complete(self, remote: Remote, part: Path, start: int, stop: Callable[[], bool]) -> None:
        with self._open(remote.url, remote.range(start)) as response:
            start = _accepted_start(response, remote, start)
            try:
                self._copy(response, remote, part, start, stop)
            except OSError as error:
                discard(part)
                raise storage_error(error) from error
        got = part.stat().st_size
        if got != remote.length_bytes:
            raise unreachable(f"{remote.url!r} ended after {got} of {remote.length_bytes} bytes")

    def _copy(
        self, response: urllib3.BaseHTTPResponse, remote: Remote, part: Path, start: int, stop: Callable[[], bool]
    ) -> None:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, start)
            os.lseek(descriptor, start, os.SEEK_SET)
            have = start
            for chunk in self._chunks(response, remote.url):
                self.moved_bytes += len(chunk)
                have += len(chunk)
                if have > remote.length_bytes:
                    discard(part)
                    raise UpdateError(
                        f"{remote.url!r} gives more than {remote.length_bytes} bytes", code="download", retryable=True
                    )
                write_all(descriptor, chunk, write=self.write)
                if stop():
                    raise Superseded
                if have == remote.length_bytes and response.headers.get("Content-Length") is not None:
                    break
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _chunks(self, response: urllib3.BaseHTTPResponse, url: str, most: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Whatever arrives, as it arrives: `read1` returns after one receive, so that a drip is noticed."""
        began = since = self.clock()
        received = progress = 0
        most = min(most, self.bytes_per_s or most)
        while chunk := _reached(lambda: response.read1(most, decode_content=False), url):
            yield chunk
            received += len(chunk)
            if self.bytes_per_s is not None:
                self.sleep(max(0.0, received / self.bytes_per_s - (self.clock() - began)))
            progress += len(chunk)
            if progress >= LEAST_PROGRESS_BYTES:
                since, progress = self.clock(), 0
            elif self.clock() - since > self.stall_s:
                raise unreachable(f"{url!r} gave {progress} bytes in {self.stall_s:.0f} s")

    @contextlib.contextmanager
    def _open(self, first_url: str, wanted_range: str | None) -> Iterator[urllib3.BaseHTTPResponse]:
        headers = {"Accept-Encoding": "identity"}
        if wanted_range is not None:
            headers["Range"] = wanted_range
        url = first_url
        for _ in range(MOST_REDIRECTS + 1):
            response = self._request(url, headers)
            try:
                if response.status not in {301, 302, 303, 307, 308}:
                    yield response
                    return
                url = _redirected(url, response.headers.get("Location", ""))
            finally:
                response.close()
        raise UpdateError(f"{first_url!r} redirects more than {MOST_REDIRECTS} times", code="redirect", retryable=False)

    def _request(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=min(self.stall_s, 10.0), read=self.stall_s)
        return _reached(
            lambda: self.pool.request(
                "GET", url, headers=headers, preload_content=False, redirect=False, retries=False, timeout=timeout
            ),
            url,
        )


def unreachable(what: str) -> UpdateError:
    """The network or the server is at fault, not the file: worth waiting for."""
    return UpdateError(what, code="unreachable", retryable=True)


def file_digest(path: Path, algorithm: str = ALGORITHMS[0]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _reached(call: Callable[[], T], url: str) -> T:
    try:
        return call()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise unreachable(f"{url!r}: {error}") from error


def _accepted_start(response: urllib3.BaseHTTPResponse, remote: Remote, start: int) -> int:
    """Where in the file the body begins."""
    status = response.status
    if status in _BUSY:
        raise unreachable(f"{remote.url!r} answered {status}")
    if status == 416:
        return _refuse(f"{remote.url!r} has nothing from byte {start} on")
    if status not in {200, 206}:
        return _refuse(f"{remote.url!r} answered {status}")
    if status == 200 and remote.offset:
        return _refuse(f"{remote.url!r} gives no ranges")
    if status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {remote.offset + start}-"):
        return _refuse(f"{remote.url!r} sent another range than asked")
    begin = start if status == 206 else 0
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and begin + int(announced) > remote.length_bytes:
        return _refuse(f"{remote.url!r} announces {begin + int(announced)} bytes, {remote.length_bytes} are signed for")
    return begin


def _refuse(what: str) -> int:
    raise UpdateError(what, code="download", retryable=True)


def _redirected(url: str, location: str) -> str:
    there = urljoin(url, location)
    old, new = urlsplit(url), urlsplit(there)
    if not location or (old.scheme, old.netloc) != (new.scheme, new.netloc):
        raise UpdateError(f"{url!r} redirects to {there!r}", code="redirect", retryable=False, hint="serve the file itself")
    return there
