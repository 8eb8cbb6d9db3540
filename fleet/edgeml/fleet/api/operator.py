"""What an operator asks: the overview, models, devices, events; health and metrics for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from edgeml.fleet.api.http import answer, read_json, require_operator
from edgeml.fleet.api.metrics import exposition
from edgeml.fleet.api.views import device_page, device_views, overview
from edgeml.fleet.devices import Enrolled, no_device
from edgeml.fleet.service import Fleet
from edgeml.fleet.store import events, versions
from edgeml.fleet.store.versions import VersionRow
from edgeml.wire.canonical import ZIP_LIMIT
from edgeml.wire.errors import EnvironmentProblem, ServiceError, UsageError
from edgeml.wire.structs import learn

PAGE: Final = 1000
_WRITE_BYTES: Final = 1 << 20


class NewDevices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Devices to enrol: by name, or `count` of them as prefix-0001, prefix-0002 and so on."""

    ids: tuple[str, ...] = ()
    prefix: str | None = None
    count: int = 0
    tags: dict[str, str] = {}

    def names(self) -> tuple[str, ...]:
        if self.prefix is None:
            return self.ids
        width = max(4, len(str(self.count)))
        return (*self.ids, *(f"{self.prefix}-{number:0{width}d}" for number in range(1, min(self.count, 1_000_000) + 1)))


def router(fleet: Fleet) -> APIRouter:
    routes = APIRouter()
    _health(routes, fleet)
    _models(routes, fleet)
    _devices(routes, fleet)

    @routes.get("/v1/overview")
    def page(request: Request, devices: int = 200, events: int = 50) -> Response:
        require_operator(fleet, request)
        return answer(overview(fleet, device_limit=_bounded(devices), event_limit=_bounded(events)))

    @routes.get("/v1/events")
    def log(request: Request, limit: int = 100, subject: str | None = None, before: int | None = None) -> Response:
        require_operator(fleet, request)
        with fleet.store.read() as connection:
            return answer(events.listed(connection, limit=_bounded(limit), subject=subject, before=before))

    @routes.get("/v1/events/check")
    def check(request: Request) -> Response:
        require_operator(fleet, request)
        with fleet.store.read() as connection:
            return answer({"events": events.count(connection), "broken_at": events.first_break(connection)})

    return routes


def _health(routes: APIRouter, fleet: Fleet) -> None:
    @routes.get("/healthz")
    def health() -> Response:
        connected = fleet.link is not None and fleet.link.is_connected
        return answer({"status": "ok", "broker": "connected" if connected else "away", "ticks": fleet.ticks})

    @routes.get("/metrics")
    def metrics() -> Response:
        data, kind = exposition(fleet)
        return Response(data, media_type=kind)


def _models(routes: APIRouter, fleet: Fleet) -> None:
    @routes.get("/v1/models")
    def models(request: Request) -> Response:
        require_operator(fleet, request)
        with fleet.store.read() as connection:
            return answer(versions.listed(connection))

    @routes.get("/v1/models/{model}/{version}")
    def model(request: Request, model: str, version: str) -> Response:
        require_operator(fleet, request)
        with fleet.store.read() as connection:
            row, text = versions.find(connection, model, version), versions.manifest_json(connection, model, version)
        if row is None or text is None:
            raise ServiceError(f"{model}@{version} is not published", status=404, hint="see `edgeml fleet models`")
        return answer({"version": row, "manifest": msgspec.Raw(text.encode())})

    @routes.post("/v1/models")
    async def publish(request: Request) -> Response:
        actor = require_operator(fleet, request)
        row, is_new = await _receive(fleet, request, actor)
        return answer(row, 201 if is_new else 200)


async def _receive(fleet: Fleet, request: Request, actor: str) -> tuple[VersionRow, bool]:
    """Stream the body to the disk it will stay on, then publish it."""
    staged = fleet.registry.staging()
    try:
        with staged.open("wb", buffering=_WRITE_BYTES) as file:
            size = 0
            async for chunk in request.stream():
                size += len(chunk)
                if size > ZIP_LIMIT:
                    raise ServiceError(f"the bundle is longer than {ZIP_LIMIT} bytes", status=413)
                file.write(chunk)
        return await run_in_threadpool(fleet.registry.publish, staged, fleet.clock(), actor)
    except OSError as error:
        raise EnvironmentProblem(f"cannot keep the bundle: {error.strerror}") from error
    finally:
        staged.unlink(missing_ok=True)


def _devices(routes: APIRouter, fleet: Fleet) -> None:
    @routes.get("/v1/devices")
    def listed(request: Request, after: str = "", limit: int = PAGE) -> Response:
        require_operator(fleet, request)
        with fleet.store.read() as connection:
            return answer(device_views(connection, after=after, limit=_bounded(limit)))

    @routes.post("/v1/devices")
    async def enrol(request: Request) -> Response:
        actor = require_operator(fleet, request)
        new = await read_json(request, NewDevices)
        enrolled = await run_in_threadpool(fleet.inventory.enrol, new.names(), new.tags, fleet.clock(), actor)
        return answer(_welcome(fleet, enrolled), 201)

    @routes.get("/v1/devices/{device}")
    def one(request: Request, device: str) -> Response:
        require_operator(fleet, request)
        found = device_page(fleet, device)
        if found is None:
            raise no_device(device)
        return answer(found)

    @routes.delete("/v1/devices/{device}")
    def remove(request: Request, device: str) -> Response:
        fleet.remove(device, require_operator(fleet, request))
        return answer({"removed": device})

    @routes.post("/v1/devices/{device}/token")
    def renew(request: Request, device: str) -> Response:
        renewed = fleet.inventory.renew(device, fleet.clock(), require_operator(fleet, request))
        return answer(_welcome(fleet, [renewed]))

    @routes.put("/v1/devices/{device}/tags")
    async def tag(request: Request, device: str) -> Response:
        actor = require_operator(fleet, request)
        tags = await read_json(request, dict[str, str])
        await run_in_threadpool(fleet.inventory.set_tags, device, tags, fleet.clock(), actor)
        return answer({"device": device, "tags": tags})


def _welcome(fleet: Fleet, enrolled: Sequence[Enrolled]) -> dict[str, Any]:
    """Tokens, told this once, and all else that goes into an agent.toml."""
    broker = fleet.broker.address.url if fleet.broker is not None else None
    root = fleet.trust.root.decode()
    return {"devices": enrolled, "broker": broker, "tenant": fleet.config.tenant, "root": root}


def _bounded(limit: int) -> int:
    if not 0 <= limit <= 10 * PAGE:
        raise UsageError("limit", expected=f"0 to {10 * PAGE}", got=str(limit))
    return limit


learn(__name__)
