"""One loaded version that answers calls, and what it did: its telemetry, its log, its samples and its fall-back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from edgeml.runtime.backends import Array
from edgeml.runtime.hybrid import Hybrid
from edgeml.runtime.install import code_of
from edgeml.runtime.journal import Journal
from edgeml.runtime.model import Model, Result, new_request_id
from edgeml.runtime.samples import Sampler
from edgeml.runtime.swap import Leased
from edgeml.runtime.telemetry import Window
from edgeml.wire.errors import EdgemlError, InputError

BackedUp = Callable[[Model, Window], Hybrid]  # puts the cloud behind a version


class Serving(Leased):
    """One loaded version and what it did: `last` is its newest answer. `path` is the bundle it was loaded from."""

    def __init__(
        self,
        model: Model,
        path: Path,
        backed_up: BackedUp | None,
        now: float,
        *,
        watched: bool = True,
        journal: Journal | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.path = path
        self.window = Window(model.manifest, now, artifact=model.artifact, watched=watched)
        self.runs = 0
        self.errors = 0
        self.last: Result | None = None
        self._hybrid = None if backed_up is None else backed_up(model, self.window)
        self._journal, self._sampler = journal, sampler
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array], request_id: str | None) -> Result:
        if self._journal is None:
            return self._answer(inputs, request_id)
        identifier, started = request_id or new_request_id(), time.perf_counter()
        try:
            result = self._answer(inputs, identifier)
        except EdgemlError as error:
            code = "input" if isinstance(error, InputError) else code_of(error)
            self._journal.failed(
                self.model.name, self.model.version, request_id=identifier, latency_s=time.perf_counter() - started, code=code,
                detail=str(error),
            )  # fmt: skip
            raise
        self._journal.answered(result)
        return result

    def _answer(self, inputs: Mapping[str, Array], request_id: str | None) -> Result:
        answer = self.model.run if self._hybrid is None else self._hybrid.run
        self.window.observe(inputs)
        try:
            result = answer(inputs, request_id=request_id)
        except InputError:
            self.window.record_error("input")  # the caller's mistake says nothing about the version's health
            raise
        except EdgemlError as error:
            self._count(failed=True)
            self.window.record_error(code_of(error))
            raise
        self._count(failed=result.fallback == "error")  # the device failed, though the cloud answered
        self.window.record(result)
        self.last = result
        if self._sampler is not None:
            self._sampler.offer(self.model, inputs, result)
        return result

    def _count(self, *, failed: bool) -> None:
        with self._lock:
            self.runs += 1
            self.errors += failed

    def _close(self) -> None:
        if self._hybrid is not None:
            self._hybrid.close()
        self.model.close()
