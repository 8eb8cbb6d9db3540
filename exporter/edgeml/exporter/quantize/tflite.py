"""TFLite in float16 and int8, by ai-edge-quantizer with ranges of our own.

Its calibration (a moving average) clips activations; here every tensor is watched on the calibration samples, the observer is
chosen whose model is nearest to the float one on samples it did not see, and the ranges are handed over. Inputs and outputs
stay float32: the model rounds its input and gives real numbers back.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, Final, Literal

import numpy as np

from edgeml.exporter.calibrate.checks import calibration_notes
from edgeml.exporter.calibrate.choose import choose, chosen_note
from edgeml.exporter.calibrate.feeds import Feeds, count, outputs
from edgeml.exporter.calibrate.observers import OBSERVERS, Range
from edgeml.exporter.calibrate.statistics import Statistics, gather
from edgeml.exporter.calibrate.tflite import watch_tflite
from edgeml.exporter.quantize.result import Quantized
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.wire.errors import MissingExtraError, UnsupportedError

WAYS: Final = ("mse", "min-max", "percentile", "entropy")
DEVICE: Final = EngineOptions()
FLOAT_OPERATORS: Final = ("INPUT", "OUTPUT", "SOFTMAX")


def to_int8_tflite(
    model: bytes, feeds: Feeds, *, task: Literal["classify", "regress"] = "classify", keep_float: frozenset[str] = frozenset()
) -> Quantized:
    """The static int8 form of a float32 model; inputs and outputs stay float32.

    `feeds`: the model's own input names -> samples on axis 0. `keep_float` names output tensors of operators that stay float.

    Raises:
        ModelError, PlanError: the model or the samples cannot be used.
        UnsupportedError: nothing in the model can be quantized.
    """
    del task  # the error that chooses is the same for both
    samples = count(feeds)
    seen: dict[tuple[int, int], dict[str, Statistics]] = {}

    def watched(some: Feeds) -> dict[str, Statistics]:
        key = (id(next(iter(some.values()))), count(some))
        if key not in seen:
            seen[key] = gather(watch_tflite(model, some))
        return seen[key]

    def quantize(way: str, some: Feeds) -> bytes:
        return _written(model, {name: OBSERVERS[way](found) for name, found in watched(some).items()}, keep_float)

    def run(quantized: bytes, some: Feeds) -> list[Array]:
        return outputs(open_tflite(quantized, DEVICE), some)

    way, errors = choose(WAYS, quantize, run, lambda some: run(model, some), feeds)
    quantized = quantize(way, feeds)
    return Quantized(quantized, (chosen_note(WAYS, way, errors, samples), *calibration_notes(watched(feeds), samples)))


def to_fp16_tflite(model: bytes) -> bytes:
    """The float16 form of a float32 model: weights are stored as float16, computing and inputs and outputs stay float32."""
    parts = _quantizer()
    recipe = parts.recipe_manager.RecipeManager()
    recipe.add_weight_only_config(
        ".*", parts.qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=16, algorithm_key=parts.names.FLOAT_CASTING
    )
    return _quantized(parts, model, recipe, None)


def _written(model: bytes, ranges: dict[str, Range], keep_float: frozenset[str]) -> bytes:
    parts = _quantizer()
    recipe = parts.recipe_manager.RecipeManager()
    operators = parts.qtyping.TFLOperationName
    recipe.add_static_config(".*", operators.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for name in FLOAT_OPERATORS:
        recipe.add_quantization_config(".*", operators(name), algorithm_key=parts.names.NO_QUANTIZE)
    for name in sorted(keep_float):
        # Scopes are output names joined with ";", and a recipe's expression is searched for in them.
        scope = rf"(^|;){re.escape(name)}(;|$)"
        recipe.add_quantization_config(scope, operators.ALL_SUPPORTED, algorithm_key=parts.names.NO_QUANTIZE)
    found = {name: {"min": np.array([r.low], np.float32), "max": np.array([r.high], np.float32)} for name, r in ranges.items()}
    return _quantized(parts, model, recipe, found)


def _quantized(parts: Any, model: bytes, recipe: Any, ranges: dict[str, Any] | None) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an interpreter of its own, and channels that are all zero
            quantizer = parts.quantizer.Quantizer(bytearray(model), recipe.get_quantization_recipe())
            result = quantizer.quantize(ranges, enable_progress_report=False, enable_progress_bar=False)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedError(f"ai-edge-quantizer cannot quantize the model: {error}") from error
    return bytes(result.quantized_model)


class _Parts:
    """The modules of ai-edge-quantizer that are used here."""

    def __init__(self) -> None:
        from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

        self.quantizer, self.qtyping, self.recipe_manager = quantizer, qtyping, recipe_manager
        self.names = algorithm_manager.AlgorithmName


def _quantizer() -> _Parts:
    try:
        return _Parts()
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "ai_edge_quantizer", "export") from error
