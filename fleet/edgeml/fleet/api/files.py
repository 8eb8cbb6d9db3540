"""The TUF repository as files: signed metadata, and bundles by their digest. For anyone: the signatures are the protection."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from edgeml.fleet.service import Fleet
from edgeml.wire.errors import ServiceError

_METADATA: Final = re.compile(r"timestamp\.json|[0-9]{1,9}\.(root|snapshot|targets)\.json")
_BUNDLE: Final = re.compile(
    r"models/[a-z0-9][a-z0-9._-]{0,63}/[0-9a-f]{64}\.[0-9A-Za-z.-]{1,64}(\.edgeml|\.from-[0-9a-f]{64}\.delta)"
)
_FOR_EVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
_FRESH: Final = {"Cache-Control": "no-cache"}


def router(fleet: Fleet) -> APIRouter:
    routes = APIRouter()
    folder = fleet.config.places.tuf

    @routes.api_route("/tuf/metadata/{name}", methods=["GET", "HEAD"])
    def metadata(name: str) -> Response:
        path = folder / "metadata" / name
        # Numbered files are immutable in TUF, but one that a killed publish left behind is written again.
        return _file(path, "application/json", _FRESH, allowed=_METADATA.fullmatch(name) is not None)

    @routes.api_route("/tuf/targets/{path:path}", methods=["GET", "HEAD"])
    def targets(path: str) -> Response:
        answer = _file(folder / "targets" / path, "application/zip", _FOR_EVER, allowed=_BUNDLE.fullmatch(path) is not None)
        fleet.count_bundle_request()
        return answer

    return routes


def _file(path: Path, kind: str, headers: dict[str, str], *, allowed: bool) -> Response:
    if not allowed or not path.is_file():
        raise ServiceError("there is no such file", status=404)
    return FileResponse(path, headers=headers, media_type=kind)
