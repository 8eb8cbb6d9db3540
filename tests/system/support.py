"""Exports a tiny model of every kind of source to all formats and precisions, and writes what became of each cell.

python -m tests.system.support docs/support.md      # what scripts/support-table runs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeml.exporter.precision import AVAILABLE, PRECISIONS
from edgeml.wire.manifest import Format, Precision
from tests.system import export_sources

FORMATS: Final[tuple[Format, ...]] = ("onnx", "tflite", "coreml")
TITLES: Final[dict[Format, str]] = {"onnx": "ONNX", "tflite": "TFLite", "coreml": "Core ML"}
ROOT: Final = Path(__file__).resolve().parents[2]
CODE: Final = (
    "exporter/**/*.py",
    "runtime/**/*.py",
    "tests/system/*support*.py",
    "tests/system/export_sources.py",
    "constraints/*",
)
UNFINISHED: Final = 75  # EX_TEMPFAIL: run it again

Cells = dict[tuple[str, str], str]
"""(format, precision) -> "yes", "refused: …" or "FAILED: …"."""


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table: what a user would call it, the command that exports it, and what must be built first."""

    title: str
    arguments: tuple[str, ...]
    needs: tuple[export_sources.Part, ...] = ()


CASES: Final = (
    Case("Keras 3 `.keras`", ("three.keras", "--calib", "image.npz"), ("keras",)),
    Case("Keras 3, GRU (a while loop)", ("gru.keras", "--calib", "rows.npz"), ("gru",)),
    Case("Keras 2 `.h5`, two inputs, two outputs", ("two.h5", "--calib", "sides.npz"), ("legacy",)),
    Case("SavedModel", ("saved", "--calib", "image.npz"), ("keras",)),
    Case("SavedModel, one of two signatures", ("signed", "--signature", "doubled", "--calib", "plain.npz"), ("keras",)),
    Case("PyTorch", ("nets.py:make", "--calib", "planes.npz")),
    Case("PyTorch, integers and floats in, two outputs", ("nets.py:two", "--calib", "tokens.npz")),
    Case("PyTorch, a free axis", ("nets.py:frames", "--calib", "rows.npz")),
    Case("PyTorch, a state (GRU cell)", ("nets.py:step", "--state", "h=h_out", "--calib", "rows.npz")),
    Case("PyTorch, no batch axis, a scalar input", ("nets.py:scaled", "--calib", "scaled.npz")),
    Case("PyTorch, `torch.cond`", ("nets.py:branch", "--calib", "plain.npz")),
    Case("`torch.export` `.pt2`", ("any.pt2", "--calib", "planes.npz"), ("torch",)),
    Case("TorchScript", ("script.pt", "--trust", "--calib", "planes.npz"), ("torch",)),
    Case("ONNX", ("net.onnx", "--calib", "planes.npz"), ("torch",)),
    Case("ONNX, `If` on data", ("branch.onnx", "--calib", "plain.npz"), ("branch",)),
    Case("TFLite, float", ("three.tflite", "--calib", "image.npz"), ("keras",)),
    Case("TFLite, int8", ("small.tflite", "--calib", "image.npz"), ("keras", "quantized")),
    Case("scikit-learn, linear and neural", ("rows.py:network", "--calib", "plain.npz")),
    Case("scikit-learn, trees", ("rows.py:tree", "--calib", "plain.npz")),
)


def run_case(
    case: Case, folder: Path, formats: Sequence[Format] = FORMATS, precisions: Sequence[Precision] = PRECISIONS
) -> Cells:
    """What became of each cell, by the report of `edgeml export`. Budgets are not the question: every drop is accepted."""
    made = [precision for precision in precisions if any(precision in AVAILABLE[format_] for format_ in formats)]
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, "-m", "edgeml.cli", "export", *case.arguments, "--to", ",".join(formats), "--precision",
            ",".join(made), "--max-drop", "100", "--repair-time", "0", "--json", "-o", out,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **told(folder)}
        )
    if not done.stdout.startswith("{"):
        refusal = _refusal(done.stderr.strip().removeprefix("error: "), done.returncode)
        return {(format_, precision): refusal for format_ in formats for precision in made if precision in AVAILABLE[format_]}
    report: dict[str, Any] = json.loads(done.stdout)
    return {(one["format"], one["precision"]): _cell(one) for one in report["artifacts"]}


def told(folder: Path) -> dict[str, str]:
    return {"COLUMNS": "200", "EDGEML_CACHE": str(folder / "cache")}


