"""Devices: who they are, what the fleet wants of them, and whether they are there."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec
from sqlalchemy import Connection, RowMapping, bindparam, case, delete, func, or_, select, update

from edgeml.fleet.store.database import upsert
from edgeml.fleet.store.tables import devices
from edgeml.wire.messages import Desired, State, Target
from edgeml.wire.structs import learn

_NO_TARGETS = "[]"


class DeviceRow(msgspec.Struct, frozen=True):
    """A device as the service knows it; `tags` are its own, with the operator's over them."""

    id: str
    tags: dict[str, str]
    session: int
    online: bool
    last_seen: float | None
    enrolled_at: float
    desired: Desired
    told_rev: int
    state: State | None = None


class NewDevice(msgspec.Struct, frozen=True):
    """What is stored at enrolment; the token itself is not."""

    id: str
    token_sha256: str
    mqtt_hash: str
    tags: dict[str, str]


def add(connection: Connection, new: Iterable[NewDevice], at: float) -> list[str]:
    """Enrol; gives the ids that were taken already, and then enrols none of the others either if the caller rolls back."""
    rows = list(new)
    taken = set(connection.scalars(select(devices.c.id).where(devices.c.id.in_([row.id for row in rows]))))
    fresh = [
        {
            "id": row.id,
            "token_sha256": row.token_sha256,
            "mqtt_hash": row.mqtt_hash,
            "tags_json": msgspec.json.encode(row.tags).decode(),
            "enrolled_at": at,
            "session": 0,
            "online": False,
            "rev": 0,
            "desired_json": _NO_TARGETS,
            "told_rev": 0,
        }
        for row in rows
        if row.id not in taken
    ]
    if fresh:
        connection.execute(upsert(connection, devices), fresh)
    return sorted(taken)


def remove(connection: Connection, device: str) -> bool:
    return connection.execute(delete(devices).where(devices.c.id == device)).rowcount > 0


def renew_token(connection: Connection, device: str, token_sha256: str, mqtt_hash: str) -> bool:
    """A new token; sessions count from anew, since the board behind the id may be a new one."""
    values = {"token_sha256": token_sha256, "mqtt_hash": mqtt_hash, "session": 0, "online": False}
    return connection.execute(update(devices).where(devices.c.id == device).values(values)).rowcount > 0


def set_tags(connection: Connection, device: str, tags: dict[str, str]) -> bool:
    values = {"tags_json": msgspec.json.encode(tags).decode()}
    return connection.execute(update(devices).where(devices.c.id == device).values(values)).rowcount > 0


def by_token(connection: Connection, token_sha256: str) -> str | None:
    found: str | None = connection.scalar(select(devices.c.id).where(devices.c.token_sha256 == token_sha256))
    return found


def passwords(connection: Connection) -> dict[str, str]:
    """Device id -> the hash its broker password is checked against."""
    return {
        row.id: row.mqtt_hash for row in connection.execute(select(devices.c.id, devices.c.mqtt_hash).order_by(devices.c.id))
    }


def known(connection: Connection, ids: Collection[str]) -> set[str]:
    return set(connection.scalars(select(devices.c.id).where(devices.c.id.in_(ids))))


def find(connection: Connection, device: str) -> DeviceRow | None:
    row = connection.execute(select(devices).where(devices.c.id == device)).mappings().first()
    return _row(row) if row else None


def listed(connection: Connection, *, after: str = "", limit: int | None = None) -> list[DeviceRow]:
    """By id; `after` is the last id of the page before."""
    query = select(devices).where(devices.c.id > after).order_by(devices.c.id).limit(limit)
    return [_row(row) for row in connection.execute(query).mappings()]


def counts(connection: Connection) -> tuple[int, int]:
    """(enrolled, online)."""
    row = connection.execute(select(func.count(), func.count(case((devices.c.online, 1))))).one()
    return row[0], row[1]


