"""Watches every float tensor of a TFLite model: the interpreter keeps them all, without XNNPACK, which would hide some."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgeml.exporter.calibrate.feeds import Feeds, one_by_one
from edgeml.exporter.calibrate.statistics import Pass
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.wire.errors import MissingExtraError


def watch_tflite(model: bytes, feeds: Feeds) -> Pass:
    """A pass over `feeds` that shows the inputs and every value that an operator of the main graph computes."""
    inputs = open_tflite(model, EngineOptions(kernels="exact")).inputs
    interpreter = keeping(model)
    given = [detail["index"] for detail in interpreter.get_input_details()]
    made = {int(index) for operator in interpreter._get_ops_details() for index in operator["outputs"]}  # noqa: SLF001 - no public form
    shown = [
        (detail["name"], detail["index"])
        for detail in interpreter.get_tensor_details()
        if detail["index"] in made | set(given) and detail["dtype"] == np.float32
    ]

    def run() -> Iterator[Mapping[str, Array]]:
        for tensors in one_by_one(inputs, feeds):
            for index, tensor in zip(given, tensors, strict=True):
                interpreter.set_tensor(index, tensor)
            interpreter.invoke()
            yield {name: interpreter.get_tensor(index) for name, index in shown}

    return run


def keeping(model: bytes) -> Any:
    """A LiteRT interpreter by plain kernels that keeps every tensor, ready to be run.

    Raises:
        MissingExtraError: LiteRT is not here.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise MissingExtraError("ai_edge_litert", "tflite") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # says that keeping all tensors takes memory
        interpreter = Interpreter(
            model_content=model,
            num_threads=1,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    interpreter.allocate_tensors()
    return interpreter
