"""Calls that the caller stops waiting for when their time is up, for engines that cannot be interrupted."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from edgeml.runtime.backends import Array
from edgeml.wire.errors import DeadlineError

_END: Final = None


@dataclass(slots=True)
class _Errand:
    work: Callable[[], list[Array]]
    finish: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)
    answer: list[Array] | None = None
    error: BaseException | None = None


class Runner:
    """One thread that runs an engine for callers with a deadline; started by the first of them."""

    def __init__(self) -> None:
        self._errands: queue.SimpleQueue[_Errand | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], list[Array]], until: float, finish: Callable[[], None]) -> list[Array]:
        """What `work` gives, if it does so before `until` (of `time.monotonic`).

        `finish` is called when the work ends, whether anybody still waits for it or not.

        Raises:
            DeadlineError: it is still at work.
            EngineError: the engine failed.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="edgeml-deadline", daemon=True)
            self._thread.start()
        errand = _Errand(work, finish)
        self._errands.put(errand)
        if not errand.done.wait(max(0.0, until - time.monotonic())):
            raise DeadlineError("the engine did not answer in time")
        if errand.error is not None:
            raise errand.error
        assert errand.answer is not None
        return errand.answer

    def close(self) -> None:
        self._errands.put(_END)

    def _serve(self) -> None:
        while (errand := self._errands.get()) is not _END:
            try:
                errand.answer = errand.work()
            except BaseException as error:  # noqa: BLE001 - it is raised where the caller waits
                errand.error = error
            finally:
                errand.finish()
                errand.done.set()
