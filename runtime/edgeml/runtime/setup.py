"""How to load and run a model: what an application or an `agent.toml` decides, in a value that a process can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeml.runtime.backends import EngineOptions
from edgeml.wire.manifest import Format, Precision


@dataclass(frozen=True, slots=True)
class Setup:
    """Which artifact, and how to run it.

    `format` and `precision` pin the artifact, `None` leaves it to the board. `isolated` keeps the engine in a process of its
    own. `deadline_s` holds for each call that gives none. Up to `max_batch` calls that come within `max_wait_s` are run as one.
    `latency_file` says where measured latencies are kept; without one nothing is measured, and the manifest's order decides.
    """

    format: Format | None = None
    precision: Precision | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    isolated: bool = False
    deadline_s: float | None = None
    max_batch: int = 1
    max_wait_s: float = 0.0
    latency_file: str | None = None
