"""What systemd is told: that the agent is up, what it does, and again and again that it is alive (sd_notify(3)).

The datagrams go to the socket that NOTIFY_SOCKET names; without it nothing is sent. WATCHDOG_USEC is the time after which
systemd kills a silent service; `ping` sends twice as many signs of life as that needs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

PINGS_PER_WATCHDOG: Final = 2  # as sd_watchdog_enabled(3) recommends
STATUS_CHARACTERS: Final = 200


class Supervisor:
    """The one that started this process, if it wants to hear of it."""

    def __init__(self, environment: Mapping[str, str] = os.environ, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # an abstract socket
            self._address = "\0" + self._address[1:]
        meant = environment.get("WATCHDOG_PID", "")
        timeout_us = environment.get("WATCHDOG_USEC", "") if meant in {"", str(os.getpid())} else ""
        self.timeout_s: float | None = int(timeout_us) / 1e6 if timeout_us.isdecimal() and int(timeout_us) else None
        self._clock = clock
        self._pinged_at = -float("inf")
        self._rounds = -1

    def ready(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, line: str) -> None:
        """What `systemctl status` shows."""
        self._send("STATUS=" + line.replace("\n", " ")[:STATUS_CHARACTERS])

    def ping(self, rounds: int) -> None:
        """Say that the service lives, if it is time to and it went round since the last time.

        Args:
            rounds: how often the thread that does the work went round; a number that stands still is a thread that hangs.
        """
        if self.timeout_s is None or rounds == self._rounds:
            return
        if self._clock() - self._pinged_at < self.timeout_s / PINGS_PER_WATCHDOG:
            return
        self._rounds, self._pinged_at = rounds, self._clock()
        self._send("WATCHDOG=1")

    def _send(self, line: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.settimeout(0.0)  # a supervisor that does not read must not stop the agent
            out.sendto(line.encode(), self._address)
