"""Hostile TFLite files as sources of an export: offsets, tables and graphs that lead nowhere, round in circles, or too far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeml.exporter.source.tflite_graphs import pack_model, parse_model, schema
from tests.system.hostile_files import Hostile, Make, holds
from tests.system.hostile_readers import patched, shared_tables
from tests.unit.bundles import tflite_model

EXPORT: Final = "export m.tflite --to tflite"
LIMITED: Final = f"{EXPORT} --time-limit 60 --memory-limit 0.75"


def changed(change: Callable[[Any], object]) -> Make:
    """The toy classifier after a change that no writer makes."""

    def make(folder: Path) -> None:
        model = parse_model(tflite_model())
        change(model)
        (folder / "m.tflite").write_bytes(pack_model(model))

    return make


def poison(model: Any) -> None:
    values = np.frombuffer(np.asarray(model.buffers[1].data, np.uint8).tobytes(), np.float32).copy()
    values[3] = np.nan
    model.buffers[1].data = np.frombuffer(values.tobytes(), np.uint8)


def far_input(model: Any) -> None:
    model.subgraphs[0].inputs = [99]


def far_operand(model: Any) -> None:
    model.subgraphs[0].operators[0].inputs = [0, 77, 2]


def far_buffer(model: Any) -> None:
    model.subgraphs[0].tensors[1].buffer = 55


def far_code(model: Any) -> None:
    model.subgraphs[0].operators[0].opcodeIndex = 9


def promises(model: Any) -> None:
    model.subgraphs[0].tensors[1].shape = [2**30, 2**10]


def no_text(model: Any) -> None:
    model.subgraphs[0].tensors[0].name = b"\xff\xfe\xfd"


def unknown(model: Any) -> None:
    model.operatorCodes[0].builtinCode = schema().BuiltinOperator.CUSTOM
    model.operatorCodes[0].deprecatedBuiltinCode = schema().BuiltinOperator.CUSTOM
    model.operatorCodes[0].customCode = b"Acme"
    model.subgraphs[0].operators[0].builtinOptions = None
    model.subgraphs[0].operators[0].builtinOptionsType = 0


def calls_itself(model: Any) -> None:
    """A WHILE whose body is the graph it stands in."""
    generated = schema()
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = generated.BuiltinOperator.WHILE
    operator = model.subgraphs[0].operators[0]
    operator.builtinOptionsType = generated.BuiltinOptions.WhileOptions
    operator.builtinOptions = generated.WhileOptionsT()
    operator.builtinOptions.condSubgraphIndex = operator.builtinOptions.bodySubgraphIndex = 0
    operator.inputs, operator.outputs = [0], [3]


def no_graphs(model: Any) -> None:
    model.subgraphs = []


def large_input(model: Any) -> None:
    model.subgraphs[0].tensors[0].shape = [1, 2**31 - 1]


TFLITE: Final[dict[str, Hostile]] = {
    "cut short": Hostile(holds("m.tflite", tflite_model()[:400]), EXPORT, 2, "truncated or damaged"),
    "a root behind the file": Hostile(patched(0, "<I", 2**31), EXPORT, 2, "truncated or damaged"),
    "25 million tables in 40 kB": Hostile(holds("m.tflite", shared_tables(5_000)), EXPORT, 2, "share their bytes"),
    "no graph": Hostile(changed(no_graphs), EXPORT, 2, "it has no graph"),
    "an input that is not there": Hostile(changed(far_input), EXPORT, 2, "m.tflite"),
    "an operand that is not there": Hostile(changed(far_operand), EXPORT, 2, "m.tflite"),
    "a buffer that is not there": Hostile(changed(far_buffer), EXPORT, 2, "m.tflite"),
    "an operator that is not there": Hostile(changed(far_code), EXPORT, 2, "m.tflite"),
    "2^40 elements in 48 bytes": Hostile(changed(promises), EXPORT, 2, "m.tflite"),
    "a name that is no text": Hostile(changed(no_text), EXPORT, 2, "m.tflite"),
    "NaN": Hostile(changed(poison), EXPORT, 2, "holds NaN or infinity in 1 of 12 values"),
    "an unknown operator": Hostile(changed(unknown), EXPORT, 5, "Acme"),
    "a graph that calls itself": Hostile(changed(calls_itself), LIMITED, 2, "m.tflite"),
    "an input of 2^31": Hostile(changed(large_input), LIMITED, 2, "m.tflite"),
}
