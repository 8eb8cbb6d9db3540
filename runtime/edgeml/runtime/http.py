"""HTTP connections whose every answer ends in time: the head by a deadline here, the body by whoever reads it.

urllib3's timeouts begin anew with each packet: a server that drips a header byte by byte would hold a thread for ever.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ReadTimeoutError

HEAD_S: Final = 30.0  # for status line and headers, however they drip
CHUNK_BYTES: Final = 64 * 1024


class _InTime:
    """Closes the connection under a response whose head takes too long."""

    head_s: ClassVar[float] = HEAD_S
    sock: socket.socket | None

    def getresponse(self) -> Any:
        is_late = threading.Event()
        timer = threading.Timer(self.head_s, self._give_up, (is_late,))
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()  # type: ignore[misc]  # of the connection that this is mixed into
        finally:
            timer.cancel()
        if is_late.is_set():  # the end of the connection ended the head: what there is of it is no answer
            raise TimeoutError(f"the head of the answer did not come within {self.head_s:.0f} s")
        return response

    def _give_up(self, is_late: threading.Event) -> None:
        is_late.set()
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


class _Connection(_InTime, HTTPConnection):
    pass


class _SecureConnection(_InTime, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def make_pool(*, maxsize: int, tls: ssl.SSLContext | None = None) -> urllib3.PoolManager:
    """A pool that retries nothing by itself; `tls` `None`: the system's authorities."""
    pool = urllib3.PoolManager(maxsize=maxsize, retries=False, ssl_context=tls)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return pool


def read_at_most(response: urllib3.BaseHTTPResponse, limit_bytes: int, seconds: float) -> bytes:
    """A body, up to one byte more than `limit_bytes`.

    Raises:
        ReadTimeoutError: it dripped for longer than `seconds`.
    """
    deadline = time.monotonic() + seconds
    body = bytearray()
    for chunk in _chunks(response):
        body += chunk
        if len(body) > limit_bytes:
            break
        if time.monotonic() > deadline:
            raise ReadTimeoutError(None, None, f"{len(body)} bytes in {seconds:.0f} s")  # type: ignore[arg-type]
    return bytes(body[: limit_bytes + 1])


def _chunks(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    while chunk := response.read1(CHUNK_BYTES):
        yield chunk
