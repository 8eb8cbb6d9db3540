"""What a format's worker does for a keep-float search; what a search needs again and again is kept in memory between jobs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import msgspec

from edgeml.exporter.artifact import Trial, feeds_of, look
from edgeml.exporter.parity.compare import UNMEASURED
from edgeml.exporter.precision import Ranges
from edgeml.exporter.quantize.keep_float import StaticTuner, Tuner
from edgeml.exporter.quantize.layers import Network
from edgeml.wire.errors import EdgemlError, PlanError
from edgeml.wire.manifest import Binding, Format, Precision, Status, Task

SEARCHABLE: frozenset[tuple[Format, Precision]] = frozenset(
    {("onnx", "int8"), ("onnx", "int16"), ("tflite", "int8"), ("tflite", "int16")}
)
"""What can be written with some operators left float."""


class Quantizing(msgspec.Struct, frozen=True):
    """What is quantized: `model` is the fp32 file, `inputs` its bindings."""

    trial: Trial
    format: Format
    precision: Precision
    model: str
    inputs: tuple[Binding, ...]
    ranges: Ranges = "auto"


class Looked(msgspec.Struct, frozen=True):
    """A look at one artifact: `task` is `None` where it is no form of the source at all, and `reason` says why."""

    status: Status
    task: Task | None = None
    reason: str | None = None


def operators(*, quantizing: dict[str, Any]) -> dict[str, Any]:
    """Job: the operators that run on integers, and the bytes of a file in which none does."""
    tuner = _tuner(quantizing)
    found = [{"kind": operator.kind, "name": operator.name} for operator in tuner.operators]
    return {"operators": found, "bytes": tuner.alone(None).bytes if found else 0}


def alone(*, quantizing: dict[str, Any], operator: str) -> dict[str, Any]:
    """Job: error and bytes with this operator quantized and no other."""
    found = _tuner(quantizing).alone(operator)
    return {"error": min(found.error, UNMEASURED), "bytes": found.bytes}


def keep(*, quantizing: dict[str, Any], kept: list[str], out: str) -> list[str]:
    """Job: write the model with these operators left float; gives notes."""
    quantized = _tuner(quantizing).quantize(frozenset(kept))
    Path(out).write_bytes(quantized.model)
    return list(quantized.notes)


def look_at(*, trial: dict[str, Any], format: Format, precision: Precision, model: str) -> Any:  # noqa: A002 - the field's word
    """Job: the verdict on a file, without golden vectors and timing. One that cannot be run at all fails."""
    try:
        parity, task = look(msgspec.convert(trial, Trial), format, precision, Path(model).read_bytes())
    except PlanError:
        raise
    except EdgemlError as error:
        return msgspec.to_builtins(Looked("fail", reason=str(error)))
    if task is None:
        return msgspec.to_builtins(Looked("fail", reason=parity.reason))
    return msgspec.to_builtins(Looked(task.status, task))


def _tuner(quantizing: dict[str, Any]) -> Tuner:
    return _opened(msgspec.json.encode(quantizing))


@functools.lru_cache(maxsize=1)
def _opened(quantizing: bytes) -> Tuner:
    asked = msgspec.json.decode(quantizing, type=Quantizing)
    model, feeds = Path(asked.model).read_bytes(), feeds_of(asked.trial, asked.inputs)
    if feeds is None:
        raise PlanError("a search for layers to leave float needs calibration samples", hint="give --calib")
    return StaticTuner(_network(asked, model), model, feeds, ranges=asked.ranges, bits=16 if asked.precision == "int16" else 8)


def _network(asked: Quantizing, model: bytes) -> Network:
    if asked.format == "tflite":
        from edgeml.exporter.quantize.tflite_network import TfliteNetwork

        return TfliteNetwork(model)
    from edgeml.exporter.quantize.onnx import open_onnx_network, open_wide_network

    return open_wide_network(model) if asked.precision == "int16" else open_onnx_network(model)