def desired(connection: Connection, device: str) -> Desired | None:
    row = connection.execute(select(devices.c.rev, devices.c.desired_json).where(devices.c.id == device)).first()
    return _desired(row.rev, row.desired_json) if row else None


def want(connection: Connection, device: str, target: Target) -> int | None:
    """Set what the fleet wants of one model on a device; gives the device's new rev, or `None` if nothing changed.

    `target.not_before` and `deadline` alone do not make a new rev: telling twice must change nothing.
    """
    now = desired(connection, device)
    if now is None:
        return None
    if any(same_target(target, old) for old in now.targets):
        return None
    kept = tuple(old for old in now.targets if old.model != target.model)
    targets = tuple(sorted((*kept, target), key=lambda one: one.model))
    rev = now.rev + 1
    values = {"rev": rev, "desired_json": msgspec.json.encode(targets).decode()}
    connection.execute(update(devices).where(devices.c.id == device, devices.c.rev == now.rev).values(values))
    return rev


def untold(connection: Connection, limit: int) -> list[tuple[str, Desired]]:
    """Devices whose newest revision the broker has not acknowledged."""
    query = select(devices.c.id, devices.c.rev, devices.c.desired_json).where(devices.c.rev > devices.c.told_rev).limit(limit)
    return [(row.id, _desired(row.rev, row.desired_json)) for row in connection.execute(query)]


def told(connection: Connection, acknowledged: Iterable[tuple[str, int]]) -> None:
    rows = [{"device": device, "acknowledged": rev} for device, rev in acknowledged]
    if rows:
        chosen = (devices.c.id == bindparam("device")) & (devices.c.told_rev < bindparam("acknowledged"))
        connection.execute(update(devices).where(chosen).values(told_rev=bindparam("acknowledged")), rows)


def forget_told(connection: Connection) -> None:
    """The broker lost what it retained: tell everyone again."""
    connection.execute(update(devices).where(devices.c.told_rev > 0).values(told_rev=0))


def seen(connection: Connection, times: dict[str, float]) -> None:
    rows = [{"device": device, "at": at} for device, at in times.items()]
    if rows:
        older = or_(devices.c.last_seen.is_(None), devices.c.last_seen < bindparam("at"))
        connection.execute(
            update(devices).where(devices.c.id == bindparam("device"), older).values(last_seen=bindparam("at")), rows
        )


def present(connection: Connection, state: State) -> bool:
    """Take a birth or a last will; one of an older session changes nothing. Gives whether it was taken."""
    mine = devices.c.id == state.device
    if state.online:
        chosen = mine & (devices.c.session <= state.session)
        values = {"session": state.session, "online": True, "state_json": msgspec.json.encode(state).decode()}
    else:
        chosen = mine & (devices.c.session <= state.session)
        values = {"session": state.session, "online": False}
    return connection.execute(update(devices).where(chosen).values(values)).rowcount > 0


def same_target(new: Target, old: Target) -> bool:
    """Whether `new` asks for nothing but what `old` asks for; times alone do not make a new revision."""
    return msgspec.structs.replace(new, not_before=old.not_before, deadline=old.deadline) == old


def _desired(rev: int, targets_json: str) -> Desired:
    return Desired(rev, msgspec.json.decode(targets_json, type=tuple[Target, ...]))


def _row(row: RowMapping) -> DeviceRow:
    state = msgspec.json.decode(row["state_json"], type=State) if row["state_json"] else None
    tags: dict[str, str] = msgspec.json.decode(row["tags_json"])
    return DeviceRow(
        id=row["id"],
        tags={**(state.tags if state else {}), **tags},
        session=row["session"],
        online=row["online"],
        last_seen=row["last_seen"],
        enrolled_at=row["enrolled_at"],
        desired=_desired(row["rev"], row["desired_json"]),
        told_rev=row["told_rev"],
        state=state,
    )


learn(__name__)
