"""The importer against onnx's own backend node tests, which ship with the onnx package.

The table in docs/onnx-operators.md is what this test saw; run with `EDGEML_WRITE_DOCS=1` to write it anew.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgeml.exporter.importer import supported_operators, to_torch
from edgeml.wire.errors import UnsupportedError

TABLE = Path(__file__).resolve().parents[2] / "docs" / "onnx-operators.md"


@dataclass
class Outcome:
    """What became of every case: by operator, and the failures by name."""

    by_operator: dict[str, Counter[str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    left_out: int = 0

    @property
    def total(self) -> Counter[str]:
        return sum(self.by_operator.values(), Counter())


def _plain(model: onnx.ModelProto) -> bool:
    """Tensors of numbers in and out, and no training."""
    values = [*model.graph.input, *model.graph.output]
    tensors = all(v.type.HasField("tensor_type") and v.type.tensor_type.elem_type != onnx.TensorProto.STRING for v in values)
    return tensors and not any("training" in node.domain for node in model.graph.node)


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _operator(case: str, model: onnx.ModelProto) -> str:
    names = {f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node}
    return names.pop() if len(names) == 1 and "_expanded" not in case else "(function bodies)"


def _run(case: Any, model: onnx.ModelProto) -> None:
    module = to_torch(model)
    for inputs, outputs in case.data_sets:
        arrays = [_array(value) for value in inputs]
        for array in arrays:
            if array.dtype.isbuiltin != 1 or array.dtype.kind not in "fiub":
                raise UnsupportedError(f"element type {array.dtype}")
        with torch.no_grad():
            got = module(*[torch.from_numpy(np.array(array)) for array in arrays])
        for tensor, expected in zip(got if isinstance(got, tuple) else (got,), map(_array, outputs), strict=False):
            widened = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            wanted = expected.astype(np.float32) if tensor.dtype == torch.bfloat16 else expected
            assert widened.numpy().dtype == wanted.dtype
            assert tuple(tensor.shape) == wanted.shape
            np.testing.assert_allclose(widened.numpy(), wanted, rtol=case.rtol, atol=case.atol)


@cache
def outcome() -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite's own expected values overflow on purpose
        from onnx.backend.test.loader import load_model_tests

        found = Outcome()
        for case in load_model_tests(kind="node"):
            model = case.model
            if model is None or not _plain(model):
                found.left_out += 1
                continue
            row = found.by_operator.setdefault(_operator(case.name, model), Counter())
            try:
                _run(case, model)
            except UnsupportedError:
                row["unsupported"] += 1
            except Exception as error:  # noqa: BLE001 - any other end is a failure to be counted
                row["failed"] += 1
                found.failures[case.name] = f"{type(error).__name__}: {error}"[:300]
            else:
                row["passed"] += 1
        return found


def test_every_case_of_a_supported_operator_passes() -> None:
    assert outcome().failures == {}


def test_four_cases_in_five_on_plain_tensors_pass() -> None:
    # Cases on 4-bit, 8-bit float, 2-bit and bfloat16 inputs are refused by name and count as unsupported here.
    seen = outcome().total
    assert seen["passed"] / (seen["passed"] + seen["failed"] + seen["unsupported"]) >= 0.75
    usual = sum((row for name, row in outcome().by_operator.items() if name not in {"Cast", "CastLike"}), Counter[str]())
    assert usual["passed"] / usual.total() >= 0.80


def test_at_least_120_operators_pass() -> None:
    assert sum(row["passed"] > 0 for name, row in outcome().by_operator.items() if not name.startswith("(")) >= 120


def test_an_unknown_operator_is_refused_by_name() -> None:
    node = onnx.helper.make_node("Warp", ["x"], ["y"], domain="com.example")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]))
    with pytest.raises(UnsupportedError, match=r"com\.example::Warp"):
        to_torch(model)


def test_the_table_in_the_docs_is_what_ran() -> None:
    text = _table(outcome())
    if os.environ.get("EDGEML_WRITE_DOCS"):
        TABLE.write_text(text)
    assert TABLE.read_text() == text, "run this test with EDGEML_WRITE_DOCS=1 and read the difference"


INTRODUCTION = """# ONNX operators the importer reads

Made by `tests/models/test_onnx_importer.py` from the node tests of onnx {version}: {passed} cases pass, {unsupported} are
refused by name, {failed} fail; {left_out} on strings, sequences, optionals and training are left out. The importer knows
{known} operators; those without a row have no case of their own on plain tensors.

Refused: casts to and from 8-bit float, 4-bit and 2-bit types, bfloat16 inputs, losses, text and image operators, trees.

| operator | passed | refused | failed |
|---|---:|---:|---:|
"""


def _table(found: Outcome) -> str:
    total = found.total
    text = INTRODUCTION.format(
        version=onnx.__version__, passed=total["passed"], unsupported=total["unsupported"], failed=total["failed"],
        left_out=found.left_out, known=len(supported_operators()),
    )  # fmt: skip
    for name, row in sorted(found.by_operator.items()):
        text += f"| {name} | {row['passed']} | {row['unsupported']} | {row['failed']} |\n"
    return text


def test_sizes_computed_from_a_shape_stay_numbers_while_an_exporter_traces() -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 18]>
        agraph (float[n, 4, 6] x) => (float[n, 24] y)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] rest = {-1}> {
          whole = Shape(x)
          head = Slice(whole, zero, one)
          sizes = Concat<axis = 0>(head, rest)
          y = Reshape(x, sizes)
        }""")
    x = torch.arange(24.0).reshape(1, 4, 6)
    program = torch.export.export(to_torch(model), (x,))
    assert torch.equal(program.module()(x), x.reshape(1, 24))
