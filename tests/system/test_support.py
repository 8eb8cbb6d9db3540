"""docs/support.md is what a run says: a sampled part of it is run again here, all of it by scripts/support-table."""

from __future__ import annotations

import datetime as dt
import os
import random
import subprocess
from pathlib import Path

import pytest

from edgeml.exporter.precision import AVAILABLE, PRECISIONS
from edgeml.wire.manifest import Format
from tests.system import export_sources
from tests.system.support import CASES, FORMATS, ROOT, TITLES, Case, Cells, differences, read_page, run_case, table

PAGE = ROOT / "docs" / "support.md"
PAIRS = 2  # of a source and a format that are made again


def seed() -> str:
    """Another one for each commit, or each day where there is none; EDGEML_SUPPORT_SEED repeats one."""
    if given := os.environ.get("EDGEML_SUPPORT_SEED"):
        return given
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or dt.datetime.now(dt.UTC).date().isoformat()


def sample(drawn_by: str) -> list[tuple[Case, Format]]:
    """Some rows and a format of each; those after the first need nothing to be built that the first does not."""
    draw = random.Random(drawn_by)
    first = draw.choice(CASES)
    others = [case for case in CASES if case != first and set(case.needs) <= set(first.needs)]
    return [(case, draw.choice(FORMATS)) for case in (first, *draw.sample(others, PAIRS - 1))]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    export_sources.write_samples(folder)
    return export_sources.build_parts(folder, *sample(seed())[0][0].needs)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(PAIRS), ids=[f"EDGEML_SUPPORT_SEED={seed()}: {n + 1} of {PAIRS}" for n in range(PAIRS)])
def test_a_sampled_part_of_the_table_is_what_a_run_says(sources: Path, place: int) -> None:
    case, format_ = sample(seed())[place]
    print(f"EDGEML_SUPPORT_SEED={seed()}: {case.title} to {format_}")
    written = read_page(PAGE.read_text(encoding="utf-8"))[case.title]
    found = run_case(case, sources, formats=[format_])
    assert differences({cell: said for cell, said in written.items() if cell[0] == format_}, found) == []


def test_another_seed_draws_another_sample() -> None:
    drawn = [sample(str(number)) for number in range(200)]
    assert {(case.title, format_) for pairs in drawn for case, format_ in pairs} == {
        (case.title, format_) for case in CASES for format_ in FORMATS
    }
    assert sample("1") == sample("1")


@pytest.mark.parametrize(("right", "wrong"), [("| yes |", "| no (1) |"), ("| no (1) |", "| yes |")], ids=["a no", "a yes"])
def test_a_cell_that_a_run_does_not_confirm_is_told(right: str, wrong: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    true, forged = read_page(page), read_page(page.replace(right, wrong, 1))
    told = [line for title in true for line in differences(forged[title], true[title])]
    assert len(told) == 1
    assert "the page says" in told[0]


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
