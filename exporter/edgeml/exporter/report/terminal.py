"""The report in a terminal: a table where there is one, plain lines in a log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeml.exporter.report import text
from edgeml.exporter.report.structs import ArtifactReport, Report
from edgeml.wire.manifest import Status

STYLES: Final[dict[Status, str]] = {"pass": "green", "inconclusive": "yellow", "fail": "bold red"}


def print_report(report: Report, console: Console) -> None:
    """A table if `console` is a terminal, `plain_lines` otherwise."""
    if not console.is_terminal:
        for line in plain_lines(report):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    console.print(_table(report))
    for artifact in report.artifacts:
        if reason := text.reason(artifact):
            console.print(Text(f"{_name(artifact)}: {reason}", style=STYLES[artifact.status]))
        if together := _together(report, artifact):
            console.print(Text(f"{_name(artifact)}: {together}"))
        if worst := text.worst_classes(artifact, report.labels):
            console.print(Text(f"{_name(artifact)}: {worst}"))
        if repaired := text.repaired(artifact):
            console.print(Text(f"{_name(artifact)}: {repaired}"))
    for note in (*report.warnings, *report.notes):
        console.print(Text(note))
    console.print(Text.assemble((report.verdict, STYLES[report.verdict]), "  ", report.summary))


def plain_lines(report: Report) -> Iterator[str]:
    """One line an artifact, then notes, then the verdict."""
    for artifact in report.artifacts:
        yield _line(artifact)
        for more in (text.worst_classes(artifact, report.labels), _together(report, artifact)):
            if more:
                yield f"{'':12} {more}"
    for note in (*report.warnings, *report.notes):
        yield f"note: {note}"
    yield f"{report.verdict}: {report.name} {report.version}: {report.summary}"


def _together(report: Report, artifact: ArtifactReport) -> str | None:
    """Said where it was asked for, and no reason says it already."""
    asked = "defer" in report.options and artifact.deferral_reason is None
    return text.with_cloud(artifact.deferral) if asked else None


def _line(artifact: ArtifactReport) -> str:
    words = [f"{artifact.status:12} {artifact.format:6} {artifact.precision}"]
    if artifact.bytes:
        words.append(f"{artifact.bytes:,} bytes")
    if artifact.parity is not None:
        words.append(f"max error {text.error(artifact.parity.max_abs)}")
        if artifact.parity.top1_agreement is not None:
            words.append(f"same class {text.top1(artifact.parity)}")
        words.append(artifact.parity.where)
    if artifact.task is not None:
        value = text.metric_value(artifact.task.metric, artifact.task.value)
        words.append(f"{artifact.task.metric} {value} (drop {text.drop(artifact.task)})")
    if reason := text.reason(artifact):
        words.append(reason)
    if repaired := text.repaired(artifact):
        words.append(repaired)
    return ", ".join(words)


def _table(report: Report) -> Table:
    table = Table(title=f"{report.name} {report.version}", title_justify="left", box=None, pad_edge=False, header_style="dim")
    table.add_column("artifact")
    table.add_column("verdict")
    for heading in ("size", "max error", "same class", "metric", "drop ≤ bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("run")
    for artifact in report.artifacts:
        parity, task = artifact.parity, artifact.task
        table.add_row(
            _name(artifact),
            Text(artifact.status, style=STYLES[artifact.status]),
            text.size(artifact.bytes) if artifact.bytes else text.NOTHING,
            text.error(parity.max_abs) if parity is not None else text.NOTHING,
            text.top1(parity),
            text.metric_value(task.metric, task.value) if task is not None else text.NOTHING,
            f"{text.points(task.drop)} ≤ {text.points(task.upper95)}" if task is not None else text.NOTHING,
            text.where(artifact),
        )
    return table


def _name(artifact: ArtifactReport) -> str:
    return f"{text.FORMATS[artifact.format]} {artifact.precision}"
