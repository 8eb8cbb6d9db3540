"""A benchmark for people: one line an artifact, then what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgeml.runtime.bench.records import Bench, Heat, Interval, Timing

NOTHING: Final = "-"
UNITS: Final = ((1.0, "s", 1.0), (1e-3, "ms", 1e3), (0.0, "µs", 1e6))  # least seconds, unit, factor
MIB: Final = 1 << 20


def lines(found: Bench, *, where: str | None = None) -> Iterator[str]:
    """`where` says how the machine was reached, if it is not this one."""
    machine = found.machine
    board = machine.model or "this machine" if where is None else f"{machine.model} ({where})" if machine.model else where
    yield (
        f"{found.name} {found.version} on {board}, {machine.arch}, {machine.cores} cores; "
        f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    )
    yield ""
    yield from _columns([HEADINGS, *(_cells(timing) for timing in found.artifacts if timing.state == "measured")])
    for timing in found.artifacts:
        if timing.state != "measured":
            yield f"{timing.label}  {timing.state}: {timing.detail}"
    yield ""
    for comparison in found.comparisons:
        yield f"{comparison.format}: {comparison.sentence}"
    yield _heat(found.heat)
    yield from found.notes


HEADINGS: Final = ("artifact", "load", "first call", "p50", "95 %", "p90", "95 %", "p99", "95 %", "memory", "calls", "engine")


def _cells(timing: Timing) -> tuple[str, ...]:
    memory = NOTHING if timing.peak_bytes is None else f"{timing.peak_bytes / MIB:.1f} MiB"
    spread = [cell for interval in (timing.p50, timing.p90, timing.p99) for cell in _spread(interval)]
    load, first = (_spread(interval)[0] for interval in (timing.load, timing.first))
    return (timing.label, load, first, *spread, memory, f"{timing.calls:,}", timing.detail)


def _spread(interval: Interval | None) -> tuple[str, str]:
    """`0.131 ms` and `0.129-0.134`, in one unit."""
    if interval is None:
        return NOTHING, ""
    _, unit, factor = next(row for row in UNITS if interval.value >= row[0])
    value, low, high = (_digits(factor * seconds) for seconds in (interval.value, interval.low, interval.high))
    return f"{value} {unit}", f"{low}-{high}"


def _digits(number: float) -> str:
    """Three significant digits, no exponent."""
    places = 0 if number >= 100 else 1 if number >= 10 else 2
    return f"{number:.{places}f}"


def _heat(heat: Heat) -> str:
    words = "no sensor" if heat.after_celsius is None else f"{heat.before_celsius or heat.after_celsius:.1f} °C before"
    if heat.after_celsius is not None:
        words += f", {heat.after_celsius:.1f} °C after"
    if heat.throttled is None:
        return f"heat: {words}; whether it was throttled, this board does not say"
    if not heat.throttled:
        return f"heat: {words}; not throttled"
    return f"heat: {words}; {', '.join(heat.throttled)} during the run: these are the figures of a board that was held back"


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *middle, last = (*row,)
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells, last]).rstrip()
