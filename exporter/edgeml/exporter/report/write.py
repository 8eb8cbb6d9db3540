"""Write a report beside its bundle: JSON for programs, one HTML file for people."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edgeml.exporter.report.html import to_html
from edgeml.exporter.report.structs import Report, to_json
from edgeml.wire.errors import EnvironmentProblem


def write_report(report: Report, directory: Path) -> tuple[Path, Path]:
    """Write `<name>-<version>.report.json` and `.report.html`; gives their paths.

    Raises:
        EnvironmentProblem: the disk refused; a report that was there before stays.
    """
    stem = f"{report.name}-{report.version}.report"
    paths = directory / f"{stem}.json", directory / f"{stem}.html"
    for path, content in zip(paths, (to_json(report), to_html(report).encode()), strict=True):
        _write_whole(path, content)
    return paths


def _write_whole(path: Path, content: bytes) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {str(path)!r}: {error.strerror}", hint="give another -o DIR") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