def _cell(artifact: Mapping[str, Any]) -> str:
    if artifact["status"] != "fail":
        return "yes"
    return _refusal(str(artifact["error"]), 3 if "is not the source" in str(artifact["error"]) else 5)


def _refusal(message: str, code: int) -> str:
    return f"{'refused' if code in {2, 5} else 'FAILED'}: {message.replace('|', '/')}"


def table(found: Mapping[str, Cells]) -> str:
    """The page: one table for each format, reasons below."""
    text, notes = INTRODUCTION, dict[str, int]()
    for format_ in FORMATS:
        precisions = [precision for precision in PRECISIONS if precision in AVAILABLE[format_]]
        text += f"\n## {TITLES[format_]}\n\n| source | {' | '.join(precisions)} |\n|---|{'---|' * len(precisions)}\n"
        for title, cells in found.items():
            words = [_mark(cells.get((format_, precision), "-"), notes) for precision in precisions]
            text += f"| {title} | {' | '.join(words)} |\n"
    text += "\n## Reasons\n\n" if notes else ""
    return text + "".join(f"{number}. {reason}\n" for reason, number in notes.items())


def read_page(text: str) -> dict[str, Cells]:
    """What `table` wrote."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    found: dict[str, Cells] = {}
    for format_ in FORMATS:
        part = text.partition(f"\n## {TITLES[format_]}\n")[2].partition("\n## ")[0]
        head, _, *rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
        for title, *marks in rows:
            cells = found.setdefault(title.strip(), {})
            for precision, mark in zip(head[1:], marks, strict=True):
                word, _, number = mark.strip().rstrip(")").partition(" (")
                if word:
                    said = {"no": "refused", "**fails**": "FAILED"}.get(word)
                    cells[format_, precision.strip()] = word if said is None else f"{said}: {reasons[number]}"
    return found


def _mark(cell: str, notes: dict[str, int]) -> str:
    kind, colon, reason = cell.partition(": ")
    if not colon:
        return "" if cell == "-" else cell
    number = notes.setdefault(reason, len(notes) + 1)
    return f"{'no' if kind == 'refused' else '**fails**'} ({number})"


INTRODUCTION: Final = """# What reaches which format

Written by `scripts/support-table`, which exports a tiny model of every kind of source. **yes**: the artifact was made, run, and
agreed with its source. **no**: it was refused for the reason below. Empty: not made, since the source has one precision.
"""


def differences(written: Cells, found: Cells) -> list[str]:
    """Where a page and a run disagree, in words."""
    cells = sorted(written.keys() | found.keys())
    pairs = [(" ".join(cell), written.get(cell, "nothing"), found.get(cell, "nothing")) for cell in cells]
    return [f"{cell}: the page says {page!r}, a run {run!r}" for cell, page, run in pairs if page != run]


def code_digest() -> str:
    """What a table depends on: rows that were made on different code do not go into one page."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in CODE for path in ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> int:
    """Make every row that this code has not made yet, then the page."""
    parser = argparse.ArgumentParser(prog="scripts/support-table", description=INTRODUCTION.split("\n\n")[1])
    parser.add_argument("page", type=Path)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; run it again to go on")
    options = parser.parse_args()
    kept = Path(os.environ.get("EDGEML_CACHE") or Path.home() / ".cache" / "edgeml") / "support" / code_digest()
    kept.mkdir(parents=True, exist_ok=True)
    started, rows, built = time.monotonic(), dict[str, Cells](), set[export_sources.Part]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        export_sources.write_code(folder)
        export_sources.write_samples(folder)
        for number, case in enumerate(CASES, 1):
            row = kept / f"{number:02}.json"
            if not row.exists():
                if time.monotonic() - started > 60 * options.minutes:
                    print(f"{len(rows)} of {len(CASES)} rows are made; run the command again to go on")
                    return UNFINISHED
                export_sources.build_parts(folder, *(part for part in case.needs if part not in built))
                built.update(case.needs)
                _write_row(row, run_case(case, folder))
            rows[case.title] = _read_row(row)
            made = sum(cell == "yes" for cell in rows[case.title].values())
            print(f"[{number:2}/{len(CASES)}] {made:2} of {len(rows[case.title])}  {case.title}", flush=True)
    options.page.write_text(table(rows), encoding="utf-8")
    return 0


def _write_row(path: Path, cells: Cells) -> None:
    told = [[format_, precision, said] for (format_, precision), said in cells.items()]
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(told), encoding="utf-8")
    draft.replace(path)


def _read_row(path: Path) -> Cells:
    return {(format_, precision): said for format_, precision, said in json.loads(path.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    sys.exit(main())
