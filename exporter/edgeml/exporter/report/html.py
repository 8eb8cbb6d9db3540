"""The report as one HTML file: nothing is fetched, nothing is run; it follows light and dark, and prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgeml.exporter.report import plots, text
from edgeml.exporter.report.structs import ArtifactReport, Report
from edgeml.wire.manifest import BATCH, Format, KeptFloat, Precision, TensorSpec

TEMPLATE: Final = "report.html.j2"


@dataclass(frozen=True, slots=True)
class _Row:
    """One artifact's cells, already words."""

    artifact: ArtifactReport
    first_of_format: int  # rows of its format if it opens them, else 0
    strip: Markup
    reason: str | None
    smaller: str


@dataclass(frozen=True, slots=True)
class _Layer:
    kept: KeptFloat
    bar: Markup


def to_html(report: Report) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        size=text.size, share=text.share, metric_value=text.metric_value,
        error=text.error, points=text.points, seconds=text.seconds, between=text.between, where=text.where,
        decibels=text.decibels, class_name=text.class_name,
        below=text.below, interval=text.interval, told=_told, layers_kept=_kept,
        FORMATS=text.FORMATS, METRICS=text.METRICS, NOTHING=text.NOTHING,
    )  # fmt: skip
    return environment.get_template(TEMPLATE).render(
        report=report,
        rows=_rows(report),
        grid=_grid(report),
        plots=[Markup(plot) for plot in _plots(report)],  # noqa: S704 - our own SVG, its texts are escaped
        layers=_layers(report),
        legend=Markup(plots.legend(report.artifacts)),  # noqa: S704
        metric=next((a.task.metric for a in report.artifacts if a.task is not None), None),
        source_value=next((a.task.source_value for a in report.artifacts if a.task is not None), None),
        promised=[a for a in report.artifacts if a.deferral is not None and a.deferral.promise is not None],
        has_latency=any(a.latency is not None for a in report.artifacts),
        snippet=snippet(report),
    )


def _plots(report: Report) -> list[str]:
    return [plot for plot in (plots.size_accuracy(report.artifacts), plots.time_accuracy(report.artifacts)) if plot]


def _grid(report: Report) -> tuple[list[Precision], dict[Format, dict[Precision, ArtifactReport]]]:
    """Precisions in order, and by format the artifact of each; no rows where the list below says it as shortly."""
    precisions = [precision for precision in get_args(Precision) if any(a.precision == precision for a in report.artifacts)]
    rows: dict[Format, dict[Precision, ArtifactReport]] = {}
    for artifact in report.artifacts:
        rows.setdefault(artifact.format, {})[artifact.precision] = artifact
    return precisions, rows if len(rows) > 1 and len(precisions) > 1 else {}


def _layers(report: Report) -> list[tuple[ArtifactReport, list[_Layer]]]:
    """Of each artifact that was searched, its operators, the one that hurts most first."""
    found = []
    for artifact in report.artifacts:
        if artifact.repair is None:
            continue
        bars = plots.error_bars([one.error for one in artifact.repair.ranked])
        layers = [_Layer(one, Markup(bar)) for one, bar in zip(artifact.repair.ranked, bars, strict=True)]  # noqa: S704
        found.append((artifact, layers))
    return found


def _kept(artifact: ArtifactReport) -> tuple[KeptFloat, ...]:
    return artifact.repair.ranked[: artifact.repair.kept] if artifact.repair is not None else ()


def _told(report: Report, artifact: ArtifactReport) -> set[str]:
    """Notes that the page says elsewhere: in its warnings, and in the table of layers."""
    where = f"{artifact.format} "
    warned = {w.partition(": ")[2] for w in report.warnings if w.startswith(where)}
    repeated = {
        note for note in artifact.notes if artifact.repair is not None and note.startswith(("left float: ", "at 16 bits: "))
    }
    return warned | repeated


def snippet(report: Report) -> str:
    """Python that runs the bundle, ready to paste; "" if there is no bundle."""
    if report.bundle is None or report.signature is None:
        return ""
    feeds = ", ".join(f"{spec.name!r}: {_example(spec)}" for spec in report.signature.inputs)
    name = "".join(c if c.isalnum() else "_" for c in report.name)
    name = name if name.isidentifier() else f"model_{name}"
    answer = "result.label, result.score" if report.task == "classify" else "result.outputs"
    return "\n".join(
        [
            "import numpy as np",
            "from edgeml.runtime import load",
            "",
            f'{name} = load("{report.bundle}")  # picks the artifact for this board, runs the golden vectors',
            f"result = {name}.run({{{feeds}}})",
            f"print({answer}, result.latency_s)",
        ]
    )


def _example(spec: TensorSpec) -> str:
    shape = tuple(axis for axis in spec.shape if axis != BATCH)
    sizes = ", ".join(str(axis) if isinstance(axis, int) else "1" for axis in shape)
    return f"np.zeros(({sizes}{',' if len(shape) == 1 else ''}), np.{'bool_' if spec.dtype == 'bool' else spec.dtype})"


def _rows(report: Report) -> list[_Row]:
    low, high = plots.drop_range(report.artifacts)
    whole = {a.format: a.bytes for a in report.artifacts if a.precision == "fp32"}
    counts = {a.format: sum(b.format == a.format for b in report.artifacts) for a in report.artifacts}
    rows, seen = [], set()
    for artifact in sorted(report.artifacts, key=lambda a: list(counts).index(a.format)):
        strip = plots.drop_strip(artifact.task, low, high) if artifact.task is not None else ""
        rows.append(
            _Row(
                artifact,
                0 if artifact.format in seen else counts[artifact.format],
                Markup(strip),  # noqa: S704 - our own SVG
                text.reason(artifact),
                text.ratio(whole.get(artifact.format, 0), artifact.bytes),
            )
        )
        seen.add(artifact.format)
    return rows
