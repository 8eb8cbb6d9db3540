"""The page: three files served as they are, on the same API as everything else (`GET /v1/overview`).

It needs the operator's key, once per browser tab: typed in, or in the address after `#key=`, which no server ever sees. There
is no build step and nothing comes from another host, so it works on a fleet without internet.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Final

from fastapi import FastAPI, Response

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/web/page.css": ("page.css", "text/css; charset=utf-8"),
    "/web/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/web/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/web/samples.js": ("samples.js", "text/javascript; charset=utf-8"),
}


def routes(app: FastAPI) -> None:
    """Mount the page at `/`."""
    for path, (name, kind) in _FILES.items():
        app.add_api_route(path, _serve(name, kind), methods=["GET", "HEAD"], include_in_schema=False)


def _serve(name: str, kind: str) -> Callable[[], Response]:
    body = (files(__name__) / name).read_bytes()

    def answer() -> Response:
        return Response(body, headers=_HEADERS, media_type=kind)

    return answer
