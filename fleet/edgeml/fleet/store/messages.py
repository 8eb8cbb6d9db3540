"""What devices said: each report and telemetry window exactly once, by (device, seq)."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select, update

from edgeml.fleet.store.database import upsert
from edgeml.fleet.store.tables import attempts, drifts, installed, reports, shadows, telemetry
from edgeml.wire.messages import Report, ShadowCounts, Telemetry
from edgeml.wire.structs import learn


class Attempt(msgspec.Struct, frozen=True):
    """Where a device stands with one bundle: its newest report on it, by seq. `rollout` is "" outside one."""

    device: str
    model: str
    version: str
    manifest_sha256: str
    rollout: str
    seq: int
    rev: int
    state: str
    code: str | None
    detail: str | None
    retryable: bool
    received_at: float


class ShadowSum(msgspec.Struct, frozen=True):
    """Calls that a version was given beside another, unheard: `agreed` of `runs` answers were the same, `errors` failed."""

    devices: int
    runs: int
    agreed: int
    errors: int
    served_s: float  # what the calls took by the version that answered
    shadow_s: float  # and by this one


def add_report(connection: Connection, report: Report, received_at: float) -> bool:
    """Gives `False`, changing nothing, if the store has this (device, seq) already."""
    insert = upsert(connection, reports).values(
        device=report.device, seq=report.seq, received_at=received_at, model=report.model, version=report.version,
        rollout=report.rollout, state=report.state, code=report.code, body_json=msgspec.json.encode(report).decode(),
    )  # fmt: skip
    if connection.execute(insert.on_conflict_do_nothing(index_elements=["device", "seq"])).rowcount < 1:
        return False
    if _is_newest(connection, report):
        active = next((slot for slot in report.slots if slot.active), None)
        if active is not None:
            set_installed(connection, report.device, report.model, active.version, active.manifest_sha256)
    if report.version is not None and report.manifest_sha256 is not None:
        _add_attempt(connection, report, received_at)
    return True


def _is_newest(connection: Connection, report: Report) -> bool:
    mine = (reports.c.device == report.device) & (reports.c.model == report.model)
    newest = connection.scalar(select(func.max(reports.c.seq)).where(mine))
    return bool(newest == report.seq)


def _add_attempt(connection: Connection, report: Report, received_at: float) -> None:
    values = {
        "device": report.device, "manifest_sha256": report.manifest_sha256, "rollout": report.rollout or "",
        "model": report.model, "version": report.version, "seq": report.seq, "rev": report.rev, "state": report.state,
        "code": report.code, "detail": report.detail, "retryable": report.retryable, "received_at": received_at,
    }  # fmt: skip
    newest = upsert(connection, attempts).values(values)
    key = ["device", "manifest_sha256", "rollout"]
    connection.execute(newest.on_conflict_do_update(index_elements=key, set_=values, where=attempts.c.seq < report.seq))


def set_installed(connection: Connection, device: str, model: str, version: str, manifest_sha256: str) -> None:
    values = {"device": device, "model": model, "version": version, "manifest_sha256": manifest_sha256}
    insert = upsert(connection, installed).values(values)
    connection.execute(insert.on_conflict_do_update(index_elements=["device", "model"], set_=values))


def add_telemetry(connection: Connection, window: Telemetry, received_at: float) -> bool:
    """Gives `False`, changing nothing, if the store has this (device, seq) already."""
    insert = upsert(connection, telemetry).values(
        device=window.device, seq=window.seq, received_at=received_at, model=window.model, version=window.version,
        start=window.start, seconds=window.seconds, runs=window.runs, errors=sum(window.errors.values()),
        fallbacks=sum(window.fallbacks.values()), body_json=msgspec.json.encode(window).decode(),
    )  # fmt: skip
    if connection.execute(insert.on_conflict_do_nothing(index_elements=["device", "seq"])).rowcount < 1:
        return False
    _note_drift(connection, window)
    if window.shadow is not None:
        _add_shadow(connection, window, window.shadow)
    return True


def _note_drift(connection: Connection, window: Telemetry) -> None:
    """Keep which streams stand in alarm, as of the newest window: every window names all of them."""
    alarms = sorted(stream for stream, drift in window.drift.items() if drift.alarm)
    streams = {"seq": window.seq, "streams_json": msgspec.json.encode(alarms).decode()}
    newer = drifts.c.seq < window.seq
    if alarms:
        insert = upsert(connection, drifts).values(device=window.device, model=window.model, **streams)
        connection.execute(insert.on_conflict_do_update(index_elements=["device", "model"], set_=streams, where=newer))
    else:
        mine = (drifts.c.device == window.device) & (drifts.c.model == window.model)
        connection.execute(update(drifts).where(mine & newer).values(**streams))


def _add_shadow(connection: Connection, window: Telemetry, counts: ShadowCounts) -> None:
    added = {
        "runs": counts.runs, "agreed": counts.agreed, "errors": counts.errors, "served_s": counts.served_s,
        "shadow_s": counts.shadow_s,
    }  # fmt: skip
    insert = upsert(connection, shadows).values(device=window.device, manifest_sha256=counts.manifest_sha256, **added)
    sums = {name: shadows.c[name] + insert.excluded[name] for name in added}
    connection.execute(insert.on_conflict_do_update(index_elements=["device", "manifest_sha256"], set_=sums))


def shadow_of(connection: Connection, manifest_sha256: str) -> ShadowSum | None:
    """How a version did beside others, over all devices; `None` if it never ran so."""
    sums = [func.sum(shadows.c[name]) for name in ("runs", "agreed", "errors", "served_s", "shadow_s")]
    query = select(func.count(), *sums).where(shadows.c.manifest_sha256 == manifest_sha256)
    row = connection.execute(query).one()
    return ShadowSum(*row) if row[0] else None


def drifts_of(connection: Connection, device: str | None = None) -> dict[str, dict[str, tuple[str, ...]]]:
    """Device -> model -> the streams in alarm; only devices that have any."""
    query = select(drifts) if device is None else select(drifts).where(drifts.c.device == device)
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in connection.execute(query):
        streams = tuple(msgspec.json.decode(row.streams_json, type=list[str]))
        if streams:
            found.setdefault(row.device, {})[row.model] = streams
    return found


def attempts_of(connection: Connection, device: str) -> list[Attempt]:
    """The newest first."""
    query = select(attempts).where(attempts.c.device == device).order_by(attempts.c.seq.desc())
    return [Attempt(**row) for row in connection.execute(query).mappings()]


def installed_of(connection: Connection, device: str | None = None) -> dict[str, dict[str, str]]:
    """Device -> model -> the version that is active there."""
    query = select(installed) if device is None else select(installed).where(installed.c.device == device)
    found: dict[str, dict[str, str]] = {}
    for row in connection.execute(query):
        found.setdefault(row.device, {})[row.model] = row.version
    return found


def reports_of(connection: Connection, device: str, limit: int = 50) -> list[Report]:
    """The newest first."""
    query = select(reports.c.body_json).where(reports.c.device == device).order_by(reports.c.seq.desc()).limit(limit)
    return [msgspec.json.decode(body, type=Report) for body in connection.scalars(query)]


def windows_of(connection: Connection, device: str, limit: int = 50) -> list[Telemetry]:
    """The newest first."""
    query = select(telemetry.c.body_json).where(telemetry.c.device == device).order_by(telemetry.c.seq.desc()).limit(limit)
    return [msgspec.json.decode(body, type=Telemetry) for body in connection.scalars(query)]


def totals(connection: Connection) -> tuple[int, int]:
    """(reports, telemetry windows) in the store."""
    return (
        connection.scalar(select(func.count()).select_from(reports)) or 0,
        connection.scalar(select(func.count()).select_from(telemetry)) or 0,
    )


learn(__name__)
