"""The audit: append-only, each event carries the digest of the one before, so that a change or a gap shows."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, RowMapping, func, insert, select

from edgeml.fleet.store.tables import events
from edgeml.wire.canonical import encode_json, sha256_hex
from edgeml.wire.structs import learn

FIRST: Final = "0" * 64


class EventRow(msgspec.Struct, frozen=True):
    """Something that happened: who (`actor`) did what (`kind`) to what (`subject`)."""

    id: int
    at: float
    actor: str
    kind: str
    subject: str
    body: dict[str, Any]
    previous: str
    digest: str


def append(connection: Connection, *, at: float, actor: str, kind: str, subject: str, body: object = None) -> str:
    """Add an event in the caller's transaction; gives its digest."""
    previous = connection.scalar(select(events.c.digest).order_by(events.c.id.desc()).limit(1)) or FIRST
    body_json = encode_json({} if body is None else body)
    digest = _digest(previous, at, actor, kind, subject, body_json.decode())
    connection.execute(
        insert(events).values(
            at=at, actor=actor, kind=kind, subject=subject, body_json=body_json.decode(), previous=previous, digest=digest
        )
    )
    return digest


def listed(
    connection: Connection, *, limit: int = 100, subject: str | None = None, before: int | None = None
) -> list[EventRow]:
    """Newest first; `before` is an event's id, to page on from."""
    query = select(events).order_by(events.c.id.desc()).limit(limit)
    if subject is not None:
        query = query.where(events.c.subject == subject)
    if before is not None:
        query = query.where(events.c.id < before)
    return [_row(row) for row in connection.execute(query).mappings()]


def count(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(events)) or 0


def first_break(connection: Connection) -> int | None:
    """The id of the first event that does not follow from the one before; `None` when the chain holds."""
    previous = FIRST
    for row in connection.execute(select(events).order_by(events.c.id)).mappings():
        expected = _digest(previous, row["at"], row["actor"], row["kind"], row["subject"], row["body_json"])
        if row["previous"] != previous or row["digest"] != expected:
            return int(row["id"])
        previous = row["digest"]
    return None


def _digest(*fields: object) -> str:
    """Over (previous, at, actor, kind, subject, body_json)."""
    return sha256_hex(encode_json(fields))


def _row(row: RowMapping) -> EventRow:
    return EventRow(
        row["id"], row["at"], row["actor"], row["kind"], row["subject"],
        msgspec.json.decode(row["body_json"]), row["previous"], row["digest"],
    )  # fmt: skip


learn(__name__)
