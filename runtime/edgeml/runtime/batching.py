"""Micro-batching: calls that come at the same time are run as one.

The first call of a batch leads it: it waits until the batch is full or its time is up, then for the engine, takes whoever has
joined by then, runs once and hands out the answers. There is no thread; with a wait of 0 a lone call loses nothing, and calls
that meet a busy engine share its next run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeml.runtime.backends import Array
from edgeml.runtime.session import Session
from edgeml.wire.errors import DeadlineError

_Key = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class _Batch:
    feeds: list[dict[str, Array]] = field(default_factory=list)
    count: int = 0
    until: float | None = 0.0  # the latest deadline of its calls; `None` if one of them has none
    full: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    outputs: dict[str, Array] = field(default_factory=dict)
    error: BaseException | None = None

    def join(self, feed: dict[str, Array], count: int, until: float | None) -> slice:
        """Where in the batch this call's samples are."""
        start = self.count
        self.feeds.append(feed)
        self.count += count
        self.until = None if until is None or self.until is None else max(self.until, until)
        return slice(start, self.count)


class Batcher:
    """Stands before a session whose model takes any number of samples (`Session.batches`). Thread-safe."""

    def __init__(self, session: Session, *, max_batch: int, max_wait_s: float) -> None:
        assert session.batches, "this model file has a fixed batch"
        self._session = session
        self._max_batch, self._max_wait_s = max_batch, max_wait_s
        self._open: dict[_Key, _Batch] = {}  # by the shapes beyond the batch axis: others cannot be stacked
        self._joining = threading.Lock()
        self._engine = threading.Lock()

    def run(self, inputs: Mapping[str, Array], *, deadline_s: float | None = None) -> dict[str, Array]:
        """`Session.run`, together with whoever calls now."""
        until = None if deadline_s is None else time.monotonic() + deadline_s
        self._session.check(inputs)
        feed, left_out = self._complete(inputs)
        key = tuple(array.shape[1:] for array in feed.values())
        count = next(iter(feed.values())).shape[0]
        with self._joining:
            batch = self._open.get(key)
            leads = batch is None or batch.count + count > self._max_batch
            if batch is None or leads:
                if batch is not None:
                    batch.full.set()
                batch = self._open[key] = _Batch()
            mine = batch.join(feed, count, until)
            if batch.count >= self._max_batch:
                del self._open[key]
                batch.full.set()
        if leads:
            self._lead(key, batch)
        elif not batch.done.wait(None if until is None else max(0.0, until - time.monotonic())):
            raise DeadlineError("the engine did not answer in time")
        if batch.error is not None:
            raise batch.error
        return {name: array[mine][0] if left_out else array[mine] for name, array in batch.outputs.items()}

    def _lead(self, key: _Key, batch: _Batch) -> None:
        try:
            batch.full.wait(self._max_wait_s)
            with self._engine:
                with self._joining:
                    if self._open.get(key) is batch:
                        del self._open[key]
                remaining = None if batch.until is None else max(0.0, batch.until - time.monotonic())
                batch.outputs = self._session.run(_stacked(batch.feeds), deadline_s=remaining)
        except BaseException as error:  # noqa: BLE001 - it is raised in every call of the batch
            batch.error = error
        finally:
            batch.done.set()

    def _complete(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], bool]:
        """The inputs in the signature's order with their batch axis, and whether it was left out."""
        specs = self._session.signature.inputs
        left_out = inputs[specs[0].name].ndim == len(specs[0].shape) - 1
        arrays: dict[str, Any] = {spec.name: inputs[spec.name] for spec in specs}
        return {name: array[None] if left_out else array for name, array in arrays.items()}, left_out


def _stacked(feeds: list[dict[str, Array]]) -> dict[str, Array]:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
