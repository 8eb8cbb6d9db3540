"""Hot swap: load beside, self-test, warm, switch between two calls, drain, close.

    kws = HotModel(load("kws-1.2.0.edgeml"))
    kws.run({"audio": window})              # from any thread
    kws.swap("kws-1.3.0.edgeml")            # from another; calls go on meanwhile, none is dropped

A call leases the version that answers at its start and keeps it to its end; the version that was switched away is closed when
the last of its calls has left. The agent's host does the same with what the fleet sends.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.model import Model, Result, load_as
from edgeml.wire.errors import EngineError, ModelError


class Leased(ABC):
    """Something that calls use, closed when it is retired and the last call has left."""

    def __init__(self) -> None:
        self._leases = 0
        self._retired = False
        self._leasing = threading.Lock()

    @abstractmethod
    def _close(self) -> None: ...

    @property
    def is_drained(self) -> bool:
        return self._retired and self._leases == 0

    def enter(self) -> bool:
        """Take a lease; `False` if it is on its way out."""
        with self._leasing:
            if self._retired:
                return False
            self._leases += 1
            return True

    def leave(self) -> None:
        with self._leasing:
            self._leases -= 1
            is_last = self._retired and self._leases == 0
        if is_last:  # freeing an engine takes a while: not the caller's time
            threading.Thread(target=self._close, name="edgeml-close").start()

    def retire(self) -> None:
        """Close as soon as the last call has left."""
        with self._leasing:
            is_idle = self._leases == 0 and not self._retired
            self._retired = True
        if is_idle:
            self._close()


L = TypeVar("L", bound=Leased)


@contextmanager
def leased(current: Callable[[], L | None]) -> Iterator[L | None]:
    """What answers now, kept open to the end of the block; `None` if nothing does."""
    held = current()
    while held is not None and not held.enter():
        held = current()  # it was switched away between the two lines
    try:
        yield held
    finally:
        if held is not None:
            held.leave()


class HotModel:
    """A model whose version can be changed while it answers. Thread-safe; a context manager that closes the model."""

    def __init__(self, model: Model) -> None:
        self._serving: _Serving | None = _Serving(model)
        self._swapping = threading.Lock()

    @property
    def model(self) -> Model | None:
        """What answers calls that start now."""
        serving = self._serving
        return None if serving is None else serving.model

    def run(self, inputs: Mapping[str, Array], *, request_id: str | None = None, deadline_s: float | None = None) -> Result:
        """`Model.run` of the version that answers now."""
        with leased(lambda: self._serving) as serving:
            if serving is None:
                raise EngineError("the model is closed", hint="load it again")
            return serving.model.run(inputs, request_id=request_id, deadline_s=deadline_s)

    def swap(self, path: Path | str) -> None:
        """Answer with another version from the next call on; set up as the present one is.

        Raises:
            ModelError: it has other inputs or outputs than what the application feeds.
            EdgemlError: it cannot run here; the present one goes on.
        """
        with self._swapping:
            old = self._serving
            if old is None:
                raise EngineError("the model is closed", hint="load it again")
            with open_bundle(path) as bundle:
                now, new = old.model.manifest, bundle.manifest
                if now.signature.digest != new.signature.digest:
                    raise ModelError(f"{new.name} {new.version} has other inputs or outputs than {now.name} {now.version}")
                self._serving = _Serving(load_as(bundle, old.model.setup))
            old.retire()

    def close(self) -> None:
        """Close the model; calls in flight end first."""
        with self._swapping:
            serving, self._serving = self._serving, None
        if serving is not None:
            serving.retire()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Serving(Leased):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def _close(self) -> None:
        self.model.close()
