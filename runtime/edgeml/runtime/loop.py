"""Drives one device or many in one thread: waits for their sockets, lets each tick, sleeps in between."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final

from edgeml.runtime.device import Device
from edgeml.runtime.link import Link

TICK_S: Final = 0.2
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Loop:
    """The owner's thread of some devices.

    Args:
        after_tick: called after every round of ticks.

    Attributes:
        rounds: how often it went round; stands still when a tick hangs.
    """

    def __init__(
        self, devices: Sequence[Device], *, tick_s: float = TICK_S, after_tick: Callable[[], None] = lambda: None
    ) -> None:
        self._devices = list(devices)
        self._tick_s = tick_s
        self._after_tick = after_tick
        self._selector = selectors.DefaultSelector()
        self._registered: dict[Link, tuple[socket.socket, int]] = {}
        self._wake_reads, self._wake_writes = os.pipe()
        os.set_blocking(self._wake_reads, False)
        os.set_blocking(self._wake_writes, False)
        self._selector.register(self._wake_reads, _READ, None)
        self._stopping = threading.Event()
        self.rounds = 0

    def run(self) -> None:
        """Until `stop`."""
        try:
            while not self._stopping.is_set():
                self._wait()
                for device in self._devices:
                    device.tick()
                self._after_tick()
                self.rounds += 1
        finally:
            self._selector.close()
            os.close(self._wake_reads)
            os.close(self._wake_writes)

    def wake(self) -> None:
        """Tick soon; from any thread."""
        with contextlib.suppress(OSError):
            os.write(self._wake_writes, b"\0")

    def stop(self) -> None:
        self._stopping.set()
        self.wake()

    def _wait(self) -> None:
        links = [device.conversation.link for device in self._devices if device.conversation.link is not None]
        for link in links:
            self._forget_closed(link)  # all of them first: a new socket may have got the number of an old one
        for link in links:
            self._register(link)
        for key, ready in self._selector.select(self._tick_s):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_reads, 4096)
                continue
            if ready & _READ:
                key.data.on_readable()
            if ready & _WRITE:
                key.data.on_writable()

    def _forget_closed(self, link: Link) -> None:
        known = self._registered.get(link)
        if known is not None and known[0] is not link.socket:
            with contextlib.suppress(KeyError, ValueError, OSError):  # the socket is closed already
                self._selector.unregister(known[0])
            del self._registered[link]

    def _register(self, link: Link) -> None:
        found = link.socket
        if found is None:
            return
        wants = _READ | (_WRITE if link.wants_write else 0)
        known = self._registered.get(link)
        if known is None:
            self._selector.register(found, wants, link)
        elif known[1] != wants:
            self._selector.modify(found, wants, link)
        self._registered[link] = (found, wants)
