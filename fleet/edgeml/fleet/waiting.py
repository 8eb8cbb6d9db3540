"""Devices that wait for news in a long poll, woken from whichever thread has it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Waiting:
    """Thread-safe: `register` in an event loop, `wake` from anywhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}

    @contextmanager
    def register(self, device: str) -> Iterator[asyncio.Event]:
        """An event that is set when there may be something new for `device`."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._waiting.setdefault(device, []).append(entry)
        try:
            yield entry[1]
        finally:
            with self._lock:
                entries = self._waiting[device]
                entries.remove(entry)
                if not entries:
                    del self._waiting[device]

    def wake(self, devices: Sequence[str]) -> None:
        with self._lock:
            entries = [entry for device in devices for entry in self._waiting.get(device, ())]
        for loop, news in entries:
            loop.call_soon_threadsafe(news.set)

    def wake_all(self) -> None:
        with self._lock:
            names = list(self._waiting)
        self.wake(names)
