"""The operators of TensorFlow Lite Micro, as its MicroMutableOpResolver adds them (tflite-micro 0.dev20261023)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from edgeml.exporter.target.flatbuffer import Operator
from edgeml.wire.errors import UnsupportedError

OPERATORS: Final = frozenset(
    """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO
    CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE
    ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER
    GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR
    LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE
    READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND
    RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE
    SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE
    ZEROS_LIKE
    """.split()  # noqa: SIM905 - a hundred names in quotes are harder to read
)
CUSTOM: Final = {"TFLite_Detection_PostProcess": "AddDetectionPostprocess"}
OTHERWISE: Final = {"BATCH_MATMUL": "AddBatchMatMul", "CUMSUM": "AddCumSum", "PADV2": "AddPadV2",
                    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM"}  # fmt: skip
"""What does not follow from the operator's own words."""


def resolver_calls(operators: Iterable[Operator]) -> tuple[str, ...]:
    """The resolver's methods that add these operators, each once: `AddConv2D`.

    Raises:
        UnsupportedError: it has none for some of them; names them all.
    """
    found = {operator.kind: operator.custom for operator in operators}
    unknown = sorted(kind for kind, custom in found.items() if kind not in (CUSTOM if custom else OPERATORS))
    if unknown:
        raise UnsupportedError(
            f"TensorFlow Lite Micro has no {', '.join(unknown)}",
            hint="replace what needs it in the model, or run it on a board with Linux",
        )
    return tuple(CUSTOM[kind] if custom else _method(kind) for kind, custom in sorted(found.items()))


def _method(kind: str) -> str:
    """`CONV_2D` -> `AddConv2D`."""
    words = (word if word[0].isdigit() else word.capitalize() for word in kind.split("_"))
    return OTHERWISE.get(kind) or f"Add{''.join(words)}"
