"""What a device asks and says over HTTP: the complete fall-back for the broker."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import Final

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from edgeml.fleet.api.http import answer, bearer, read_body
from edgeml.fleet.ingest import Inbound
from edgeml.fleet.service import Fleet
from edgeml.fleet.store import devices
from edgeml.wire.errors import ServiceError, UsageError
from edgeml.wire.messages import Desired
from edgeml.wire.structs import learn

LONGEST_WAIT_S: Final = 60.0
MESSAGES_LIMIT: Final = 2_000  # in one request
SEEN_EVERY_S: Final = 5.0  # a poll is written down this often at most


class Envelope(msgspec.Struct, frozen=True):
    """One message as `POST /v1/reports` carries it."""

    kind: str
    body: msgspec.Raw


def router(fleet: Fleet) -> APIRouter:
    routes = APIRouter()
    device_side = DeviceSide(fleet)
    routes.get("/v1/desired")(device_side.desired)
    routes.post("/v1/reports")(device_side.reports)
    return routes


class DeviceSide:
    """What every request of a device goes through."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._seen: dict[str, float] = {}

    async def desired(self, request: Request, wait: float = 0.0) -> Response:
        """What is wanted; 304 if the device has it. `wait` holds the answer back until there is news, for so many seconds."""
        device = await run_in_threadpool(self.authenticate, request)
        known = _known_rev(request)
        wanted = await self._look(device, known, min(wait, LONGEST_WAIT_S) if math.isfinite(wait) else 0.0)
        tag = {"ETag": f'"{wanted.rev}"', "Cache-Control": "private, no-cache"}
        return Response(status_code=304, headers=tag) if wanted.rev == known else answer(wanted, headers=tag)

    async def reports(self, request: Request) -> Response:
        """Take messages as the broker would have brought them; repeated ones do no harm."""
        device = await run_in_threadpool(self.authenticate, request)
        try:
            envelopes = msgspec.json.decode(await read_body(request), type=list[Envelope])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f'the body is not a list of {{"kind": …, "body": …}}: {error}') from error
        if len(envelopes) > MESSAGES_LIMIT:
            raise UsageError("messages in one request", expected=f"at most {MESSAGES_LIMIT}", got=str(len(envelopes)))
        batch = [Inbound(device, envelope.kind, bytes(envelope.body)) for envelope in envelopes]
        return answer({"accepted": await run_in_threadpool(self._fleet.ingest.take, batch)})

    async def _look(self, device: str, known: int | None, wait_s: float) -> Desired:
        until = time.monotonic() + wait_s
        while True:
            with self._fleet.waiting.register(device) as news:
                wanted = await run_in_threadpool(self._desired, device)
                left = until - time.monotonic()
                if wanted.rev != known or left <= 0 or self._fleet.is_stopping:
                    return wanted
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), left)

    def authenticate(self, request: Request) -> str:
        """The device whose token the request carries.

        Raises:
            ServiceError: (401) nobody's.
        """
        fleet = self._fleet
        device = fleet.inventory.authenticate(bearer(request))
        if device is None:
            raise ServiceError("this is no device's token", status=401, hint="enrol it, or use `edgeml fleet devices renew`")
        now = fleet.clock()
        if now - self._seen.get(device, -math.inf) > SEEN_EVERY_S:
            self._seen[device] = now
            with fleet.store.write() as connection:
                devices.seen(connection, {device: now})
        return device

    def _desired(self, device: str) -> Desired:
        with self._fleet.store.read() as connection:
            found = devices.desired(connection, device)
        if found is None:
            raise ServiceError("this device was removed", status=401)
        return found


def _known_rev(request: Request) -> int | None:
    """The revision in `If-None-Match`, if there is one of ours."""
    for tag in request.headers.get("if-none-match", "").split(","):
        text = tag.strip().removeprefix("W/").strip('"')
        if text.isdecimal() and len(text) < 20:
            return int(text)
    return None


learn(__name__)
