"""The service's state as Prometheus reads it: computed when asked, from the store and the running parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeml.fleet.api.views import FleetView, RolloutView, ServiceView, fleet_view, rollout_view, service_view
from edgeml.fleet.samples import SampleSums
from edgeml.fleet.service import Fleet
from edgeml.fleet.store.ledger import listed_rollouts

K = TypeVar("K", bound=tuple[str, ...])


def exposition(fleet: Fleet) -> tuple[bytes, str]:
    """(text, content type)."""
    with fleet.store.read() as connection:
        collected = _Collected(
            service_view(fleet, connection),
            fleet_view(connection),
            [rollout_view(connection, state) for state in listed_rollouts(connection, limit=20)],
            fleet.samples.sums(),
        )
    registry = CollectorRegistry()
    registry.register(collected)
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collected(Collector):
    def __init__(self, service: ServiceView, fleet: FleetView, rollouts: list[RolloutView], samples: SampleSums) -> None:
        self._service = service
        self._fleet = fleet
        self._rollouts = rollouts
        self._samples = samples

    def collect(self) -> Iterable[Metric]:
        service, fleet = self._service, self._fleet
        yield GaugeMetricFamily("edgeml_devices", "Devices enrolled.", fleet.devices)
        yield GaugeMetricFamily("edgeml_devices_online", "Devices connected to the broker.", fleet.online)
        versions = {(model, version): n for model, counts in fleet.by_version.items() for version, n in counts.items()}
        yield _gauges("edgeml_devices_active", "Devices by the version they run.", ("model", "version"), versions)
        yield CounterMetricFamily("edgeml_reports", "Reports stored.", service.reports)
        yield CounterMetricFamily("edgeml_telemetry_windows", "Telemetry windows stored.", service.telemetry)
        yield CounterMetricFamily("edgeml_duplicates", "Messages that came again, since the start.", service.duplicates)
        dropped = CounterMetricFamily("edgeml_dropped", "Payloads dropped, since the start.", labels=["reason"])
        for reason, count in service.dropped.items():
            dropped.add_metric([reason], count)
        yield dropped
        yield GaugeMetricFamily(
            "edgeml_broker_connected", "1 if the service is connected to its broker.", int(service.broker.connected)
        )
        requests = service.bundle_requests
        yield CounterMetricFamily(
            "edgeml_bundle_requests", "Downloads of bundles, whole or in part, since the start.", requests
        )
        yield CounterMetricFamily("edgeml_ticks", "Ticks of the controller, since the start.", service.ticks)
        yield CounterMetricFamily("edgeml_failed_ticks", "Ticks that failed, since the start.", service.failed_ticks)
        shares = {(one.id, one.model, one.version, one.phase): one.share for one in self._rollouts}
        labels = ("rollout", "model", "version", "phase")
        yield _gauges("edgeml_rollout_share", "Share of the eligible fleet that should run the version.", labels, shares)
        told = {(one.id,): one.told for one in self._rollouts}
        yield _gauges("edgeml_rollout_told", "Devices told by the rollout.", ("rollout",), told)
        positions = {(one.id, state): n for one in self._rollouts for state, n in one.positions.items()}
        yield _gauges(
            "edgeml_rollout_devices", "Devices by their newest report on the version.", ("rollout", "state"), positions
        )
        shadow = {(one.id, kind): n for one in self._rollouts for kind, n in _shadow(one)}
        yield _gauges(
            "edgeml_rollout_shadow_calls",
            "Calls of the version beside the old one, by how they ended.",
            ("rollout", "ended"),
            shadow,
        )
        kept = {(model,): n for model, n in self._samples.by_model.items()}
        yield _gauges("edgeml_samples", "Inputs kept that devices were not sure of.", ("model",), kept)
        yield GaugeMetricFamily("edgeml_samples_bytes", "What the samples take on disk.", self._samples.bytes)


def _shadow(rollout: RolloutView) -> list[tuple[str, int]]:
    found = rollout.shadow
    if found is None:
        return []
    return [("agreed", found.agreed), ("differed", found.runs - found.agreed), ("error", found.errors)]


def _gauges(name: str, words: str, labels: tuple[str, ...], values: Mapping[K, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
