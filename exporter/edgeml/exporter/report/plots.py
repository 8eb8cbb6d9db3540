"""Inline SVG for the report; colours come from the page's style sheet, so that it follows light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from edgeml.exporter.parity.compare import UNMEASURED
from edgeml.exporter.report.structs import ArtifactReport
from edgeml.exporter.report.text import ERRORS, FORMATS, METRICS, points, seconds, share, size
from edgeml.wire.manifest import Precision, Task

WIDTH: Final = 540
HEIGHT: Final = 310
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 18, 48  # margins of the plot's frame
STRIP_WIDTH, STRIP_HEIGHT = 132, 22  # of the drop of one artifact, beside its numbers
MARK: Final = 6.0

COLOURS: Final[dict[Precision, str]] = {
    "fp32": "fp32", "fp16": "fp16", "int8": "int8", "int8-dynamic": "int8", "int16": "int8", "w8a8": "int8",
    "int8-weights": "weights", "int4-weights": "weights", "palette8": "palette", "palette6": "palette", "palette4": "palette",
}  # fmt: skip
"""The style of each precision's mark: one for a kind of arithmetic or of storage, since eleven could not be told apart."""


Cost = Callable[[ArtifactReport], float]


@dataclass(frozen=True, slots=True)
class _Point:
    artifact: ArtifactReport
    task: Task

    @property
    def lowest(self) -> float:
        """The value that 95 % certainty leaves."""
        upper = self.task.upper95
        return self.task.source_value - upper / 100 if upper < UNMEASURED else self.task.value


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def size_accuracy(artifacts: Sequence[ArtifactReport]) -> str:
    """Bytes against the task metric, with 95 % bounds, the budget, and the frontier that nothing beats; "" without data."""
    return _against(_points(artifacts), lambda a: a.bytes, "size of the model file (logarithmic)", size)


def time_accuracy(artifacts: Sequence[ArtifactReport]) -> str:
    """The same for the time of one call, of those that a device's engine ran."""
    timed = [a for a in artifacts if a.latency is not None and a.parity is not None and a.parity.where == "verified"]
    return _against(_points(timed), lambda a: a.latency.p50_s if a.latency else 0.0, "one call here (logarithmic)", seconds)


def _points(artifacts: Sequence[ArtifactReport]) -> list[_Point]:
    found = [_Point(a, a.task) for a in artifacts if a.task is not None and a.bytes and a.task.value > -1]
    if len(found) < 2 or found[0].task.metric in ERRORS:  # growth in percent has no place on an axis of values
        return []
    return found


