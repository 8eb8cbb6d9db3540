"""What a person sees while an export runs: a live table in a terminal, one line a step elsewhere, nothing with --json."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

Outcome = Literal["pass", "fail", "inconclusive", "done"]
MARKS: dict[Outcome, str] = {"pass": "ok", "done": "ok", "fail": "FAIL", "inconclusive": "?"}


class Progress(Protocol):
    """Told of each step by name when it starts and when it ends; calls come from several threads."""

    def begin(self, step: str) -> None: ...

    def end(self, step: str, outcome: Outcome, note: str) -> None: ...


class Silent:
    """Shows nothing."""

    def begin(self, step: str) -> None: ...

    def end(self, step: str, outcome: Outcome, note: str) -> None: ...


class Lines:
    """One line for each step that ended."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._lock = threading.Lock()

    def begin(self, step: str) -> None:
        self._started[step] = time.monotonic()

    def end(self, step: str, outcome: Outcome, note: str) -> None:
        with self._lock:
            seconds = time.monotonic() - self._started.get(step, time.monotonic())
            print(f"{MARKS[outcome]:<4}  {step:<18} {seconds:6.1f} s  {note}", flush=True)


@dataclass
class _Row:
    started: float
    ended: float | None = None
    outcome: Outcome | None = None
    note: str = ""


class Table:
    """A table that grows as steps begin and settles as they end; a context manager."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()
        self._live = Live(console=Console(file=sys.stdout), refresh_per_second=8, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def begin(self, step: str) -> None:
        with self._lock:
            self._rows[step] = _Row(time.monotonic())

    def end(self, step: str, outcome: Outcome, note: str) -> None:
        with self._lock:
            row = self._rows.setdefault(step, _Row(time.monotonic()))
            row.ended, row.outcome, row.note = time.monotonic(), outcome, note

    def _render(self) -> RichTable:

        styles = {"pass": "green", "done": "green", "fail": "bold red", "inconclusive": "yellow"}
        table = RichTable(box=None, pad_edge=False, show_header=False)
        with self._lock:
            for step, row in self._rows.items():
                mark = Text(MARKS[row.outcome], style=styles[row.outcome]) if row.outcome else Text("...", style="cyan")
                table.add_row(mark, step, f"{(row.ended or time.monotonic()) - row.started:.1f} s", row.note)
        return table
