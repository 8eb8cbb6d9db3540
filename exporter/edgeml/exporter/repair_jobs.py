"""What a format's worker does for a keep-float search; what a search needs again and again is kept in memory between jobs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from edgeml.exporter.artifact import Trial, feeds_of, look
from edgeml.exporter.calibrate.feeds import Feeds, at_most, outputs
from edgeml.exporter.parity.compare import UNMEASURED
from edgeml.exporter.precision import Ranges
from edgeml.exporter.quantize.keep_float import RANKING_SAMPLES, RemadeTuner, StaticTuner, Tuner
from edgeml.runtime.backends import EngineOptions
from edgeml.wire.errors import EdgemlError, PlanError
from edgeml.wire.manifest import Binding, Format, Precision, Status, Task

STATIC: Final[frozenset[Precision]] = frozenset({"int8", "int16"})  # of ONNX and TFLite
WEIGHTS: Final[dict[Format, frozenset[Precision]]] = {
    "onnx": frozenset({"int8-dynamic", "int8-weights", "int4-weights"}),
    "tflite": frozenset({"int8-dynamic", "int8-weights", "int4-weights"}),
    "coreml": frozenset({"int8", "int8-weights", "int4-weights", "palette4", "palette6", "palette8"}),
}
"""Precisions of weights, of which each operator's may stay float."""
INTERPRETED_SAMPLES: Final = 16  # the Core ML interpreter takes up to a hundred times as long as an engine


def is_searchable(format_: Format, precision: Precision, *, whole: bool = False) -> bool:
    """Whether an artifact can be written with some operators left float, or if it is `whole`, with some at 16 bits."""
    if whole:
        return format_ == "tflite" and precision == "int8"
    return precision in WEIGHTS[format_] or (format_ != "coreml" and precision in STATIC)


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
    """Job: the operators that run on integers, and error and bytes of a file in which none does."""
    tuner = _tuner(quantizing)
    found = [{"kind": operator.kind, "name": operator.name} for operator in tuner.operators]
    return {"operators": found, **(alone(quantizing=quantizing, operators=[]) if found else {"error": 0.0, "bytes": 0})}


def alone(*, quantizing: dict[str, Any], operators: list[str]) -> dict[str, Any]:
    """Job: error and bytes with these operators quantized and no others."""
    found = _tuner(quantizing).alone(frozenset(operators))
    return {"error": min(found.error, UNMEASURED), "bytes": found.bytes}


def keep(*, quantizing: dict[str, Any], kept: list[str], out: str) -> list[str]:
    """Job: write the model with these operators left float, or at 16 bits; gives notes."""
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
    return _static(asked, model, feeds) if asked.precision not in WEIGHTS[asked.format] else _weights(asked, model, feeds)


def _static(asked: Quantizing, model: bytes, feeds: Feeds) -> Tuner:
    bits: Literal[8, 16] = 16 if asked.precision == "int16" else 8
    if asked.format == "tflite":
        from edgeml.exporter.quantize.tflite_fold import ready_tflite
        from edgeml.exporter.quantize.tflite_network import TfliteNetwork

        whole = asked.trial.whole and bits == 8
        tflite = TfliteNetwork(ready_tflite(model), whole=whole)
        return StaticTuner(tflite, model, feeds, ranges=asked.ranges, bits=bits, widens=whole)
    from edgeml.exporter.quantize.onnx import open_onnx_network, open_wide_network

    network = open_wide_network(model) if bits == 16 else open_onnx_network(model)
    return StaticTuner(network, model, feeds, ranges=asked.ranges, bits=bits)


def _weights(asked: Quantizing, model: bytes, feeds: Feeds) -> Tuner:
    if asked.format == "coreml":
        from edgeml.exporter.mil.backend import open_mil
        from edgeml.exporter.quantize.coreml import from_half, halved
        from edgeml.exporter.quantize.coreml_weights import weighty

        halves, few = halved(model, asked.precision, feeds), at_most(feeds, INTERPRETED_SAMPLES)
        half = halves.plain()
        return RemadeTuner(
            weighty(half),
            half,
            lambda kept: from_half(halves, asked.precision, feeds, keep_float=kept),
            lambda data: outputs(open_mil(data, EngineOptions()), few),
        )
    some = at_most(feeds, RANKING_SAMPLES)
    if asked.format == "tflite":
        from edgeml.exporter.quantize.tflite import smaller_tflite
        from edgeml.exporter.quantize.tflite_fold import ready_tflite
        from edgeml.exporter.quantize.tflite_network import TfliteNetwork

        network = TfliteNetwork(ready_tflite(model), ends_float=False)
        named = [(kind, name) for kind, name in network.operators() if name in {layer.output for layer in network.layers}]
        return RemadeTuner(
            named,
            model,
            lambda kept: smaller_tflite(model, asked.precision, feeds, keep_float=kept),
            lambda data: outputs(network.open(data), some),
        )
    from edgeml.exporter.quantize.onnx import open_onnx_network, smaller_onnx
    from edgeml.exporter.quantize.onnx_weights import weighty_nodes

    folded = open_onnx_network(model)
    return RemadeTuner(
        weighty_nodes(folded.proto),
        model,
        lambda kept: smaller_onnx(model, asked.precision, feeds, keep_float=kept),
        lambda data: outputs(folded.open(data), some),
    )