def _against(found: Sequence[_Point], cost: Cost, label: str, words: Callable[[Any], str]) -> str:
    """What the artifacts cost against what they are worth."""
    if len(found) < 2:
        return ""
    task = found[0].task
    x = _x_scale([cost(p.artifact) for p in found])
    budget = max((p.task.budget for p in found if p.task.budget is not None), default=None)
    floor = task.source_value - (budget or 0) / 100
    y = _y_scale([v for p in found for v in (p.task.value, p.lowest)] + [task.source_value, floor])
    metric = METRICS.get(task.metric, task.metric)
    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)} against {metric}">']
    parts += _frame(x, y, metric, label, words)
    if budget is not None:
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - y(floor)
        parts.append(f'<rect class="over" x="{LEFT}" y="{y(floor):.1f}" width="{width}" height="{height:.1f}"/>')
        over = f"over the budget of {budget:g} point{'s' if budget != 1 else ''}"
        parts.append(_label(LEFT + 6, HEIGHT - BOTTOM - 6, over, "start"))
    at = f"{y(task.source_value):.1f}"
    parts.append(f'<line class="source" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
    parts.append(_label(LEFT + 6, y(task.source_value) - 5, f"source {share(task.source_value)}", "start"))
    parts.append(_frontier(found, cost, x, y))
    for point in sorted(found, key=lambda p: -cost(p.artifact)):
        parts.append(_mark(point, x(math.log10(cost(point.artifact))), y(point.task.value), y(point.lowest)))
    return "\n".join([*parts, "</svg>"])


def error_bars(errors: Sequence[float]) -> list[str]:
    """How much of the answers' deviation each operator spoils alone, the largest as the whole width."""
    most = max((error for error in errors if error < UNMEASURED), default=0.0) or 1.0
    return [
        '<svg class="bar" viewBox="0 0 104 10" aria-hidden="true">'
        f'<rect x="0" y="2" width="{max(1.5, 104 * min(error, most) / most):.1f}" height="6" rx="1"/></svg>'
        for error in errors
    ]


def drop_strip(task: Task, low: float, high: float) -> str:
    """One artifact's drop: a dot, its upper bound, and the budget as a line; `low` and `high` are shared by all rows."""
    x = _Scale(low, high, 6, STRIP_WIDTH - 6)
    middle = STRIP_HEIGHT / 2
    upper = min(task.upper95, high)
    parts = [
        f'<svg class="strip" viewBox="0 0 {STRIP_WIDTH} {STRIP_HEIGHT}" role="img" aria-label="drop {points(task.drop)}">',
        f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="3" y2="{STRIP_HEIGHT - 3}"/>',
    ]
    if task.budget is not None:
        parts.append(
            f'<line class="budget" x1="{x(task.budget):.1f}" x2="{x(task.budget):.1f}" y1="1" y2="{STRIP_HEIGHT - 1}"/>'
        )
    at, end = x(max(low, min(high, task.drop))), x(upper)
    parts.append(f'<line class="bound {task.status}" x1="{at:.1f}" x2="{end:.1f}" y1="{middle}" y2="{middle}"/>')
    if task.upper95 <= high:
        parts.append(f'<line class="bound {task.status}" x1="{end:.1f}" x2="{end:.1f}" y1="{middle - 4}" y2="{middle + 4}"/>')
    parts.append(f'<circle class="dot {task.status}" cx="{at:.1f}" cy="{middle}" r="3.5"/></svg>')
    return "".join(parts)


def drop_range(artifacts: Sequence[ArtifactReport]) -> tuple[float, float]:
    """The axis that all strips share: every estimate, and bounds up to three times the budget."""
    tasks = [a.task for a in artifacts if a.task is not None]
    budget = max([t.budget for t in tasks if t.budget is not None], default=1.0)
    ends = [0.0, budget, *(t.drop for t in tasks), *(min(t.upper95, 3 * budget) for t in tasks)]
    ends = [max(-5 * budget, min(5 * budget, end)) for end in ends]
    pad = 0.08 * (max(ends) - min(ends) or 1.0)
    return min(ends) - pad, max(ends) + pad


def legend(artifacts: Sequence[ArtifactReport]) -> str:
    """Shapes are formats, colours precisions: those that the plot shows."""
    styles: dict[str, list[str]] = {}
    for precision in dict.fromkeys(artifact.precision for artifact in artifacts):
        styles.setdefault(COLOURS[precision], []).append(precision)
    items = []
    for name, text in FORMATS.items():
        items.append(f'<span><svg viewBox="0 0 16 16">{_shape(name, 8, 8, "plain")}</svg>{escape(text)}</span>')
    items += [
        f'<span><svg viewBox="0 0 16 16">{_shape("onnx", 8, 8, style)}</svg>{", ".join(names)}</span>'
        for style, names in styles.items()
    ]
    return f'<p class="legend">{"".join(items)}</p>'


def _x_scale(sizes: Sequence[float]) -> _Scale:
    low, high = math.log10(min(sizes)), math.log10(max(sizes))
    pad = max(0.08 * (high - low), 0.08)
    return _Scale(low - pad, high + pad, LEFT, WIDTH - RIGHT)


def _y_scale(values: Sequence[float]) -> _Scale:
    low, high = min(values), max(values)
    pad = max(0.1 * (high - low), 0.002)
    return _Scale(low - pad, high + pad, HEIGHT - BOTTOM, TOP)


def _frame(x: _Scale, y: _Scale, metric: str, label: str, words: Callable[[Any], str]) -> list[str]:
    parts = []
    for tick in _log_ticks(x.low, x.high):
        at = x(math.log10(tick))
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(_label(at, HEIGHT - BOTTOM + 18, words(tick).replace(".0 ", " "), "middle"))
    ticks, digits = _nice_ticks(y.low * 100, y.high * 100)
    for tick_y in ticks:
        at = y(tick_y / 100)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_label(LEFT - 8, at + 4, f"{tick_y:.{digits}f} %", "end"))
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, label, "middle"))
    parts.append(_label(LEFT, 11, metric, "start"))
    return parts


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten between two logarithms; whole numbers from 1 on."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    ticks = [factor * 10**exponent for exponent in exponents for factor in (1, 2, 5)]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]


def _nice_ticks(low: float, high: float) -> tuple[list[float], int]:
    """About five round values, and the digits they need."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [step * index for index in range(first, math.floor(high / step) + 1)], max(0, -math.floor(math.log10(step) + 1e-9))


def _frontier(found: Sequence[_Point], cost: Cost, x: _Scale, y: _Scale) -> str:
    """Steps through the artifacts that none of less cost equals."""
    best = -math.inf
    corners: list[tuple[float, float]] = []
    for point in sorted(found, key=lambda p: (cost(p.artifact), -p.task.value)):
        if point.artifact.status != "fail" and point.task.value > best:
            best = point.task.value
            at = x(math.log10(cost(point.artifact)))
            if corners:
                corners.append((at, corners[-1][1]))
            corners.append((at, y(best)))
    if not corners:
        return ""
    corners.append((WIDTH - RIGHT, corners[-1][1]))
    return f'<polyline class="frontier" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}"/>'


def _mark(point: _Point, x: float, y: float, lowest: float) -> str:
    artifact, task = point.artifact, point.task
    name = f"{FORMATS[artifact.format]} {artifact.precision}"
    title = f"{name}: {size(artifact.bytes)}, {share(task.value)}, drop at most {points(task.upper95)}"
    return (
        f"<g><title>{escape(title)}</title>"
        f'<line class="whisker {COLOURS[artifact.precision]}" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{lowest:.1f}"/>'
        f"{_shape(artifact.format, x, y, COLOURS[artifact.precision])}</g>"
    )


def _shape(form: str, x: float, y: float, style: str) -> str:
    if form == "onnx":
        return f'<circle class="mark {style}" cx="{x:.1f}" cy="{y:.1f}" r="{MARK - 0.5}"/>'
    if form == "tflite":
        side = 2 * MARK - 2
        return f'<rect class="mark {style}" x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side}" height="{side}"/>'
    tip, base = y - MARK, y + MARK * 0.75
    return f'<path class="mark {style}" d="M{x:.1f} {tip:.1f}L{x + MARK:.1f} {base:.1f}L{x - MARK:.1f} {base:.1f}Z"/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
