"""The tables. Columns named `*_json` hold a struct as JSON text; times are Unix seconds.

Postgres-clean: no SQLite-only types, 64-bit integers where a device or the clock supplies the number.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, Table, Text, UniqueConstraint

SCHEMA: Final = 1

metadata = MetaData()
_Counter = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in a plain INTEGER key


def _of_device(*, primary_key: bool = False) -> Column[str]:
    """Rows that go when their device does."""
    return Column("device", Text, ForeignKey("devices.id", ondelete="CASCADE"), primary_key=primary_key, nullable=False)


schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

versions = Table(
    "versions",
    metadata,
    Column("model", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("manifest_sha256", Text, nullable=False),
    Column("bundle_sha256", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("path", Text, nullable=False),  # TUF target path
    Column("signature", Text, nullable=False),  # digest of the named inputs and outputs
    Column("manifest_json", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("state", Text, nullable=False),  # signing | published
)

devices = Table(
    "devices",
    metadata,
    Column("id", Text, primary_key=True),
    Column("token_sha256", Text, nullable=False, unique=True),
    Column("mqtt_hash", Text, nullable=False),
    Column("enrolled_at", Float, nullable=False),
    Column("tags_json", Text, nullable=False),  # the operator's; they win over what the device says of itself
    Column("state_json", Text),
    Column("session", BigInteger, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("last_seen", Float),
    Column("rev", BigInteger, nullable=False),
    Column("desired_json", Text, nullable=False),
    Column("told_rev", BigInteger, nullable=False),  # the highest rev the broker has acknowledged
)
Index(
    "devices_untold",
    devices.c.id,
    sqlite_where=devices.c.rev > devices.c.told_rev,
    postgresql_where=devices.c.rev > devices.c.told_rev,
)

installed = Table(
    "installed",
    metadata,
    _of_device(primary_key=True),
    Column("model", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("manifest_sha256", Text, nullable=False),
)
"""The version of each model that a device says is active."""

attempts = Table(
    "attempts",
    metadata,
    _of_device(primary_key=True),
    Column("manifest_sha256", Text, primary_key=True),
    Column("rollout", Text, primary_key=True),  # "" outside a rollout
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("rev", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("code", Text),
    Column("detail", Text),
    Column("retryable", Boolean, nullable=False),
    Column("received_at", Float, nullable=False),
)
"""The newest report (by seq) of each device on each bundle, for each rollout."""
Index("attempts_of_rollout", attempts.c.rollout, attempts.c.version)
Index("attempts_of_model", attempts.c.model, attempts.c.state)

reports = Table(
    "reports",
    metadata,
    Column("id", _Counter, primary_key=True, autoincrement=True),
    _of_device(),
    Column("seq", BigInteger, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text),
    Column("rollout", Text),
    Column("state", Text, nullable=False),
    Column("code", Text),
    Column("body_json", Text, nullable=False),
    UniqueConstraint("device", "seq"),
)
Index("reports_of_rollout", reports.c.rollout, reports.c.device)

telemetry = Table(
    "telemetry",
    metadata,
    Column("id", _Counter, primary_key=True, autoincrement=True),
    _of_device(),
    Column("seq", BigInteger, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("start", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("runs", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("fallbacks", BigInteger, nullable=False),
    Column("body_json", Text, nullable=False),
    UniqueConstraint("device", "seq"),
)
Index("telemetry_of_model", telemetry.c.model, telemetry.c.id)

drifts = Table(
    "drifts",  # devices whose newest window of a model has a stream in alarm
    metadata,
    _of_device(primary_key=True),
    Column("model", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("streams_json", Text, nullable=False),
)

shadows = Table(
    "shadows",  # how a version did that ran beside another on a device: the sums of its windows
    metadata,
    _of_device(primary_key=True),
    Column("manifest_sha256", Text, primary_key=True),
    Column("runs", BigInteger, nullable=False),
    Column("agreed", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("served_s", Float, nullable=False),
    Column("shadow_s", Float, nullable=False),
)
Index("shadows_of_version", shadows.c.manifest_sha256)

forgotten = Table(
    "forgotten",  # devices that were forgotten: what they said up to a number is not taken, should it come late
    metadata,
    Column("device", Text, ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("before_seq", BigInteger, nullable=False),
    Column("at", Float, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("state_json", Text, nullable=False),  # holds the spec
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

assignments = Table(
    "assignments",
    metadata,
    Column("rollout", Text, ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True),
    _of_device(primary_key=True),
    Column("wave", Integer, nullable=False),
    Column("told_at", Float, nullable=False),
    Column("previous_json", Text),
    Column("taken_back_at", Float),
)

events = Table(
    "events",
    metadata,
    Column("id", _Counter, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("body_json", Text, nullable=False),
    Column("previous", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
)
