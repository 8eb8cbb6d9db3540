"""The same conversation over HTTPS: everything the MQTT link does, for networks where it may not or cannot.

Each call is one request with a time limit; the owner decides when. Reports are idempotent by (device, seq), so an answer that
got lost only means sending again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import urllib3

from edgeml.runtime.http import read_at_most
from edgeml.wire.errors import LinkError, ServiceError
from edgeml.wire.messages import MESSAGE_LIMIT_BYTES, State, encode, plain

if TYPE_CHECKING:
    from edgeml.runtime.spool import Row, Spool

BATCH_ROWS: Final = 100
REFUSED: Final = frozenset({400, 413, 422})  # the batch itself is at fault


class Poller:
    """One device's requests to the service.

    Args:
        pool: shared by all requests of the process.
        on_desired: what to do with a desired document; must not raise.

    Attributes:
        refused: messages the service would not take, which were dropped.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        pool: urllib3.PoolManager,
        spool: Spool,
        on_desired: Callable[[bytes], None],
        timeout_s: float,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pool = pool
        self._spool = spool
        self._on_desired = on_desired
        self._timeout_s = timeout_s
        self._timeout = urllib3.Timeout(total=timeout_s)
        self._etag: str | None = None
        self.refused = 0

    def ask(self) -> bool:
        """Get what the fleet wants; `True` if it is news.

        Raises:
            LinkError: the service cannot be reached.
            ServiceError: it refused.
        """
        headers = {"If-None-Match": self._etag} if self._etag else {}
        status, answer, etag = self._request("GET", "/v1/desired", headers=headers)
        if status == 304:
            return False
        if status != 200:
            raise ServiceError(f"GET /v1/desired answered {status}", status=status)
        self._on_desired(answer)
        self._etag = etag
        return True

    def tell(self, state: State | None) -> int:
        """Send the birth message, if given, and everything in the spool; how many messages the service has now.

        Raises:
            LinkError: the service cannot be reached.
            ServiceError: it refused for a reason that is not in the messages.
        """
        sent = 0
        if state is not None:
            self._post([b'{"kind":"state","body":' + encode(state) + b"}"])
        while rows := self._spool.peek(BATCH_ROWS):
            self._send(rows)
            sent += len(rows)
        return sent

    def bring(self, sample: bytes) -> None:
        """Give the service a sample.

        Raises:
            LinkError: the service cannot be reached.
            ServiceError: it refused.
        """
        self._say("/v1/samples", "application/octet-stream", sample)

    def forget(self, before_seq: int) -> None:
        """Ask the service to forget what this device said up to a sequence number; asking twice does no harm.

        Raises:
            LinkError: the service cannot be reached.
            ServiceError: it refused.
        """
        self._say("/v1/forget", "application/json", b'{"before_seq":%d}' % before_seq)

    def _send(self, rows: Sequence[Row]) -> None:
        try:
            self._post([_item(row) for row in rows])
        except ServiceError as error:
            if error.status not in REFUSED:
                raise
            if len(rows) > 1:
                for row in rows:
                    self._send([row])
                return
            self.refused += 1  # one message that nobody will ever take must not hold up the rest
        self._spool.ack(row.seq for row in rows)

    def _post(self, items: Sequence[bytes]) -> None:
        self._say("/v1/reports", "application/json", b"[" + b",".join(items) + b"]")

    def _say(self, path: str, kind: str, body: bytes) -> None:
        status, _, _ = self._request("POST", path, headers={"Content-Type": kind}, body=body)
        if not 200 <= status < 300:
            raise ServiceError(f"POST {path} answered {status}", status=status)

    def _request(
        self, method: str, path: str, *, headers: dict[str, str], body: bytes | None = None
    ) -> tuple[int, bytes, str | None]:
        try:
            response = self._pool.request(
                method, self._url + path, headers={**self._headers, **headers}, body=body, timeout=self._timeout,
                retries=False, redirect=False, preload_content=False,
            )  # fmt: skip
            try:
                answer = read_at_most(response, MESSAGE_LIMIT_BYTES, self._timeout_s)
            except BaseException:
                response.close()
                raise
            if len(answer) > MESSAGE_LIMIT_BYTES:
                response.close()
                raise LinkError(f"service {self._url!r} gives more than {MESSAGE_LIMIT_BYTES} bytes")
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise LinkError(f"service {self._url!r} cannot be reached: {error}") from error
        return response.status, answer, response.headers.get("ETag")


def _item(row: Row) -> bytes:
    return b'{"kind":"' + row.lane.encode() + b'","body":' + plain(row.payload) + b"}"
