"""docs/support.md is what a run says: a sampled part of it is run again here, all of it by scripts/support-table."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeml.exporter.precision import AVAILABLE, PRECISIONS
from edgeml.wire.manifest import Format
from tests.system import export_sources
from tests.system.support import CASES, FORMATS, TITLES, Cells, read_page, run_case, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support.md"
SAMPLED: dict[str, tuple[Format, ...]] = {
    "scikit-learn, trees": ("onnx", "tflite"),
    "scikit-learn, linear and neural": ("onnx",),
    "PyTorch, a state (GRU cell)": ("onnx",),
    "PyTorch, a free axis": ("onnx",),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    export_sources.write_code(folder)
    export_sources.write_samples(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("title", SAMPLED)
def test_a_sampled_row_of_the_table_is_what_a_run_says(sources: Path, title: str) -> None:
    case = next(case for case in CASES if case.title == title)
    written = read_page(PAGE.read_text(encoding="utf-8"))[title]
    found = run_case(case, sources, formats=SAMPLED[title])
    assert found == {cell: said for cell, said in written.items() if cell[0] in SAMPLED[title]}


def test_the_table_has_every_source_format_and_precision() -> None:
    rows = read_page(PAGE.read_text(encoding="utf-8"))
    assert list(rows) == [case.title for case in CASES]
    known = {(format_, precision) for format_ in FORMATS for precision in PRECISIONS if precision in AVAILABLE[format_]}
    quantized = next(case.title for case in CASES if "int8" in case.title)
    assert all(set(cells) == known for title, cells in rows.items() if title != quantized)


def test_no_cell_of_the_table_fails() -> None:
    failures = [
        said for cells in read_page(PAGE.read_text(encoding="utf-8")).values() for said in cells.values() if "FAIL" in said
    ]
    assert failures == []


def test_a_page_that_is_written_reads_back() -> None:
    cells: Cells = {(format_, "fp32"): "yes" for format_ in TITLES}
    cells["onnx", "int8"] = "refused: no operator, that is: none"
    cells["tflite", "int8"] = "FAILED: it crashed"
    assert read_page(table({"Some source": cells})) == {"Some source": cells}
