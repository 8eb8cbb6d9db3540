"""Watches every float tensor of a packed Core ML model, run by the interpreter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from edgeml.exporter.calibrate.feeds import Feeds, one_by_one
from edgeml.exporter.calibrate.statistics import Pass
from edgeml.exporter.mil.backend import load_interpreter, raw_inputs
from edgeml.runtime.backends import Array


def watch_coreml(model: bytes, feeds: Feeds) -> Pass:
    """A pass over `feeds` that shows the inputs and every float tensor of the main block; float16 ones as float32."""
    interpreter = load_interpreter(model)
    inputs = raw_inputs(interpreter)

    def run() -> Iterator[Mapping[str, Array]]:
        for tensors in one_by_one(inputs, feeds):
            given = {raw.name: value for raw, value in zip(inputs, tensors, strict=True)}
            seen: dict[str, Array] = {name: value for name, value in given.items() if value.dtype.kind == "f"}

            def watch(name: str, value: Tensor, seen: dict[str, Array] = seen) -> None:
                if value.is_floating_point():
                    seen[name] = value.numpy().astype(np.float32)

            interpreter.run(given, watch)
            yield seen

    return run
