"""Writes TFLite files by ai-edge-quantizer, which is told every range: none of its own calibration is used."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Mapping
from typing import Any, Final, Literal

from edgeml.exporter.quantize.tflite_loops import Inner, quantizer_failure
from edgeml.exporter.source.tflite_graphs import with_less
from edgeml.runtime.backends import Array
from edgeml.wire.errors import MissingExtraError

FLOAT_OPERATORS: Final = ("INPUT", "OUTPUT")  # inputs and outputs stay float32
FLOAT_LAST: Final = "SOFTMAX"  # so does the last step to probabilities
NOTHING_INNER: Final = Inner(frozenset(), frozenset())


def write_static(
    model: bytes,
    ranges: Mapping[str, tuple[Array, Array]],
    keep_float: frozenset[str],
    float_output: frozenset[str] = frozenset(),
    inner: Inner = NOTHING_INNER,
    *,
    bits: Literal[8, 16] = 8,
    wide: frozenset[str] = frozenset(),
    whole: bool = False,
) -> bytes:
    """The model with weights as int8 and activations of 8 or 16 bits, biases int32 or int64.

    `ranges`: tensor name -> (low, high), one value for an activation, for weights one per output channel, shaped to broadcast.
    `keep_float` names output tensors of operators that stay float, `float_output` those of fully connected layers that have
    int8 weights, round their input when they run, and give float. `inner` is what loops and branches hold: its products do the
    same; with 16 bits for activations, they compute in float. `wide` names those of operators with activations of 16 bits where
    others have 8. `whole` makes integers of softmax, too.

    Raises:
        UnsupportedError: the quantizer cannot do it.
    """
    parts = _quantizer()
    recipe = parts.recipe_manager.RecipeManager()
    operators = parts.qtyping.TFLOperationName
    recipe.add_static_config(".*", operators.ALL_SUPPORTED, activation_num_bits=bits, weight_num_bits=8)
    scopes = [".*"]
    if wide:
        scopes.append(_scope(wide))
        recipe.add_static_config(scopes[-1], operators.ALL_SUPPORTED, activation_num_bits=16, weight_num_bits=8)
    for scope, name in itertools.product(scopes, FLOAT_OPERATORS if whole else (*FLOAT_OPERATORS, FLOAT_LAST)):
        recipe.add_quantization_config(scope, operators(name), algorithm_key=parts.names.NO_QUANTIZE)
    if keep_float | inner.others:
        scope = _scope(keep_float | inner.others)
        recipe.add_quantization_config(scope, operators.ALL_SUPPORTED, algorithm_key=parts.names.NO_QUANTIZE)
    if float_output and bits == 8:  # rounding to 8 bits when it runs would waste the 16
        recipe.add_dynamic_config(_scope(float_output), operators.FULLY_CONNECTED, num_bits=8)
    if inner.products:
        small = recipe.add_dynamic_config if bits == 8 else recipe.add_weight_only_config
        small(_scope(inner.products), operators.ALL_SUPPORTED, num_bits=8)
    return _quantized(parts, model, recipe, {name: {"min": low, "max": high} for name, (low, high) in ranges.items()})


def write_weights(
    model: bytes,
    ends: Mapping[str, Array],
    *,
    four_bits: frozenset[str] = frozenset(),
    dynamic: bool = False,
    keep_float: frozenset[str] = frozenset(),
) -> bytes:
    """The model with weights as int8, one scale per output channel, and float32 activations.

    `ends`: weights' name -> the real number of each channel's largest code, shaped to broadcast. `four_bits` names output
    tensors of operators with int4 weights. `dynamic`: operators round their inputs when they run, and compute in integers;
    otherwise weights are unpacked first. `keep_float` names output tensors of operators whose weights stay float.

    Raises:
        UnsupportedError: the quantizer cannot do it.
    """
    parts = _quantizer()
    recipe = parts.recipe_manager.RecipeManager()
    add = recipe.add_dynamic_config if dynamic else recipe.add_weight_only_config
    add(".*", parts.qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=8)
    operators = parts.qtyping.TFLOperationName.ALL_SUPPORTED
    if four_bits:
        add(_scope(four_bits), operators, num_bits=4)
    if keep_float:
        recipe.add_quantization_config(_scope(keep_float), operators, algorithm_key=parts.names.NO_QUANTIZE)
    return _quantized(parts, model, recipe, {name: {"min": -end, "max": end} for name, end in ends.items()})


def write_fp16(model: bytes) -> bytes:
    """The model with weights stored as float16."""
    parts = _quantizer()
    recipe = parts.recipe_manager.RecipeManager()
    recipe.add_weight_only_config(
        ".*", parts.qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=16, algorithm_key=parts.names.FLOAT_CASTING
    )
    return _quantized(parts, model, recipe, None)


def _scope(names: frozenset[str]) -> str:
    """A scope is an operator's output names joined with ";", in which an expression is searched for.

    One expression for all names: each is compiled again and again once there are more than Python keeps.
    """
    return rf"(^|;)({'|'.join(re.escape(name) for name in sorted(names))})(;|$)"


def _quantized(parts: Any, model: bytes, recipe: Any, ranges: dict[str, Any] | None) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an interpreter of its own, and channels that are all zero
            quantizer = parts.quantizer.Quantizer(parts.with_signatures(model), recipe.get_quantization_recipe())
            result = quantizer.quantize(ranges, enable_progress_report=False, enable_progress_bar=False)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise quantizer_failure(error, model) from error
    return with_less(bytes(result.quantized_model))


class _Parts:
    """The modules of ai-edge-quantizer that are used here."""

    def __init__(self) -> None:
        from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

        self.quantizer, self.qtyping, self.recipe_manager = quantizer, qtyping, recipe_manager
        self.names = algorithm_manager.AlgorithmName

    @staticmethod
    def with_signatures(model: bytes) -> bytearray:
        """The model with a list of signatures, be it empty: the quantizer reads one without looking whether it is there."""
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        if not schema.Model.GetRootAs(model, 0).SignatureDefsIsNone():
            return bytearray(model)
        found = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
        found.signatureDefs = []
        return bytearray(flatbuffer_utils.convert_object_to_bytearray(found))


def _quantizer() -> _Parts:
    try:
        return _Parts()
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "ai_edge_quantizer", "export") from error
