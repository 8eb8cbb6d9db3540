"""Forget what a device said, and take none of it that comes late."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, func, select, update

from edgeml.fleet.store.database import upsert
from edgeml.fleet.store.tables import attempts, drifts, forgotten, reports, shadows, telemetry


def forget(connection: Connection, device: str, before_seq: int | None, at: float) -> tuple[int, int]:
    """Delete reports and telemetry up to a sequence number (`None`: all there are); gives how many of each.

    What is kept of each attempt at a version (state and code) loses its words: without the rest a rollout would be blind.
    """
    newest = [connection.scalar(select(func.max(t.c.seq)).where(t.c.device == device)) or 0 for t in (reports, telemetry)]
    until = max(newest) if before_seq is None else before_seq
    gone = []
    for table in (reports, telemetry):
        said = (table.c.device == device) & (table.c.seq <= until)
        gone.append(connection.execute(delete(table).where(said)).rowcount)
    connection.execute(delete(drifts).where((drifts.c.device == device) & (drifts.c.seq <= until)))
    connection.execute(delete(shadows).where(shadows.c.device == device))  # sums: what is later cannot be told from the rest
    words = (attempts.c.device == device) & (attempts.c.seq <= until)
    connection.execute(update(attempts).where(words).values(detail=None))
    values = {"before_seq": until, "at": at}
    insert = upsert(connection, forgotten).values(device=device, **values)
    later = forgotten.c.before_seq < until
    connection.execute(insert.on_conflict_do_update(index_elements=["device"], set_=values, where=later))
    return gone[0], gone[1]


def floors(connection: Connection, devices: Collection[str]) -> dict[str, int]:
    """The number up to which each of these devices was forgotten, where one was."""
    query = select(forgotten.c.device, forgotten.c.before_seq).where(forgotten.c.device.in_(devices))
    return {row.device: row.before_seq for row in connection.execute(query)}
