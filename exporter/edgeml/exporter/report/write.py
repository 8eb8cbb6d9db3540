"""Write a report beside its bundle: JSON for programs, one HTML file for people."""

from __future__ import annotations

from pathlib import Path

from edgeml.exporter.report.html import to_html
from edgeml.exporter.report.structs import Report, to_json
from edgeml.runtime.packing import write_whole


def write_report(report: Report, directory: Path) -> tuple[Path, Path]:
    """Write `<name>-<version>.report.json` and `.report.html`; gives their paths.

    Raises:
        EnvironmentProblem: the disk refused; a report that was there before stays.
    """
    stem = f"{report.name}-{report.version}.report"
    paths = directory / f"{stem}.json", directory / f"{stem}.html"
    for path, content in zip(paths, (to_json(report), to_html(report).encode()), strict=True):
        write_whole(path, [content], hint="give another -o DIR")
    return paths
