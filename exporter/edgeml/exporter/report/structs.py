"""What an export found out, as one record: the bundle holds what never varies, the report also what did on this run."""

from __future__ import annotations

import sys
from typing import Any, Literal

import msgspec

from edgeml.exporter.parity.classes import ClassEvidence
from edgeml.wire.manifest import (
    Binding,
    DataSet,
    Deferral,
    Format,
    KeptFloat,
    Parity,
    Precision,
    Signature,
    SourceFile,
    Status,
    Task,
)

SCHEMA = 1


class Latency(msgspec.Struct, frozen=True):
    """How long one call took on the machine that exported: seconds, over `runs` calls after warm-up.

    `low_s` and `high_s` are the ends of the median's 95 % interval, as far as calls of one process tell; see `edgeml bench`.
    """

    p50_s: float
    p90_s: float
    runs: int
    threads: int = 1
    p99_s: float | None = None  # only from 1,000 runs on
    low_s: float = 0.0
    high_s: float = 0.0


class SetTried(msgspec.Struct, frozen=True):
    """A look at the artifact with the first `kept` operators of a ranking left float; no `task` where it could not run."""

    kept: int
    bytes: int
    status: Status
    task: Task | None = None
    reason: str | None = None


class Repair(msgspec.Struct, frozen=True):
    """The search for operators to leave float, of an artifact that missed its budget.

    `kept` is how many were left float, 0 if none helped; `sentence` says what came of it; `ended` is false if time ran out.
    `ranked` has every operator, the one that hurts most first; `tried` the sets in the order they were looked at.
    """

    sentence: str
    kept: int
    ended: bool
    ranked: tuple[KeptFloat, ...]
    tried: tuple[SetTried, ...]


class ArtifactReport(msgspec.Struct, frozen=True):
    """One format and precision.

    `status` is the verdict on it. `parity` and `task` are `None` where they could not be measured, and `error` says why.
    `bytes` is 0 and `sha256` empty where no file was made. `packed` says whether it is in the bundle.
    """

    format: Format
    precision: Precision
    status: Status
    bytes: int = 0
    sha256: str = ""
    precision_found: str = ""
    engine: str = ""  # with its version, as it ran here
    parity: Parity | None = None
    task: Task | None = None
    error: str | None = None
    packed: bool = True
    golden_tolerance: float | None = None  # the largest of its outputs
    latency: Latency | None = None
    inputs: tuple[Binding, ...] = ()
    outputs: tuple[Binding, ...] = ()
    ops: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    deferral: Deferral | None = None
    deferral_reason: str | None = None  # why `--defer` is missed, or not surely met
    kept_float: tuple[KeptFloat, ...] = ()
    repair: Repair | None = None
    by_class: ClassEvidence | None = None


class Stage(msgspec.Struct, frozen=True):
    """One step of the export and how long it took."""

    name: str
    seconds: float


class Report(msgspec.Struct, frozen=True):
    """Everything a person or a program may want to know of one export.

    `verdict` is the worst status of `artifacts`; `summary` says it in one sentence. `bundle` is the bundle's file name, `None`
    if none was written; `digest` is the sha256 of its manifest.
    """

    name: str
    version: str
    verdict: Status
    summary: str
    artifacts: tuple[ArtifactReport, ...]
    source: SourceFile
    source_name: str  # file name only
    task: Literal["classify", "regress"]
    signature: Signature | None = None
    bundle: str | None = None
    bundle_bytes: int = 0
    digest: str = ""
    labels: tuple[str, ...] = ()
    calibration: DataSet | None = None
    evaluation: DataSet | None = None
    golden_samples: int = 0
    budget: float | None = None
    environment: dict[str, str] = {}  # machine, python, library -> version
    options: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    created: str = ""  # ISO 8601, UTC
    command: str = ""
    schema: int = SCHEMA


def verdict_of(statuses: list[Status] | tuple[Status, ...]) -> Status:
    """The worst of them; nothing at all is a failure."""
    for status in ("fail", "inconclusive"):
        if status in statuses:
            return status
    return "pass" if statuses else "fail"


def to_json(report: Report) -> bytes:
    """Indented JSON with every field present; an error without a number (`UNMEASURED`) is null."""
    return msgspec.json.format(msgspec.json.encode(_plain(report)), indent=2) + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and abs(value) == sys.float_info.max else value
