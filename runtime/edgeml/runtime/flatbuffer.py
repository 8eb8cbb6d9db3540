"""Read a TFLite flatbuffer without its schema package: tables, vectors and strings with every offset checked."""

from __future__ import annotations

import struct
from typing import Final

from edgeml.wire.errors import ModelError

TENSOR_TYPES: Final = (
    "float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64", "complex128",
    "uint64", "resource", "variant", "uint32", "uint16", "int4", "bfloat16", "int2",
)  # fmt: skip
_OPERATOR_NAMES: Final = """
ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION LSTM
MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS
SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND
TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT
LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL
LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW
ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV
REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS
SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG
ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM
BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS
HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE
ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE
RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST
BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM
STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE
STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL
STABLEHLO_FLOOR STABLEHLO_LOG STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER
STABLEHLO_RSQRT STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT
STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL
STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE
STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT STABLEHLO_CASE
"""
PATIENCE: Final = 4  # a reader may look at a list more than once, and writers share equal vectors
OPERATORS: Final = tuple(_OPERATOR_NAMES.split())  # by their number in the schema


class _Patience:
    """How many more tables and elements may be read: as many as the file has room for if no two share a byte.

    Offsets that all lead to one place make a small file as long to read as one likes.
    """

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ModelError("not a TFLite model: its tables share their bytes")


class Table:
    """One table of a flatbuffer; fields by their number in the schema.

    Raises:
        ModelError: from every method, where an offset leaves the file.
    """

    def __init__(self, data: bytes, position: int, patience: _Patience) -> None:
        self._patience = patience
        self._data = data
        self._position = position
        vtable = position - _unpack(data, "<i", position)
        size = _unpack(data, "<H", vtable)
        patience.take(max(2, size // 2))
        self._fields = [_unpack(data, "<H", vtable + 4 + 2 * i) for i in range(max(0, (size - 4) // 2))]

    def integer(self, field: int, kind: str = "<i", default: int = 0) -> int:
        at = self._at(field)
        return default if at is None else _unpack(self._data, kind, at)

    def table(self, field: int) -> Table | None:
        at = self._at(field)
        return None if at is None else Table(self._data, at + _unpack(self._data, "<I", at), self._patience)

    def tables(self, field: int) -> list[Table]:
        start, count = self._read_vector(field)
        offsets = [(start + 4 * i, _unpack(self._data, "<I", start + 4 * i)) for i in range(count)]
        return [Table(self._data, at + offset, self._patience) for at, offset in offsets]

    def length(self, field: int) -> int:
        return self._vector(field)[1]

    def text(self, field: int) -> str:
        start, count = self._read_vector(field)
        return self._data[start : start + count].decode("utf-8", "replace")

    def integers(self, field: int, kind: str = "i") -> list[int]:
        start, count = self._read_vector(field)
        return list(_unpack_all(self._data, f"<{count}{kind}", start))

    def floats(self, field: int) -> list[float]:
        start, count = self._read_vector(field)
        return list(_unpack_all(self._data, f"<{count}f", start))

    def _at(self, field: int) -> int | None:
        if field >= len(self._fields) or self._fields[field] == 0:
            return None
        return self._position + self._fields[field]

    def _read_vector(self, field: int) -> tuple[int, int]:
        start, count = self._vector(field)
        self._patience.take(count)
        return start, count

    def _vector(self, field: int) -> tuple[int, int]:
        """Where the elements start, and how many there are."""
        at = self._at(field)
        if at is None:
            return 0, 0
        start = at + _unpack(self._data, "<I", at)
        count = _unpack(self._data, "<I", start)
        if count > len(self._data):
            raise ModelError("not a TFLite model: a list is longer than the file")
        return start + 4, count


def root(data: bytes) -> Table:
    """The model table.

    Raises:
        ModelError: the identifier is missing or the file is cut off.
    """
    if data[4:8] != b"TFL3":
        raise ModelError("not a TFLite model", expected="b'TFL3' at byte 4", got=repr(data[4:8]))
    return Table(data, _unpack(data, "<I", 0), _Patience(PATIENCE * len(data)))


def _unpack(data: bytes, kind: str, position: int) -> int:
    value: int = _unpack_all(data, kind, position)[0]
    return value


def _unpack_all(data: bytes, kind: str, position: int) -> tuple[int, ...]:
    if position < 0:
        raise ModelError("not a TFLite model: an offset points before the file")
    try:
        return struct.unpack_from(kind, data, position)
    except struct.error as error:
        raise ModelError("not a TFLite model: an offset points outside the file", hint="the file is truncated") from error
