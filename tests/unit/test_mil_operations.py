"""Each operation of the interpreter against an independent formula, and against what coremltools itself infers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgeml.exporter.mil.ops import OPERATIONS
from edgeml.runtime.backends import Array
from tests.unit import mil_cases_elementwise, mil_cases_nn, mil_cases_programs, mil_cases_shape
from tests.unit.mil_builder import Case, inferred, package, run

CASES = [*mil_cases_elementwise.CASES, *mil_cases_shape.CASES, *mil_cases_nn.CASES, *mil_cases_programs.CASES]


def _all(value: object) -> list[Array]:
    return [np.asarray(item) for item in value] if isinstance(value, (list, tuple)) else [np.asarray(value)]


def _same(got: Sequence[Array], want: Sequence[Array], tolerance: float) -> None:
    assert len(got) == len(want)
    for mine, other in zip(got, want, strict=True):
        assert mine.shape == other.shape
        assert np.isfinite(mine).all()
        assert np.allclose(mine.astype(np.float64), other.astype(np.float64), rtol=tolerance, atol=tolerance)


_answers: dict[int, list[Array]] = {}


def _answer(case: Case) -> list[Array]:
    """What the interpreter gives; computed once for both tests of a case."""
    if id(case) not in _answers:
        _answers[id(case)] = run(package(case.build, case.inputs, case.target), *case.inputs)
    return _answers[id(case)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation_gives_what_its_formula_says(case: Case) -> None:
    _same(_answer(case), _all(case.expect(*case.inputs)), case.tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.fixed], ids=str)
def test_operation_gives_what_coremltools_infers(case: Case) -> None:
    want = inferred(case)
    if want is None:
        pytest.skip("coremltools infers no value")
    _same(_answer(case), want, 10 * case.tolerance)


def test_every_known_operation_has_a_case() -> None:
    by_program = {"read_state", "write_state"}  # test_mil_interpreter: a state needs an input of its own kind
    assert set(OPERATIONS) - {case.op for case in CASES} == by_program
