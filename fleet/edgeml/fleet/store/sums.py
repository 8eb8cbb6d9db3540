"""Telemetry added up per device and version, reading each stored window once.

A rollout asks for "everything since the wave began" every second. Sums are kept between the questions, and only windows stored
since the last one are read; after a restart the first question reads them all.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from sqlalchemy import select

from edgeml.fleet.ledger import TelemetrySum
from edgeml.fleet.store.database import Store
from edgeml.fleet.store.tables import telemetry
from edgeml.wire.messages import Telemetry
from edgeml.wire.sketches import Histogram, LatencySketch

KEPT: Final = 16  # questions with a sum of their own; a rollout asks two or three
AHEAD_S: Final = 600.0  # windows that start after the question's end are kept this far, for clocks that run ahead


@dataclass(slots=True)
class _Question:
    until: float
    last_id: int = 0
    sums: dict[tuple[str, str], TelemetrySum] = field(default_factory=dict)
    later: list[tuple[float, int, Telemetry]] = field(default_factory=list)  # a heap by start: not before `until`
    beyond: float = math.inf  # the earliest start that was read and not kept


class TelemetrySums:
    """Answers `between`; thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._questions: OrderedDict[tuple[str, float], _Question] = OrderedDict()

    def between(self, model: str, since: float, until: float) -> Sequence[TelemetrySum]:
        """Sums of the windows that started in [since, until), one per device and version, in their order."""
        with self._lock:
            question = self._question(model, since, until)
            self._read(question, model, since)
            while question.later and question.later[0][0] < until:
                window = heapq.heappop(question.later)[2]
                key = (window.device, window.version)
                question.sums[key] = _add(question.sums.get(key), window)
            return [question.sums[key] for key in sorted(question.sums)]

    def forget(self) -> None:
        """Windows that were read are gone: the next question reads the rest."""
        with self._lock:
            self._questions.clear()

    def _question(self, model: str, since: float, until: float) -> _Question:
        found = self._questions.pop((model, since), None)
        if found is None or found.until > until or found.beyond < until:
            found = _Question(until)
        found.until = until
        self._questions[model, since] = found
        while len(self._questions) > KEPT:
            self._questions.popitem(last=False)
        return found

    def _read(self, question: _Question, model: str, since: float) -> None:
        unread = (telemetry.c.model == model) & (telemetry.c.id > question.last_id)
        query = select(telemetry.c.id, telemetry.c.start, telemetry.c.body_json).where(unread).order_by(telemetry.c.id)
        with self._store.read() as connection:
            for row in connection.execute(query):
                question.last_id = row.id
                if row.start >= question.until + AHEAD_S:
                    question.beyond = min(question.beyond, row.start)
                elif row.start >= since:
                    heapq.heappush(question.later, (row.start, row.id, msgspec.json.decode(row.body_json, type=Telemetry)))


def _add(total: TelemetrySum | None, window: Telemetry) -> TelemetrySum:
    if total is None:
        total = TelemetrySum(window.device, window.version, 0, 0, 0)
    return TelemetrySum(
        device=total.device,
        version=total.version,
        answers=total.answers + window.runs,
        errors=total.errors + sum(window.errors.values()),
        fallbacks=total.fallbacks + sum(window.fallbacks.values()),
        latency=_sketches(total.latency, window.latency),
        confidence=_histograms(total.confidence, window.confidence),
    )


def _sketches(a: LatencySketch | None, b: LatencySketch | None) -> LatencySketch | None:
    return a + b if a is not None and b is not None else a or b


def _histograms(a: Histogram | None, b: Histogram | None) -> Histogram | None:
    """Histograms with other edges than the first are left out: a device with edges of its own cannot break the sum."""
    if a is None or b is None:
        return a or b
    return a + b if a.edges == b.edges else a
