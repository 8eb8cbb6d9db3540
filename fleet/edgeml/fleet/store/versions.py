"""Published model versions."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, RowMapping, insert, select, update

from edgeml.fleet.store.tables import versions
from edgeml.wire.structs import learn


class VersionRow(msgspec.Struct, frozen=True):
    """A version as published; `path` is its TUF target path."""

    model: str
    version: str
    manifest_sha256: str
    bundle_sha256: str
    bytes: int
    path: str
    signature: str
    created_at: float
    state: str


_COLUMNS = [versions.c[name] for name in VersionRow.__struct_fields__]


def add(connection: Connection, row: VersionRow, manifest_json: bytes) -> None:
    connection.execute(insert(versions).values(**msgspec.structs.asdict(row), manifest_json=manifest_json.decode()))


def set_state(connection: Connection, model: str, version: str, state: str) -> None:
    chosen = (versions.c.model == model) & (versions.c.version == version)
    connection.execute(update(versions).where(chosen).values(state=state))


def find(connection: Connection, model: str, version: str) -> VersionRow | None:
    query = select(*_COLUMNS).where(versions.c.model == model, versions.c.version == version)
    row = connection.execute(query).mappings().first()
    return _row(row) if row else None


def listed(connection: Connection, model: str | None = None) -> list[VersionRow]:
    """All versions, newest first."""
    query = select(*_COLUMNS).order_by(versions.c.created_at.desc(), versions.c.version.desc())
    if model is not None:
        query = query.where(versions.c.model == model)
    return [_row(row) for row in connection.execute(query).mappings()]


def manifest_json(connection: Connection, model: str, version: str) -> str | None:
    query = select(versions.c.manifest_json).where(versions.c.model == model, versions.c.version == version)
    found: str | None = connection.scalar(query)
    return found


def _row(row: RowMapping) -> VersionRow:
    return VersionRow(**row)


learn(__name__)
