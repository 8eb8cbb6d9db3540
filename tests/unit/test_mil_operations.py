"""Each operation of the interpreter against an independent formula, and against what coremltools itself infers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgeml.runtime.backends import Array
from tests.unit import mil_cases_elementwise, mil_cases_nn, mil_cases_shape
from tests.unit.mil_builder import Case, inferred, package, run

CASES = [*mil_cases_elementwise.CASES, *mil_cases_shape.CASES, *mil_cases_nn.CASES]


def _all(value: object) -> list[Array]:
    return [np.asarray(item) for item in value] if isinstance(value, (list, tuple)) else [np.asarray(value)]


def _same(got: Sequence[Array], want: Sequence[Array], tolerance: float) -> None:
    assert len(got) == len(want)
    for mine, other in zip(got, want, strict=True):
        assert mine.shape == other.shape
        assert np.isfinite(mine).all()
        assert np.allclose(mine.astype(np.float64), other.astype(np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation_gives_what_its_formula_says(case: Case) -> None:
    model = package(case.build, case.inputs, case.target)
    _same(run(model, *case.inputs), _all(case.expect(*case.inputs)), case.tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if case.fixed], ids=str)
def test_operation_gives_what_coremltools_infers(case: Case) -> None:
    want = inferred(case)
    if want is None:
        pytest.skip("coremltools infers no value")
    _same(run(package(case.build, case.inputs, case.target), *case.inputs), want, 10 * case.tolerance)
