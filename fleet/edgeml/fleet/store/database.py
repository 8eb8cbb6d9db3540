"""Open the database: one writer at a time, readers beside it, a schema that says its version."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError

from edgeml.fleet.store import tables
from edgeml.wire.errors import EnvironmentProblem


class Store:
    """The service's memory. `write` is one transaction and one writer; `read` sees one moment and blocks nobody.

    Args:
        place: a SQLite file, created if missing, or the address of a Postgres database (`postgresql+psycopg://…`).
    """

    def __init__(self, place: Path | str) -> None:
        self._lock = threading.RLock()
        if isinstance(place, Path):
            place.parent.mkdir(parents=True, exist_ok=True)
            self._writer = _sqlite_engine(place, "BEGIN IMMEDIATE")
            self._reader = _sqlite_engine(place, "BEGIN")
        else:
            self._writer = self._reader = create_engine(place, isolation_level="REPEATABLE READ")
        try:
            self._create()
        except DatabaseError as error:
            self.close()
            raise EnvironmentProblem(f"cannot open the database {str(place)!r}: {error.orig}") from error
        except BaseException:
            self.close()
            raise

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: all of it happens, or nothing."""
        with self._lock, self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self._reader.begin() as connection:
            yield connection

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()

    def _create(self) -> None:
        with self.write() as connection:
            tables.metadata.create_all(connection)
            found = connection.scalar(select(tables.schema_version.c.version))
            if found is None:
                connection.execute(insert(tables.schema_version).values(version=tables.SCHEMA))
            elif found != tables.SCHEMA:
                raise EnvironmentProblem(
                    "the database's schema",
                    expected=str(tables.SCHEMA),
                    got=str(found),
                    hint="use the edgeml-toolkit that wrote it",
                )


def upsert(connection: Connection, table: Table) -> Any:
    """An INSERT of this database's dialect that can say what to do on conflict; both dialects spell it alike."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _sqlite_engine(place: Path, begin: str) -> Engine:
    engine = create_engine(f"sqlite:///{place}", connect_args={"timeout": 30.0, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "journal_size_limit=67108864"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
