"""How a device talks to its fleet: over the broker while that works, over HTTPS otherwise; both say the same things.

Without a broker, or `poll_after_s` after it went away, the service is asked every `poll_s` (spread, so that a fleet does not
ask in step) and what the spool holds is posted. After every new connection to the broker the service is asked once: a broker
that restarted may have forgotten what it retained.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import urllib3

from edgeml.runtime.config import AgentConfig
from edgeml.runtime.link import Link
from edgeml.runtime.polling import Poller
from edgeml.runtime.spool import Spool
from edgeml.runtime.tls import broker_tls
from edgeml.wire.errors import EdgemlError
from edgeml.wire.messages import State

SPREAD: Final = 0.2  # of the period
POST_S: Final = 10.0  # without a broker, reports wait at most about this long
FIRST_RETRY_S: Final = 2.0


class Conversation:
    """Chooses and drives link and poller. Belongs to the device's thread.

    Attributes:
        link: `None` where the device has no broker.
        problem: why the service could not be asked the last time, or `None`.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        pool: urllib3.PoolManager,
        spool: Spool,
        describe: Callable[[int], State],
        on_desired: Callable[[bytes], None],
        ask: Callable[[Callable[[], None]], None],
        jitter: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = config.service
        self._spool = spool
        self._describe = describe
        self._submit = ask
        self._jitter, self._clock = jitter, clock
        self._own_session = spool.next_session(time.time())
        self.link = _link(config, spool, describe, on_desired, jitter)
        self.poller = _poller(config, pool, spool, on_desired)
        self.problem: str | None = None
        self._is_asking = False
        self._failures = 0
        self._ask_at = clock()
        self._post_at = clock()
        self._greeted = False  # the service has this process's birth message
        self._connects_seen = 0

    @property
    def session(self) -> int:
        """The number that messages written now carry."""
        return self.link.session if self.link is not None and self.link.session else self._own_session

    @property
    def is_polling(self) -> bool:
        """Whether HTTPS stands in for the broker at this moment."""
        if self._service is None:
            return False
        if self.link is None:
            return True
        return self.link.down_since is not None and self._clock() - self.link.down_since >= self._service.poll_after_s

    def tick(self) -> None:
        if self.link is not None:
            self.link.tick()
            if self.link.connects != self._connects_seen:
                self._connects_seen = self.link.connects
                self._ask_at = self._clock()
                self._start(post=False)
        if self.is_polling:
            at = self._clock()
            if at >= self._ask_at:
                self._start(post=True)
            elif at >= self._post_at and len(self._spool):
                self._start(post=True, ask=False)

    def close(self) -> None:
        if self.link is not None:
            self.link.close()

    def _start(self, *, post: bool, ask: bool = True) -> None:
        if self.poller is None or self._service is None or self._is_asking:
            return
        self._is_asking = True
        self._ask_at = self._clock() + self._service.poll_s * (1 + SPREAD * (2 * self._jitter() - 1)) if ask else self._ask_at
        self._post_at = self._clock() + min(self._service.poll_s, POST_S)
        self._submit(lambda: self._talk(post=post, ask=ask))

    def _talk(self, *, post: bool, ask: bool) -> None:
        """On a worker: one exchange."""
        assert self.poller is not None
        try:
            if ask:
                self.poller.ask()
            if post:
                self.poller.tell(None if self._greeted else self._describe(self.session))
                self._greeted = True
            self.problem, self._failures = None, 0
        except EdgemlError as error:
            self.problem = str(error)
            self._failures += 1
            retry_s = min(self._service.poll_s if self._service else 0.0, FIRST_RETRY_S * 2.0 ** min(self._failures, 16))
            self._ask_at = self._post_at = self._clock() + retry_s * (0.5 + 0.5 * self._jitter())
        finally:
            self._is_asking = False


def _link(
    config: AgentConfig,
    spool: Spool,
    describe: Callable[[int], State],
    on_desired: Callable[[bytes], None],
    jitter: Callable[[], float],
) -> Link | None:
    broker = config.broker
    if broker is None or config.service is None:
        return None
    return Link(
        broker,
        tenant=config.device.tenant,
        device=config.device.id,
        token=config.service.token,
        tls=broker_tls(config),
        spool=spool,
        describe=describe,
        on_desired=on_desired,
        jitter=jitter,
    )


def _poller(config: AgentConfig, pool: urllib3.PoolManager, spool: Spool, on_desired: Callable[[bytes], None]) -> Poller | None:
    if config.service is None:
        return None
    service = config.service
    return Poller(service.url, service.token, pool=pool, spool=spool, on_desired=on_desired, timeout_s=service.timeout_s)
