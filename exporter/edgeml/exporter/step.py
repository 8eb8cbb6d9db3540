"""A step of an export: timed for the report, told to whoever watches."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from edgeml.exporter.progress import Outcome, Progress
from edgeml.exporter.report.structs import Stage


class Step:
    """A timed step that tells the progress how it ended; an error ends it as failed and goes on."""

    def __init__(self, name: str, progress: Progress, stages: list[Stage]) -> None:
        self.name, self.note = name, ""
        self.outcome: Outcome = "done"
        self._progress, self._stages = progress, stages
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._progress.begin(self.name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stages.append(Stage(self.name, round(time.monotonic() - self._started, 3)))
        if error is not None:
            self._progress.end(self.name, "fail", str(error))
        else:
            self._progress.end(self.name, self.outcome, self.note)
