"""Delete my data: what a device holds of what it saw and said goes at once, what the service holds once it can be reached.

`edgeml agent forget` leaves a wish in the data folder, and whoever holds that folder fulfils it: the agent that runs, or else
the command itself. Each step can be done again after a power cut:

    forget.json {"id"}                    asked
    spool, samples, log erased here
    forget.json {"id", "before_seq"}      the service is asked to forget everything up to that number, until it says it has
    no forget.json                        done

Versions, their state, the trust and the settings stay: they say nothing of what the device saw.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.atomic import discard, write_file
from edgeml.runtime.config import AgentConfig
from edgeml.runtime.http import make_pool
from edgeml.runtime.journal import OLD_SUFFIX, STDERR
from edgeml.runtime.polling import Poller
from edgeml.runtime.samples import SampleFolder
from edgeml.runtime.spool import Spool
from edgeml.runtime.tls import service_tls
from edgeml.wire.structs import learn

FILE: Final = "forget.json"
SAMPLES: Final = "samples"
LOOK_S: Final = 1.0  # how often a running agent looks for a wish


class _Asked(msgspec.Struct, frozen=True):
    at: float
    before_seq: int | None = None


class Wish:
    """The wish of a data folder, if there is one.

    Attributes:
        before_seq: erased here; the service is still to be asked for everything up to this number.
    """

    def __init__(self, data: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = data / FILE
        self._clock = clock
        self._look_at = clock()
        self.before_seq: int | None = None

    @property
    def is_there(self) -> bool:
        return self._path.exists()

    def ask(self) -> None:
        """Leave the wish; one that is there already starts anew.

        Raises:
            OSError: the disk does not take it.
        """
        write_file(self._path, msgspec.json.encode(_Asked(time.time())))

    def is_new(self) -> bool:
        """Whether something is to be erased here now; looks at the disk once a second at most."""
        if not 0 < self._look_at - self._clock() <= LOOK_S:
            self._look_at = self._clock() + LOOK_S
            asked = self._read()
            self.before_seq = None if asked is None else asked.before_seq
            return asked is not None and asked.before_seq is None
        return False

    def erased(self, before_seq: int) -> None:
        """Nothing is here any more; what remains is the service.

        Raises:
            OSError: the disk does not take it.
        """
        asked = self._read() or _Asked(time.time())
        write_file(self._path, msgspec.json.encode(msgspec.structs.replace(asked, before_seq=before_seq)))
        self.before_seq = before_seq

    def fulfil(self) -> None:
        """The service has forgotten too."""
        asked = self._read()
        if asked is None or asked.before_seq == self.before_seq:  # else it was asked again meanwhile
            discard(self._path)
        self.before_seq = None

    def _read(self) -> _Asked | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Asked)
        except OSError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return _Asked(0.0)  # a torn file is a wish all the same


def erase_alone(config: AgentConfig, wish: Wish) -> None:
    """Fulfil a wish where no agent runs, whose folder the caller holds.

    Raises:
        EdgemlError: erased here, but the service could not be asked; the wish stays, and the next agent goes on asking.
        OSError: the disk does not take it.
    """
    spool = Spool(config.data / "spool.sqlite", cap_bytes=config.telemetry.spool_bytes)
    try:
        wish.erased(erase(config, spool, None))
        if config.service is not None and wish.before_seq is not None:
            with make_pool(maxsize=1, tls=service_tls(config)) as pool:
                service = config.service
                poller = Poller(
                    service.url, service.token, pool=pool, spool=spool, on_desired=lambda _: None, timeout_s=service.timeout_s
                )
                poller.forget(wish.before_seq)
        wish.fulfil()
    finally:
        spool.close()


def erase_beside(config: AgentConfig, wish: Wish, spool: Spool, samples: SampleFolder | None, *, has_service: bool) -> None:
    """Erase in a running agent; a full disk leaves the wish as it was, and the next look does it again."""
    before_seq = erase(config, spool, samples)
    with contextlib.suppress(OSError):
        wish.erased(before_seq)
        if not has_service:
            wish.fulfil()


def erase(config: AgentConfig, spool: Spool, samples: SampleFolder | None) -> int:
    """Erase what this device holds of what it saw and said; gives the number of the last message it may have sent."""
    before_seq = spool.next_seq()
    spool.erase()
    discard(config.data / "spool.sqlite.damaged")
    folder = samples or SampleFolder(config.data / SAMPLES, cap_bytes=0)
    folder.clear()
    discard(config.data / "status.json")
    if config.log is not None and config.log.to != STDERR:
        path = config.path(config.log.to)
        discard(path)
        discard(path.with_name(path.name + OLD_SUFFIX))
    return before_seq


learn(__name__)
