"""Writes TFLite files by ai-edge-quantizer, which is told every range: none of its own calibration is used."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any, Final

from edgeml.runtime.backends import Array
from edgeml.wire.errors import MissingExtraError, UnsupportedError

FLOAT_OPERATORS: Final = (
    "INPUT",
    "OUTPUT",
    "SOFTMAX",
)  # inputs and outputs stay float32; so does the last step to probabilities


def write_int8(
    model: bytes,
    ranges: Mapping[str, tuple[Array, Array]],
    keep_float: frozenset[str],
    float_output: frozenset[str] = frozenset(),
) -> bytes:
    """The model with activations and weights as int8, biases int32.

    `ranges`: tensor name -> (low, high), one value for an activation, for weights one per output channel, shaped to broadcast.
    `keep_float` names output tensors of operators that stay float, `float_output` those of fully connected layers that have
    int8 weights, round their input when they run, and give float.

    Raises:
        UnsupportedError: the quantizer cannot do it.
    """
    parts = _quantizer()
    recipe = parts.recipe_manager.RecipeManager()
    operators = parts.qtyping.TFLOperationName
    recipe.add_static_config(".*", operators.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for name in FLOAT_OPERATORS:
        recipe.add_quantization_config(".*", operators(name), algorithm_key=parts.names.NO_QUANTIZE)
    for name in sorted(keep_float):
        recipe.add_quantization_config(_scope(name), operators.ALL_SUPPORTED, algorithm_key=parts.names.NO_QUANTIZE)
    for name in sorted(float_output):
        recipe.add_dynamic_config(_scope(name), operators.FULLY_CONNECTED, num_bits=8)
    return _quantized(parts, model, recipe, {name: {"min": low, "max": high} for name, (low, high) in ranges.items()})


def write_fp16(model: bytes) -> bytes:
    """The model with weights stored as float16."""
    parts = _quantizer()
    recipe = parts.recipe_manager.RecipeManager()
    recipe.add_weight_only_config(
        ".*", parts.qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=16, algorithm_key=parts.names.FLOAT_CASTING
    )
    return _quantized(parts, model, recipe, None)


def _scope(name: str) -> str:
    """A scope is an operator's output names joined with ";", in which an expression is searched for."""
    return rf"(^|;){re.escape(name)}(;|$)"


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
