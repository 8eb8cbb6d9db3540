"""What every route needs: who asks, the body within bounds, an answer as JSON."""

from __future__ import annotations

import hmac
from typing import Final, TypeVar

import msgspec
from fastapi import Request, Response

from edgeml.fleet.service import Fleet
from edgeml.wire.errors import ServiceError, UsageError

BODY_LIMIT_BYTES: Final = 4 * 1024 * 1024
T = TypeVar("T")


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
