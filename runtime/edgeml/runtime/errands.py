"""What an agent has to bring to its service beside messages: samples, and the wish that the service forgets this device.

One request at a time, over HTTPS, on the worker that talks to the service; after a failure with growing pauses. Samples come
last: they go only when no message waits and nothing is to be forgotten, and never more bytes a day than was allowed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.atomic import write_file
from edgeml.runtime.forget import Wish
from edgeml.runtime.polling import Poller
from edgeml.runtime.samples import SampleFolder
from edgeml.runtime.spool import Spool
from edgeml.wire.errors import EdgemlError, EnvironmentProblem, ServiceError
from edgeml.wire.structs import learn

PAUSE_S: Final = 2.0  # between two samples: they are nobody's hurry
FIRST_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 3600.0
UNWANTED: Final = frozenset({400, 413, 422})  # of a sample that no service will ever take


class _Sent(msgspec.Struct, frozen=True):
    """Bytes of samples sent on a day (UTC)."""

    day: str = ""
    bytes: int = 0


class Budget:
    """Bytes a day, over restarts; written down before they are spent."""

    def __init__(self, path: Path, daily_bytes: int, now: Callable[[], float] = time.time) -> None:
        self._path, self._daily_bytes, self._now = path, daily_bytes, now
        try:
            self._sent = msgspec.json.decode(path.read_bytes(), type=_Sent)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            self._sent = _Sent()

    def spend(self, size: int) -> bool:
        """Whether today allows it; then it counts as sent.

        Raises:
            EnvironmentProblem: the disk does not take the count, and so nothing may be sent.
        """
        day = datetime.fromtimestamp(self._now(), UTC).date().isoformat()
        spent = size + (self._sent.bytes if day == self._sent.day else 0)
        if spent > self._daily_bytes:
            return False
        sent = _Sent(day, spent)
        try:
            write_file(self._path, msgspec.json.encode(sent))
        except OSError as error:
            raise EnvironmentProblem("samples wait: the disk does not take the count of their bytes", got=str(error)) from error
        self._sent = sent
        return True


class Errands:
    """Belongs to the agent's thread; `tick` returns at once.

    Attributes:
        sent, refused: samples that the service took, and would not.
        problem: why the last request failed, or `None`.
    """

    def __init__(
        self,
        poller: Poller,
        spool: Spool,
        wish: Wish,
        samples: SampleFolder | None,
        budget: Budget | None,
        *,
        ask: Callable[[Callable[[], None]], None],
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._poller, self._spool, self._wish = poller, spool, wish
        self._samples, self._budget = samples, budget
        self._ask = ask
        self._clock, self._jitter = clock, jitter
        self._is_out = False
        self._failures = 0
        self._next_at = clock()
        self.sent = self.refused = 0
        self.problem: str | None = None

    def tick(self) -> None:
        if self._is_out or self._clock() < self._next_at:
            return
        if self._wish.before_seq is not None:
            self._start(self._forget)
        elif self._samples is not None and len(self._samples) and not len(self._spool):
            self._start(self._bring)

    def _start(self, errand: Callable[[], None]) -> None:
        self._is_out = True
        self._ask(lambda: self._run(errand))

    def _run(self, errand: Callable[[], None]) -> None:
        """On the worker."""
        try:
            errand()
            self.problem, self._failures = None, 0
            self._next_at = self._clock() + PAUSE_S
        except EdgemlError as error:
            self.problem = str(error)
            retry_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures, 16))
            self._failures += 1
            self._next_at = self._clock() + retry_s * (0.5 + 0.5 * self._jitter())
        finally:
            self._is_out = False

    def _forget(self) -> None:
        if self._wish.before_seq is not None:
            self._poller.forget(self._wish.before_seq)
            self._wish.fulfil()

    def _bring(self) -> None:
        assert self._samples is not None
        assert self._budget is not None
        found = self._samples.oldest()
        if found is None:
            return
        sample_id, data = found
        if not self._budget.spend(len(data)):
            self._failures = 16  # look again in an hour at most
            raise ServiceError("the day's bytes for samples are used up", status=0)
        try:
            self._poller.bring(data)
            self.sent += 1
        except ServiceError as error:
            if error.status not in UNWANTED:
                raise
            self.refused += 1
        self._samples.remove(sample_id)


learn(__name__)
