"""Cases of lists, control flow and compressed constants, each in a program that uses it; expected values by hand."""

# ruff: noqa: E501 - one case a line reads as a table

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeml.runtime.backends import Array
from tests.unit.mil_builder import Case, case

X = np.array([[1.0, -2.0, 3.0]], np.float32)
THREE = np.array([1, 0], np.int32)


def _list(mb: Any, a: Any) -> Any:
    """A list of two: [a, |a|]."""
    items = mb.make_list(init_length=2, dynamic_length=True, elem_shape=(3,))
    return mb.list_scatter(ls=items, indices=np.array([0, 1], np.int32), value=mb.concat(values=(a, mb.abs(x=a)), axis=0))


def _constant(op: str, label: str, expect: Array, target: str, **attributes: Any) -> Case:
    """A compressed constant, told by adding it to zeros."""

    def build(mb: Any, a: Any) -> Any:
        made = getattr(mb, op)(**attributes)
        if isinstance(made, (tuple, list)):
            made = mb.constexpr_sparse_to_dense(nonzero_data=made[1], mask=made[0])
        return mb.add(x=a, y=made)

    return case(op, build, np.zeros(expect.shape, np.float32), lambda _: expect, label, target=target, fixed=False)


def _narrow(values: Any, word: str) -> Array:
    """Values in one of coremltools' sub-byte types."""
    from coremltools.converters.mil.mil import types

    return np.asarray(values).astype(types.nptype_from_builtin(types.string_to_builtin(word)))


def _later(op: str, label: str, expect: Any, **attributes: Callable[[], Any]) -> Case:
    """As `_constant`, with attributes made when coremltools is there."""

    def build(mb: Any, a: Any) -> Any:
        made = getattr(mb, op)(**{name: value() for name, value in attributes.items()})
        if isinstance(made, (tuple, list)):
            made = mb.constexpr_sparse_to_dense(nonzero_data=made[1], mask=made[0])
        return mb.add(x=a, y=made)

    want = np.asarray(expect, np.float32)
    return case(op, build, np.zeros(want.shape, np.float32), lambda _: want, label, target="iOS18", fixed=False)


LISTS = [
    case("make_list", lambda mb, _: mb.list_length(ls=mb.make_list(init_length=3, dynamic_length=False, elem_shape=(3,))),
         X, lambda _: np.int32(3), fixed=False),
    case("list_write", lambda mb, a: mb.list_gather(ls=mb.list_write(ls=_list(mb, a), index=0, value=mb.squeeze(x=a, axes=[0])), indices=THREE),
         X, lambda x: np.concatenate([np.abs(x), x]), fixed=False),
    case("list_read", lambda mb, a: mb.list_read(ls=_list(mb, a), index=1), X, lambda x: np.abs(x[0]), fixed=False),
    case("list_gather", lambda mb, a: mb.list_gather(ls=_list(mb, a), indices=THREE), X, lambda x: np.concatenate([np.abs(x), x]), fixed=False),
    case("list_scatter", lambda mb, a: mb.list_gather(ls=_list(mb, a), indices=THREE[::-1].copy()), X, lambda x: np.concatenate([x, np.abs(x)]),
         fixed=False),
    case("list_length", lambda mb, a: mb.list_length(ls=_list(mb, a)), X, lambda _: np.int32(2), fixed=False),
]  # fmt: skip
CONTROL = [
    case("cond", lambda mb, a: mb.cond(pred=mb.greater(x=mb.reduce_sum(x=a), y=0.0), _true_fn=lambda: mb.mul(x=a, y=2.0),
         _false_fn=lambda: mb.abs(x=a)), X, lambda x: 2 * x, "true", fixed=False),
    case("cond", lambda mb, a: mb.cond(pred=mb.greater(x=mb.reduce_sum(x=a), y=0.0), _true_fn=lambda: mb.mul(x=a, y=2.0),
         _false_fn=lambda: mb.abs(x=a)), -X, np.abs, "false", fixed=False),
    case("while_loop", lambda mb, a: mb.while_loop(_cond=lambda i, _: mb.less(x=i, y=5), _body=lambda i, v: (mb.add(x=i, y=1), mb.mul(x=v, y=2.0)),
         loop_vars=(0, a))[1], X, lambda x: 32 * x, fixed=False),
]  # fmt: skip
CODES = np.array([[-2, 3], [10, -7]], np.int8)
COMPRESSED = [
    _constant("constexpr_affine_dequantize", "channels", np.array([[-1.5, 1.0], [5.5, -3.0]]), "iOS16", quantized_data=CODES,
              zero_point=np.array([1, -1], np.int8), scale=np.array([0.5, 0.5], np.float32), axis=np.int32(0)),
    _constant("constexpr_cast", "", np.array([0.5, -2.0]), "iOS16", source_val=np.array([0.5, -2.0], np.float16), output_dtype="fp32"),
    _constant("constexpr_lut_to_dense", "packed", np.array([0.25, 3.0, 0.25, -1.0, 3.0]), "iOS16",
              indices=np.array([0b11_01_10_01, 0b10], np.uint8), lut=np.array([7.0, 0.25, 3.0, -1.0], np.float32), shape=np.array([5], np.uint32)),
    _constant("constexpr_sparse_to_dense", "packed", np.array([0, 4.0, 0, 5.0, 6.0]), "iOS16", nonzero_data=np.array([4.0, 5.0, 6.0], np.float32),
              mask=np.array([0b11010], np.uint8), shape=np.array([5], np.uint32)),
    _constant("constexpr_blockwise_shift_scale", "blocks", np.array([[-6.0, 4.0, 1.0, -0.5]]), "iOS18", data=np.array([[-2, 3, 4, 1]], np.int8),
              scale=np.array([[2.0, 0.5]], np.float32), offset=np.array([[1, 2]], np.int8)),
    _later("constexpr_lut_to_dense", "groups", [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]],
           indices=lambda: _narrow([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]], "uint2"),
           lut=lambda: np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1)),
    _later("constexpr_lut_to_dense", "vectors", [[1, 2, 1, 2], [3, 4, 1, 2]], indices=lambda: _narrow([[0, 0], [1, 0]], "uint1"),
           lut=lambda: np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 2, 2), vector_axis=lambda: np.int32(1)),
    _later("constexpr_lut_to_sparse", "", [[2, 3, 0], [0, 0, 2]], indices_mask=lambda: _narrow([[1, 1, 0], [0, 0, 1]], "uint1"),
           indices_nonzero_data=lambda: _narrow([0, 1, 0], "uint1"), lut=lambda: np.array([2, 3], np.float32).reshape(1, 1, 2, 1)),
    _later("constexpr_sparse_blockwise_shift_scale", "", [[0.9, 1.8, 0], [0.2, 0, 0.6]], data_mask=lambda: _narrow([[1, 1, 0], [1, 0, 1]], "uint1"),
           nonzero_data=lambda: np.array([10, 11, 3, 5], np.int8), scale=lambda: np.array([[0.1, 0.2, 0.3]], np.float32),
           offset=lambda: np.array([[1, 2, 3]], np.int8)),
]  # fmt: skip
CASES = [*LISTS, *CONTROL, *COMPRESSED]
