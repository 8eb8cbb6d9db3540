"""What the API shows: plain structs for the command line and the page."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, func, select

from edgeml.fleet.rollout import RolloutSpec, RolloutState, Verdict
from edgeml.fleet.samples import SampleRow, SampleSums
from edgeml.fleet.service import Fleet
from edgeml.fleet.store import devices, events, messages, versions
from edgeml.fleet.store.devices import DeviceRow
from edgeml.fleet.store.ledger import listed_rollouts
from edgeml.fleet.store.tables import assignments, attempts, installed
from edgeml.fleet.store.versions import VersionRow
from edgeml.wire.structs import learn

SAMPLES_SHOWN: Final = 20


class RolloutView(msgspec.Struct, frozen=True):
    """A rollout with its evidence. `told` are devices it was offered to; `positions` counts them by their newest report."""

    id: str
    model: str
    version: str
    phase: str
    wave: int
    share: float
    sentence: str
    told: int
    taken_back: int
    positions: dict[str, int]
    shadow: messages.ShadowSum | None  # how it did beside the versions it is to replace
    verdicts: tuple[Verdict, ...]
    spec: RolloutSpec
    started_at: float | None
    ended_at: float | None


class DeviceView(msgspec.Struct, frozen=True):
    id: str
    online: bool
    last_seen: float | None
    enrolled_at: float
    tags: dict[str, str]
    rev: int
    told_rev: int
    wanted: dict[str, str | None]  # model -> version
    installed: dict[str, str]
    runtime: str = ""
    arch: str = ""
    engines: dict[str, str] = {}
    drift: dict[str, tuple[str, ...]] = {}  # model -> streams that left the reference


class BrokerView(msgspec.Struct, frozen=True):
    name: str
    url: str | None
    connected: bool


class ServiceView(msgspec.Struct, frozen=True):
    now: float
    started_at: float
    broker: BrokerView
    ticks: int
    failed_ticks: int
    reports: int
    telemetry: int
    bundle_requests: int  # downloads of bundles, whole or in part, since the start
    duplicates: int
    dropped: dict[str, int]


class FleetView(msgspec.Struct, frozen=True):
    """`by_version` counts devices by what they say is active: model -> version -> devices."""

    devices: int
    online: int
    drifting: int  # devices with a stream in alarm
    by_version: dict[str, dict[str, int]]


class SamplesView(msgspec.Struct, frozen=True):
    """Inputs that devices were allowed to send: what is kept, and the newest. `taken` is whether this service takes any."""

    taken: bool
    kept: SampleSums
    newest: list[SampleRow]


class Overview(msgspec.Struct, frozen=True):
    """All that the page shows, in one answer."""

    service: ServiceView
    fleet: FleetView
    models: list[VersionRow]
    rollouts: list[RolloutView]
    devices: list[DeviceView]
    samples: SamplesView
    events: list[events.EventRow]


def rollout_view(connection: Connection, state: RolloutState) -> RolloutView:
    mine = assignments.c.rollout == state.spec.id
    told = connection.execute(select(func.count(), func.count(assignments.c.taken_back_at)).where(mine)).one()
    reported = (attempts.c.rollout == state.spec.id) & (attempts.c.version == state.spec.version)
    counted = select(attempts.c.state, func.count()).where(reported).group_by(attempts.c.state)
    return RolloutView(
        id=state.spec.id,
        model=state.spec.model,
        version=state.spec.version,
        phase=state.phase,
        wave=state.wave,
        share=state.share,
        sentence=state.sentence,
        told=told[0],
        taken_back=told[1],
        positions={row[0]: row[1] for row in connection.execute(counted)},
        shadow=messages.shadow_of(connection, state.spec.manifest_sha256),
        verdicts=state.verdicts,
        spec=state.spec,
        started_at=state.started_at,
        ended_at=state.ended_at,
    )


def device_view(row: DeviceRow, active: dict[str, str], drift: dict[str, tuple[str, ...]]) -> DeviceView:
    return DeviceView(
        id=row.id,
        online=row.online,
        last_seen=row.last_seen,
        enrolled_at=row.enrolled_at,
        tags=row.tags,
        rev=row.desired.rev,
        told_rev=row.told_rev,
        wanted={target.model: target.version for target in row.desired.targets},
        installed=active,
        runtime=row.state.runtime if row.state else "",
        arch=row.state.arch if row.state else "",
        engines=row.state.engines if row.state else {},
        drift=drift,
    )


def device_views(connection: Connection, *, after: str = "", limit: int | None = None) -> list[DeviceView]:
    active, drift = messages.installed_of(connection), messages.drifts_of(connection)
    listed = devices.listed(connection, after=after, limit=limit)
    return [device_view(row, active.get(row.id, {}), drift.get(row.id, {})) for row in listed]


def service_view(fleet: Fleet, connection: Connection) -> ServiceView:
    reports, telemetry = messages.totals(connection)
    broker = fleet.broker
    return ServiceView(
        now=fleet.clock(),
        started_at=fleet.started_at,
        broker=BrokerView(
            name=broker.name if broker else "none",
            url=broker.address.url if broker else None,
            connected=fleet.link is not None and fleet.link.is_connected,
        ),
        ticks=fleet.ticks,
        failed_ticks=fleet.failed_ticks,
        reports=reports,
        telemetry=telemetry,
        bundle_requests=fleet.bundle_requests,
        duplicates=fleet.ingest.duplicates,
        dropped=dict(fleet.ingest.dropped),
    )


def fleet_view(connection: Connection) -> FleetView:
    enrolled, online = devices.counts(connection)
    columns = (installed.c.model, installed.c.version)
    by_version: dict[str, dict[str, int]] = {}
    for model, version, count in connection.execute(select(*columns, func.count()).group_by(*columns).order_by(*columns)):
        by_version.setdefault(model, {})[version] = count
    return FleetView(enrolled, online, len(messages.drifts_of(connection)), by_version)


def overview(fleet: Fleet, *, device_limit: int, event_limit: int) -> Overview:
    with fleet.store.read() as connection:
        return Overview(
            service=service_view(fleet, connection),
            fleet=fleet_view(connection),
            models=versions.listed(connection),
            rollouts=[rollout_view(connection, state) for state in listed_rollouts(connection, limit=20)],
            devices=device_views(connection, limit=device_limit),
            samples=SamplesView(
                fleet.config.samples_bytes > 0, fleet.samples.sums(), fleet.samples.listed(limit=SAMPLES_SHOWN)
            ),
            events=events.listed(connection, limit=event_limit),
        )


def device_page(fleet: Fleet, device: str) -> dict[str, Any] | None:
    """One device with its history; `None` if there is none of that name."""
    with fleet.store.read() as connection:
        row = devices.find(connection, device)
        if row is None:
            return None
        active, drift = messages.installed_of(connection, device), messages.drifts_of(connection, device)
        return {
            "device": device_view(row, active.get(device, {}), drift.get(device, {})),
            "desired": row.desired,
            "state": row.state,
            "attempts": messages.attempts_of(connection, device),
            "reports": messages.reports_of(connection, device),
            "telemetry": messages.windows_of(connection, device),
        }


learn(__name__)
