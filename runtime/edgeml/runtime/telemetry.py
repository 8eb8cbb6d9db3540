"""What a model was fed and did in a window of time, in constant memory: counters that add, never a raw input.

`Window.record` costs a few microseconds under a lock, `Window.observe` some more for every input; the machine's vitals are read
and drift is judged once a window, when it is taken.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgeml.runtime.backends import Array
from edgeml.runtime.model import Result
from edgeml.runtime.quality import InputWatch
from edgeml.runtime.sampling import Sampler, Vitals
from edgeml.runtime.watch import DriftWatch
from edgeml.wire.manifest import Artifact, Manifest
from edgeml.wire.messages import Drift, Telemetry
from edgeml.wire.sketches import Histogram, InputSketch, LatencySketch, latency_bucket

CLASS_LIMIT: Final = 1024  # more classes than this would not fit a message
CODE_LIMIT: Final = 32  # distinct error codes or fall-back reasons of one window
OTHER: Final = "other"  # where further codes are counted
_LONGEST_S: Final = 3600.0  # slower answers share a bucket, so that buckets stay bounded


@dataclass(frozen=True, slots=True)
class Counts:
    """A closed window: the fields of `Telemetry` that do not depend on who sends it."""

    model: str
    version: str
    manifest_sha256: str
    start: float  # Unix seconds
    seconds: float
    runs: int
    errors: dict[str, int]
    fallbacks: dict[str, int]
    latency: LatencySketch | None
    confidence: Histogram | None
    classes: tuple[int, ...]
    vitals: Vitals
    edges_id: str | None
    inputs: dict[str, InputSketch]
    drift: dict[str, Drift]

    def telemetry(self, device: str, session: int, seq: int) -> Telemetry:
        return Telemetry(
            device=device,
            session=session,
            seq=seq,
            model=self.model,
            version=self.version,
            manifest_sha256=self.manifest_sha256,
            start=self.start,
            seconds=self.seconds,
            runs=self.runs,
            errors=self.errors,
            fallbacks=self.fallbacks,
            latency=self.latency,
            confidence=self.confidence,
            classes=self.classes,
            rss_bytes=self.vitals.rss_bytes,
            cpu_share=self.vitals.cpu_share,
            cpu_celsius=self.vitals.cpu_celsius,
            throttled=self.vitals.throttled,
            edges_id=self.edges_id,
            inputs=self.inputs,
            drift=self.drift,
        )

    @property
    def is_empty(self) -> bool:
        return self.runs == 0 and not self.errors


class Window:
    """Counts the answers of one model version. Thread-safe; `take` closes the window and opens the next.

    Args:
        manifest: gives the edges of all histograms, the number of classes, and what drift is measured against.
        now: Unix seconds at which the first window opens.
        artifact: the one that answers; its own confidence is the reference where the manifest has it.
        watched: whether inputs are counted, and drift is judged.
    """

    def __init__(self, manifest: Manifest, now: float, *, artifact: Artifact | None = None, watched: bool = True) -> None:
        self._manifest = manifest
        self._sampler = Sampler()
        self._inputs = InputWatch(manifest.signature, manifest.reference if watched else None)
        self._drift = DriftWatch(manifest.reference if watched else None, artifact)
        self._digest = manifest.digest
        reference = manifest.reference
        self._edges = reference.confidence.edges if reference and reference.confidence else None
        classes = len(reference.classes) if reference and reference.classes else len(manifest.labels)
        self._class_count = min(classes, CLASS_LIMIT)
        self._lock = threading.Lock()
        self._open(now)

    @property
    def is_drifting(self) -> bool:
        """Whether the inputs or the confidence are in alarm: what a fall-back may act on."""
        return self._drift.is_drifting

    def observe(self, inputs: Mapping[str, Array]) -> None:
        """Count what one call is fed, before it is known whether the call succeeds. Never raises for a wrong input."""
        self._inputs.look(inputs)

    def record(self, result: Result) -> None:
        """Count one answer."""
        bucket = latency_bucket(min(result.latency_s, _LONGEST_S))
        score, index, reason = result.score, result.class_index, result.fallback
        with self._lock:
            self._runs += 1
            self._latency[bucket] = self._latency.get(bucket, 0) + 1
            if score is not None and self._edges is not None:
                self._confidence[bisect_right(self._edges, score)] += 1
            if index is not None and index < self._class_count:
                self._classes[index] += 1
            if reason is not None:
                _count(self._fallbacks, reason)
            self._from_cloud |= result.source == "cloud"

    def record_error(self, code: str) -> None:
        """Count one call that gave no answer."""
        with self._lock:
            _count(self._errors, code)

    def take(self, now: float) -> Counts:
        """Close the window at `now` (Unix seconds) and start the next one there."""
        vitals = self._sampler.read()
        manifest, inputs = self._manifest, self._inputs.take()
        seconds = max(0.0, now - self._start)
        with self._lock:
            streams = {f"input:{name}": (sketch.counts, sketch.calls) for name, sketch in inputs.items()}
            if not self._from_cloud:  # the reference is of the device's answers; those that the cloud replaced are missing
                streams["confidence"] = (tuple(self._confidence), sum(self._confidence))
                streams["classes"] = (tuple(self._classes), sum(self._classes))
            counts = Counts(
                model=manifest.name,
                version=manifest.version,
                manifest_sha256=self._digest,
                start=self._start,
                seconds=seconds,
                runs=self._runs,
                errors=self._errors,
                fallbacks=self._fallbacks,
                latency=LatencySketch(self._latency) if self._latency else None,
                confidence=Histogram(self._edges, tuple(self._confidence)) if self._edges is not None else None,
                classes=tuple(self._classes),
                vitals=vitals,
                edges_id=manifest.reference.edges_id if manifest.reference and inputs else None,
                inputs={name: sketch for name, sketch in inputs.items() if sketch.calls},
                drift=self._drift.see(streams, seconds),
            )
            self._open(now)
        return counts

    def _open(self, now: float) -> None:
        self._start = now
        self._runs = 0
        self._from_cloud = False
        self._latency: dict[int, int] = {}
        self._errors: dict[str, int] = {}
        self._fallbacks: dict[str, int] = {}
        self._confidence = [0] * (len(self._edges) + 1) if self._edges is not None else []
        self._classes = [0] * self._class_count


def _count(counts: dict[str, int], code: str) -> None:
    if code not in counts and len(counts) >= CODE_LIMIT:
        code = OTHER
    counts[code] = counts.get(code, 0) + 1
