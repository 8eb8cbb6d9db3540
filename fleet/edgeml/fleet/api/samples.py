"""Samples over HTTP: a device brings one, an operator lists, reads and deletes them."""

from __future__ import annotations

from typing import Final

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from edgeml.fleet.api.device import DeviceSide
from edgeml.fleet.api.http import answer, read_body, require_operator
from edgeml.fleet.service import Fleet
from edgeml.wire.errors import LinkError, ServiceError, UsageError
from edgeml.wire.samples import SAMPLE_LIMIT_BYTES
from edgeml.wire.structs import learn

PAGE: Final = 1000
_FOR_NOBODY: Final = {"Cache-Control": "no-store"}


class Forget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device's wish: nothing up to this sequence number is to be kept."""

    before_seq: int


def router(fleet: Fleet) -> APIRouter:
    routes = APIRouter()
    _devices(routes, fleet)
    _operators(routes, fleet)
    return routes


def _devices(routes: APIRouter, fleet: Fleet) -> None:
    device_side = DeviceSide(fleet)

    @routes.post("/v1/samples")
    async def bring(request: Request) -> Response:
        device = await run_in_threadpool(device_side.authenticate, request)
        if not fleet.config.samples_bytes:
            raise ServiceError("this fleet takes no samples", status=403, hint="start it with --samples-mb")
        data = await read_body(request, SAMPLE_LIMIT_BYTES)
        try:
            is_new = await run_in_threadpool(fleet.samples.take, device, data, fleet.clock())
        except LinkError as error:
            raise UsageError(str(error)) from error
        return answer({"kept": is_new}, 201 if is_new else 200)

    @routes.post("/v1/forget")
    async def forget(request: Request) -> Response:
        device = await run_in_threadpool(device_side.authenticate, request)
        try:
            asked = msgspec.json.decode(await read_body(request), type=Forget)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"the request's body cannot be used: {error}") from error
        return answer(await run_in_threadpool(fleet.forget, device, asked.before_seq, f"device {device}"))


def _operators(routes: APIRouter, fleet: Fleet) -> None:
    @routes.post("/v1/devices/{device}/forget")
    def forget_one(request: Request, device: str) -> Response:
        return answer(fleet.forget(device, None, require_operator(fleet, request)))

    @routes.get("/v1/samples")
    def listed(request: Request, device: str | None = None, model: str | None = None, limit: int = PAGE) -> Response:
        require_operator(fleet, request)
        if not 0 <= limit <= PAGE:
            raise UsageError("limit", expected=f"0 to {PAGE}", got=str(limit))
        return answer(fleet.samples.listed(device=device, model=model, limit=limit), headers=_FOR_NOBODY)

    @routes.get("/v1/samples/{sample}")
    def one(request: Request, sample: str) -> Response:
        require_operator(fleet, request)
        data = fleet.samples.read(sample)
        if data is None:
            raise ServiceError(f"there is no sample {sample!r}", status=404, hint="see `edgeml fleet samples list`")
        return Response(data, media_type="application/octet-stream", headers=_FOR_NOBODY)

    @routes.delete("/v1/samples")
    def delete(request: Request, id: str | None = None, device: str | None = None, model: str | None = None) -> Response:  # noqa: A002 - the query's word
        actor = require_operator(fleet, request)
        if id is None and device is None and model is None:
            raise UsageError("what to delete", expected="an id, a device or a model", got="nothing")
        chosen = [row.header.id for row in fleet.samples.listed(device=device, model=model) if id in {None, row.header.id}]
        count = fleet.samples.delete(chosen)
        if count:
            fleet.record(actor, "samples deleted", id or device or model or "", {"count": count})
        return answer({"deleted": count})


learn(__name__)
