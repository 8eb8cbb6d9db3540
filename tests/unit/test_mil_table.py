"""The page of operations says what the interpreter knows."""

# ruff: noqa: E501 - lines of a junit file

from __future__ import annotations

from pathlib import Path

from edgeml.exporter.mil.ops import OPERATIONS
from edgeml.exporter.mil.table import Row, count, render

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mil-operations.md"
RESULTS = """<testsuites><testsuite>
<testcase classname="tests.unit.test_mil_operations" name="test_operation_gives_what_its_formula_says[conv-same]"/>
<testcase classname="tests.unit.test_mil_operations" name="test_operation_gives_what_its_formula_says[conv-1d]"><failure/></testcase>
<testcase classname="tests.unit.test_mil_operations" name="test_operation_gives_what_coremltools_infers[conv-same]"><skipped/></testcase>
<testcase classname="tests.unit.test_mil_operations" name="test_operation_gives_what_coremltools_infers[add]"/>
</testsuite></testsuites>"""


def test_page_lists_every_operation_and_no_failure() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in OPERATIONS)
    assert "cases passed, 0 failed" in page


def test_cases_are_counted_by_operation_and_outcome(tmp_path: Path) -> None:
    (tmp_path / "results.xml").write_text(RESULTS, encoding="utf-8")
    rows = count(tmp_path / "results.xml")
    assert rows == {"conv": Row(formula=1, failed=1), "add": Row(inferred=1)}
    assert "| `conv` | convolution | 1 (1 failed) | - |" in render(rows, ["classify"])
