"""The HTTP side: what every request meets. Routes are in `device.py`, `files.py`, `operator.py`,
`rollouts.py` and `samples.py`.

Errors are JSON `{"error": "…", "hint": …}` in plain words, with the status that the kind of error has.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from edgeml.fleet.service import Fleet
from edgeml.wire.errors import EdgemlError, EnvironmentProblem, ParityError, ServiceError, UsageError

BODY_LIMIT_BYTES: Final = 4 * 1024 * 1024
SHUTDOWN_S: Final = 3  # for requests in flight; a long poll is not worth more
T = TypeVar("T")
log = logging.getLogger(__name__)


def build_app(fleet: Fleet) -> FastAPI:
    """The whole application on a running fleet."""
    from edgeml.fleet import web
    from edgeml.fleet.api import device, files, operator, rollouts, samples

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


def answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A msgspec-encodable value as JSON."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def bearer(request: Request) -> str:
    """The secret in `Authorization: Bearer …`.

    Raises:
        ServiceError: (401) there is none.
    """
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise ServiceError("this needs a key", status=401, hint="send `Authorization: Bearer KEY`")
    return secret.strip()


def require_operator(fleet: Fleet, request: Request) -> str:
    """Gives the actor's name for the audit.

    Raises:
        ServiceError: (401) not the operator's key.
    """
    if not hmac.compare_digest(bearer(request).encode(), fleet.operator_key.encode()):
        hint = f"it is in {fleet.config.places.operator_key.name} of the service's data folder"
        raise ServiceError("not the operator's key", status=401, hint=hint)
    return "operator"


async def read_body(request: Request, limit: int = BODY_LIMIT_BYTES) -> bytes:
    """The body, never more than `limit` bytes in memory.

    Raises:
        ServiceError: (413) it is longer.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise ServiceError(f"the request is longer than {limit} bytes", status=413)
    return bytes(body)


async def read_json(request: Request, kind: type[T]) -> T:
    """The body as a `kind`.

    Raises:
        UsageError: it is not one; the message names the field.
    """
    try:
        return msgspec.json.decode(await read_body(request), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the request's body cannot be used: {error}") from error


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


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        EnvironmentProblem: the port is taken, or the address is not this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise EnvironmentProblem(
            f"port {port} on {host} cannot be had: {error.strerror}", hint="give another one with --port, or stop what uses it"
        ) from error
    return listener


class _Server(uvicorn.Server):
    """Ends on a signal without passing it on, so that the broker is stopped in order afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def end(*_: Any) -> None:
            self.should_exit = True

        before = {name: signal.signal(name, end) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def run_until_signal(fleet: Fleet, listener: socket.socket) -> None:
    config = uvicorn.Config(
        build_app(fleet),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
    _Server(config).run(sockets=[listener])
