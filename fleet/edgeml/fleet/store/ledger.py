"""The store as the controller sees it: `edgeml.fleet.ledger.Ledger` on tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, bindparam, select, update

from edgeml.fleet.ledger import Assignment, Device, Event, Order, Outcome, TelemetrySum, VersionFacts
from edgeml.fleet.rollout import ENDED, RolloutState
from edgeml.fleet.store import devices, events, versions
from edgeml.fleet.store.database import Store, upsert
from edgeml.fleet.store.sums import TelemetrySums
from edgeml.fleet.store.tables import assignments, attempts, installed, rollouts
from edgeml.fleet.store.tables import devices as device_table
from edgeml.fleet.store.versions import VersionRow
from edgeml.wire.manifest import Manifest
from edgeml.wire.messages import State, Target

_GAVE_UP = ("failed", "rejected", "rolled_back")


class StoreLedger:
    """`Ledger` on a store.

    Args:
        changed: called after a commit with the devices that are now wanted something else.
    """

    def __init__(self, store: Store, changed: Callable[[Sequence[str]], None] = lambda _: None) -> None:
        self._store = store
        self._changed = changed
        self._sums = TelemetrySums(store)
        self._versions: dict[str, VersionFacts] = {}  # by manifest digest: a version never changes

    def forget_sums(self) -> None:
        """Telemetry was deleted: add up anew what is left."""
        self._sums.forget()

    def rollouts(self) -> Sequence[RolloutState]:
        query = select(rollouts.c.state_json).where(rollouts.c.phase.not_in(ENDED)).order_by(rollouts.c.created_at.desc())
        with self._store.read() as connection:
            states = [_state(text) for text in connection.scalars(query)]
        finished: set[str] = set()
        chosen = []
        for state in states:
            if state.phase == "done":
                if state.spec.model in finished:
                    continue
                finished.add(state.spec.model)
            chosen.append(state)
        return chosen

    def version(self, model: str, version: str) -> VersionFacts | None:
        with self._store.read() as connection:
            row = versions.find(connection, model, version)
            if row is None or row.state != "published":
                return None
            known = self._versions.get(row.manifest_sha256)
            text = versions.manifest_json(connection, model, version) if known is None else None
        if known is None and text is not None:
            known = self._versions[row.manifest_sha256] = _facts(row, msgspec.json.decode(text, type=Manifest))
        return known

    def devices(self, model: str) -> Sequence[Device]:
        active = installed.alias()
        joined = device_table.outerjoin(active, (active.c.device == device_table.c.id) & (active.c.model == model))
        query = select(device_table, active.c.version, active.c.manifest_sha256).select_from(joined).order_by(device_table.c.id)
        with self._store.read() as connection:
            failed = _failed(connection, model)
            rows = connection.execute(query).mappings().all()
        return [_device(row, model, failed.get(row["id"], frozenset())) for row in rows]

    def assignments(self, rollout: str) -> Sequence[Assignment]:
        query = select(assignments).where(assignments.c.rollout == rollout).order_by(assignments.c.device)
        with self._store.read() as connection:
            rows = connection.execute(query).all()
        return [Assignment(row.device, row.wave, row.told_at, _target(row.previous_json), row.taken_back_at) for row in rows]

    def outcomes(self, rollout: str, version: str) -> Sequence[Outcome]:
        columns = attempts.c
        query = select(columns.device, columns.state, columns.received_at, columns.code, columns.retryable)
        query = query.where(columns.rollout == rollout, columns.version == version).order_by(columns.device)
        with self._store.read() as connection:
            return [Outcome(*row) for row in connection.execute(query)]

    def telemetry(self, model: str, since: float, until: float) -> Sequence[TelemetrySum]:
        return self._sums.between(model, since, until)

    def save(self, state: RolloutState) -> None:
        with self._store.write() as connection:
            save_rollout(connection, state)

    def tell(self, orders: Sequence[Order]) -> int:
        with self._store.write() as connection:
            changed = _tell(connection, orders)
        if changed:
            self._changed(changed)
        return len(changed)

    def append(self, event: Event) -> None:
        with self._store.write() as connection:
            body = {"text": event.text}
            events.append(connection, at=event.at, actor="controller", kind=event.kind, subject=event.rollout, body=body)


def save_rollout(connection: Connection, state: RolloutState) -> None:
    values = {
        "id": state.spec.id,
        "model": state.spec.model,
        "version": state.spec.version,
        "phase": state.phase,
        "state_json": msgspec.json.encode(state).decode(),
        "created_at": state.spec.created_at,
        "updated_at": max(verdict.at for verdict in state.verdicts) if state.verdicts else state.spec.created_at,
    }
    kept = upsert(connection, rollouts).values(values)
    connection.execute(kept.on_conflict_do_update(index_elements=["id"], set_=values))


def find_rollout(connection: Connection, rollout: str) -> RolloutState | None:
    text = connection.scalar(select(rollouts.c.state_json).where(rollouts.c.id == rollout))
    return _state(text) if text is not None else None


def listed_rollouts(connection: Connection, limit: int = 100) -> list[RolloutState]:
    """The newest first."""
    query = select(rollouts.c.state_json).order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc()).limit(limit)
    return [_state(text) for text in connection.scalars(query)]


def _tell(connection: Connection, orders: Sequence[Order]) -> list[str]:
    rows = _desired_rows(connection, [order.device for order in orders])
    changes: list[dict[str, Any]] = []
    for order in orders:
        row = rows.get(order.device)
        if row is None:
            continue  # removed since the controller read the fleet
        rev, targets = row
        previous = next((target for target in targets if target.model == order.target.model), None)
        # A device on its factory bundle was never told anything: what it says it runs is what it goes back to.
        _assign(connection, order, previous if previous is not None else order.previous)
        if previous is not None and devices.same_target(order.target, previous):
            continue
        others = [target for target in targets if target.model != order.target.model]
        wanted = tuple(sorted([*others, order.target], key=lambda target: target.model))
        rows[order.device] = (rev + 1, wanted)
        changes.append({"device": order.device, "next": rev + 1, "wanted": msgspec.json.encode(wanted).decode()})
    if changes:
        statement = update(device_table).where(device_table.c.id == bindparam("device"))
        connection.execute(statement.values(rev=bindparam("next"), desired_json=bindparam("wanted")), changes)
    return [change["device"] for change in changes]


def _desired_rows(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[int, tuple[Target, ...]]]:
    found: dict[str, tuple[int, tuple[Target, ...]]] = {}
    columns = (device_table.c.id, device_table.c.rev, device_table.c.desired_json)
    for start in range(0, len(ids), 500):  # databases bound the number of parameters
        query = select(*columns).where(device_table.c.id.in_(ids[start : start + 500]))
        for row in connection.execute(query):
            found[row.id] = (row.rev, msgspec.json.decode(row.desired_json, type=tuple[Target, ...]))
    return found


def _assign(connection: Connection, order: Order, previous: Target | None) -> None:
    if order.kind == "take_back":
        mine = (assignments.c.rollout == order.rollout) & (assignments.c.device == order.device)
        once = mine & assignments.c.taken_back_at.is_(None)
        connection.execute(update(assignments).where(once).values(taken_back_at=order.at))
        return
    text = msgspec.json.encode(previous).decode() if previous is not None else None
    values = {"rollout": order.rollout, "device": order.device, "wave": order.wave, "told_at": order.at, "previous_json": text}
    first = upsert(connection, assignments).values(values)
    connection.execute(first.on_conflict_do_nothing(index_elements=["rollout", "device"]))


def _failed(connection: Connection, model: str) -> dict[str, frozenset[str]]:
    """Device -> the manifests whose newest report is an end that trying again will not change."""
    columns = attempts.c
    query = select(columns.device, columns.manifest_sha256, columns.seq, columns.state, columns.retryable)
    newest: dict[tuple[str, str], tuple[int, bool]] = {}
    for row in connection.execute(query.where(columns.model == model)):
        gave_up = row.state in _GAVE_UP and not row.retryable
        key = (row.device, row.manifest_sha256)
        newest[key] = max(newest.get(key, (-1, False)), (row.seq, gave_up))
    failed: dict[str, frozenset[str]] = {}
    for (device, manifest), (_, gave_up) in newest.items():
        if gave_up:
            failed[device] = failed.get(device, frozenset()) | {manifest}
    return failed


def _device(row: RowMapping, model: str, failed: frozenset[str]) -> Device:
    state = msgspec.json.decode(row["state_json"], type=State) if row["state_json"] else None
    own: dict[str, str] = msgspec.json.decode(row["tags_json"])
    targets = msgspec.json.decode(row["desired_json"], type=tuple[Target, ...])
    return Device(
        id=row["id"],
        tags={**(state.tags if state else {}), **own},
        engines=frozenset(state.engines) if state else frozenset(),
        signature=state.models.get(model) if state else None,
        online=row["online"],
        last_seen=row["last_seen"],
        target=next((target for target in targets if target.model == model), None),
        version=row["version"],
        manifest_sha256=row["manifest_sha256"],
        failed=failed,
    )


def _facts(row: VersionRow, manifest: Manifest) -> VersionFacts:
    return VersionFacts(
        model=row.model,
        version=row.version,
        manifest_sha256=row.manifest_sha256,
        path=row.path,
        signature=row.signature,
        engines=frozenset(artifact.requires.engine for artifact in manifest.artifacts),
        confidence=manifest.reference.confidence if manifest.reference else None,
        offload=max((d.promise.offload for a in manifest.artifacts if (d := a.deferral) and d.promise), default=0.0),
    )


def _state(text: str) -> RolloutState:
    return msgspec.json.decode(text, type=RolloutState)


def _target(text: str | None) -> Target | None:
    return msgspec.json.decode(text, type=Target) if text is not None else None
