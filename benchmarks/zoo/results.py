"""Results of zoo runs: one JSON line a model in a file outside the repository, its table, and its summary."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.zoo.recipe import CACHE
from benchmarks.zoo.registry import ZOO
from benchmarks.zoo.running import BUDGET, Cell, Line

FILE: Final = "results.jsonl"


def place() -> Path:
    """EDGEML_ZOO_RESULTS, or `results.jsonl` in the zoo's cache."""
    return Path(os.environ.get("EDGEML_ZOO_RESULTS") or CACHE / FILE)


def append(line: Line, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(line)) + "\n")


def read(path: Path) -> dict[str, Line]:
    """The newest line of each model."""
    if not path.exists():
        return {}
    found = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]
    return {one["model"]: Line(**{**one, "cells": [Cell(**cell) for cell in one["cells"]]}) for one in found}


def table(line: Line) -> str:
    head = (
        f"{line.model}: score {line.score:.4f} (chance {line.chance:.2f}), {line.parameters:,} parameters, "
        f"{line.wall_s:.0f} s, exit {line.exit_code}"
    )
    if line.error is not None:
        return f"{head}\n    refused: {line.error}"
    return "\n".join([head, *(f"    {_row(line, cell)}" for cell in line.cells)])


def _row(line: Line, cell: Cell) -> str:
    words = f"{cell.format:7} {cell.precision:6} {cell.status:12} {cell.bytes:9,} bytes"
    whole = next((one.bytes for one in line.cells if one.format == cell.format and one.precision == "fp32"), 0)
    words += f" ({cell.bytes / whole:4.0%})" if whole else "       "
    if cell.drop is not None and cell.upper95 is not None:
        words += f"  {cell.metric} drop {cell.drop:+.2f}, at most {cell.upper95:.2f}"
    if cell.own_drop is not None:
        words += f"; own score {cell.own_drop:+.2f}"
    if cell.repair is not None:
        words += f"; {cell.repair}"
    if cell.silent is not None:
        words += f"  SILENT: {cell.silent}"
    return words + (f"  {cell.error}" if cell.error else "")


def markdown(lines: Iterable[Line]) -> str:
    """int8 of each model, format by format: points lost, [bound], share of fp32's bytes."""
    head = "| model | source | score (chance) | ONNX | TFLite | Core ML |\n|---|---|---|---|---|---|"
    rows = []
    for line in lines:
        cells = {cell.format: _short(line, cell) for cell in line.cells if cell.precision == "int8"}
        told = " | ".join(cells.get(name, line.error or "") for name in ("onnx", "tflite", "coreml"))
        rows.append(f"| {line.model} | {ZOO[line.model].kind} | {line.score:.3f} ({line.chance:.2f}) | {told} |")
    return "\n".join([head, *rows])


def _short(line: Line, cell: Cell) -> str:
    if cell.drop is None or cell.upper95 is None:
        return f"refused: {(cell.error or cell.status).partition(': ')[0]}"
    whole = _whole(line, cell)
    words = f"{cell.drop:+.2f} [{cell.upper95:.2f}]" + (f", {cell.bytes / whole:.0%}" if whole else "")
    words += f", {cell.kept_float} left float" if cell.kept_float else ""
    return words if cell.status == "pass" else f"**{cell.status}** {words}"


def summary(lines: Iterable[Line]) -> dict[str, Any]:
    """The keys of DESIGN, section 9. An int8 artifact passes if the upper bound of its drop is within the budget."""
    kept = list(lines)
    int8 = [(line, cell) for line in kept for cell in line.cells if cell.precision == "int8"]
    cells = [cell for _, cell in int8]
    refused = [line.model for line in kept if line.error is not None]
    by_format = {name: _share([c for c in cells if c.format == name]) for name in ("onnx", "tflite", "coreml")}
    ratios = [cell.bytes / whole for line, cell in int8 if cell.bytes and (whole := _whole(line, cell))]
    return {
        "models": len(kept),
        "pass_share": _share([cell for cell in cells if not cell.kept_float], of=len(cells)),
        "pass_share_after_keep_float": _share(cells),
        "worst_drop": max((cell.drop for cell in cells if cell.drop is not None), default=None),
        "silent_failures": sum(cell.silent is not None for line in kept for cell in line.cells),
        "size_ratio": round(median(ratios), 4) if ratios else None,
        "pass_share_by_format": by_format,
        "artifacts_int8": len(cells),
        "not_passed": [f"{line.model} {cell.format}: {cell.status}" for line, cell in int8 if cell.status != "pass"],
        "repaired": [f"{line.model} {cell.format}" for line, cell in int8 if cell.kept_float],
        "refused": refused,
        "codes": sorted({line.code for line in kept}),
    }


def _whole(line: Line, cell: Cell) -> int:
    return next((one.bytes for one in line.cells if one.format == cell.format and one.precision == "fp32"), 0)


def _share(cells: Sequence[Cell], of: int | None = None) -> float | None:
    count = len(cells) if of is None else of
    good = sum(cell.status == "pass" and cell.upper95 is not None and cell.upper95 <= BUDGET for cell in cells)
    return round(good / count, 4) if count else None
