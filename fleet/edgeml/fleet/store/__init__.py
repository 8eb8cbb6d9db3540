"""What the service remembers: tables and queries. SQLite in a file by default, Postgres by its address."""

from edgeml.fleet.store.database import Store

__all__ = ["Store"]
