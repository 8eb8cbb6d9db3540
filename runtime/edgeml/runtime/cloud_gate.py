"""The memory of the fall-back's policy: one for all models and versions of a device, since they share endpoint and budget.

Thread-safe. What was spent today outlives the process: `save` is called now and then, and a kill loses what came since.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeml.runtime import fallback
from edgeml.runtime.atomic import write_file
from edgeml.runtime.fallback import Policy, Refusal, State
from edgeml.wire.structs import learn


class Spent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds; `day` counts from 1970."""

    day: int
    bytes: int
    cost: float


class CloudGate:
    """Grants calls to the cloud, by a policy.

    Args:
        clock: Unix seconds, for the breaker and the daily budgets.
        file: where spending is kept; `None` keeps it in memory. One that cannot be read counts as nothing spent.
    """

    def __init__(self, policy: Policy, *, clock: Callable[[], float] = time.time, file: Path | None = None) -> None:
        self.policy = policy
        self._clock = clock
        self._file = file
        self._lock = threading.Lock()
        self._state = _read(file)
        self._saved = self._spent()

    @property
    def state(self) -> State:
        return self._state

    def may_ask(self, size_bytes: int) -> Refusal | None:
        with self._lock:
            self._state, refusal = fallback.may_ask(self._state, self.policy, self._clock(), size_bytes)
        return refusal

    def hedge_after_s(self) -> float | None:
        return fallback.hedge_after_s(self._state)

    def may_hedge(self, size_bytes: int) -> bool:
        with self._lock:
            self._state, granted = fallback.may_hedge(self._state, self.policy, self._clock(), size_bytes)
        return granted

    def wake_reserve_s(self) -> float:
        return fallback.wake_reserve_s(self._state, self.policy)

    def woke(self, late_s: float) -> None:
        with self._lock:
            self._state = fallback.woke(self._state, late_s)

    def succeeded(self, received_bytes: int, latency_s: float) -> None:
        with self._lock:
            self._state = fallback.succeeded(self._state, self.policy, received_bytes, latency_s)

    def failed(self) -> None:
        with self._lock:
            self._state = fallback.failed(self._state, self.policy, self._clock())

    def save(self) -> None:
        """Keep what was spent; a disk that refuses is tried again next time."""
        spent = self._spent()
        if self._file is None or spent == self._saved:
            return
        with contextlib.suppress(OSError):
            write_file(self._file, msgspec.json.encode(spent))
            self._saved = spent

    def _spent(self) -> Spent:
        state = self._state
        return Spent(state.day, state.spent_bytes, state.spent_cost)


def _read(file: Path | None) -> State:
    if file is None:
        return State()
    try:
        spent = msgspec.json.decode(file.read_bytes(), type=Spent)
    except (OSError, msgspec.MsgspecError):
        return State()
    return State(day=spent.day, spent_bytes=spent.bytes, spent_cost=spent.cost)


learn(__name__)
