"""docs/mil-operations.md from a test run: `python -m edgeml.exporter.mil.table results.xml docs/mil-operations.md`.

`results.xml` is what `pytest --junitxml` wrote for `tests/unit/test_mil_operations.py` and `tests/unit/test_mil_interpreter.py`
(see `scripts/mil-table`). An operation is listed with the cases that ran; what coremltools knows and we do not is named below.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml.exporter.mil.ops import OPERATIONS

CONTROL: Final = {"cond": "control flow", "while_loop": "control flow", "const": "constant"}
_STATES: Final = {"read_state", "write_state"}
_ID: Final = re.compile(r"(?P<test>\w+)\[(?P<op>[a-z0-9_]+)")


@dataclass(slots=True)
class Row:
    """Cases of one operation: against a formula, and against coremltools' own inference."""

    formula: int = 0
    inferred: int = 0
    failed: int = 0


def count(results: Path) -> dict[str, Row]:
    """Rows by operation of a junit file."""
    rows: dict[str, Row] = defaultdict(Row)
    for item in ET.parse(results).iter("testcase"):  # noqa: S314 - a file this repository's own tests wrote
        name = item.get("name", "")
        found = _ID.match(name)
        if name == "test_state_lives_from_call_to_call_until_reset":
            for op in _STATES:
                _add(rows[op], item, name)
        elif found and item.get("classname", "").endswith("test_mil_operations"):
            _add(rows[found["op"]], item, found["test"])
    return dict(rows)


def _add(row: Row, item: ET.Element, test: str) -> None:
    if item.find("skipped") is not None:
        return
    if item.find("failure") is not None or item.find("error") is not None:
        row.failed += 1
    elif test.endswith("infers"):
        row.inferred += 1
    else:
        row.formula += 1


def render(rows: dict[str, Row], unknown: Iterable[str]) -> str:
    """The page."""
    families = {name: known.family for name, known in OPERATIONS.items()} | CONTROL
    names = sorted(families, key=lambda name: (families[name], name))
    cases = sum(row.formula + row.inferred for row in rows.values())
    failed = sum(row.failed for row in rows.values())
    lines = [
        "# Core ML operations the interpreter runs",
        "",
        "Made by `scripts/mil-table` from a test run; do not edit.",
        "",
        f"{len(names)} operations, {cases} cases passed, {failed} failed. *Formula* counts cases against an",
        "independent formula in numpy, scipy or torch; *inferred* those against what coremltools",
        "computes itself when every input is a constant.",
        "float16 values are rounded after every operation and computed in float32 within one.",
        "",
        "| operation | family | formula | inferred |",
        "|---|---|---|---|",
    ]
    for name in names:
        row = rows.get(name, Row())
        told = "" if not row.failed else f" ({row.failed} failed)"
        lines.append(f"| `{name}` | {families[name]} | {row.formula or '-'}{told} | {row.inferred or '-'} |")
    listed = ", ".join(f"`{name}`" for name in unknown)
    lines += ["", f"Refused by name when a model is loaded: {listed}, and layers of an app's own (`custom_layer`).", ""]
    return "\n".join(lines)


def unknown_operations() -> list[str]:
    """What coremltools can write and the interpreter does not run."""
    sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]  # Python's own way to say "not there"
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    return sorted(name for name in SSAOpRegistry.core_ops if name not in OPERATIONS and name not in CONTROL and name[0] != "_")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(render(count(Path(sys.argv[1])), unknown_operations()), encoding="utf-8")
