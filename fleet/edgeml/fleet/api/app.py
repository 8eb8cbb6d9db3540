"""The HTTP side as one application: all routes, the page, and what an error becomes.

Errors are JSON `{"error": "…"}` in plain words, with the status that the kind of error has.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from edgeml.fleet import web
from edgeml.fleet.api import device, files, operator, rollouts, samples
from edgeml.fleet.api.http import answer
from edgeml.fleet.service import Fleet
from edgeml.wire.errors import EdgemlError, EnvironmentProblem, ParityError, ServiceError, UsageError

log = logging.getLogger(__name__)


def build_app(fleet: Fleet) -> FastAPI:
    """The whole application on a running fleet."""
    app = FastAPI(title="edgeml fleet", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.fleet = fleet
    app.add_exception_handler(EdgemlError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(SQLAlchemyError, _fail)
    app.add_exception_handler(Exception, _fail)
    for routes in (device, files, operator, rollouts, samples):
        app.include_router(routes.router(fleet))
    web.routes(app)
    return app


def status_of(error: EdgemlError) -> int:
    match error:
        case ServiceError():
            return error.status
        case UsageError():
            return 400
        case ParityError():
            return 422
        case EnvironmentProblem():
            return 503
        case _:
            return 500


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgemlError)
    return answer({"error": str(error), "kind": type(error).__name__}, status_of(error))


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: f"there is no {request.url.path!r} here", 405: f"{request.method} is not for {request.url.path!r}"}
    return answer({"error": words.get(error.status_code, error.detail)}, error.status_code, dict(error.headers or {}))


async def _fail(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer({"error": "the service failed at this; its log says why"}, 500)
