"""When an update may go on: maintenance windows, and an application that asks for a moment. Decisions only.

A held update is no failure: it is reported as `offered` or `verified`, with the code `window` or `postponed`. What is on the
device already, a way back above all, is never held.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, Literal

from edgeml.wire.errors import ConfigError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
_WINDOW: Final = re.compile(r"(?:([a-z]{3}(?:,[a-z]{3})*) )?([0-2]\d):([0-5]\d)-([0-2]\d):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class Window:
    """Minutes of the device's day; `days` (0: Monday) say when it begins. An end before the start is the next day's."""

    days: frozenset[int]
    start: int
    end: int

    @property
    def minutes(self) -> int:
        return (self.end - self.start) % DAY_MINUTES or DAY_MINUTES


@dataclass(frozen=True, slots=True)
class Hold:
    """Why nothing goes on now, and when to look again (Unix seconds)."""

    code: Literal["window", "postponed"]
    detail: str
    until: float
    blocks_download: bool = True


def parse_window(text: str) -> Window:
    """Read `"02:00-05:00"` or `"sat,sun 22:00-06:00"`.

    Raises:
        ConfigError: it is neither.
    """
    found = _WINDOW.fullmatch(text)
    days = found[1].split(",") if found and found[1] else DAYS
    if found is None or not set(days) <= set(DAYS):
        raise ConfigError("update window", expected='"02:00-05:00" or "sat,sun 22:00-06:00"', got=repr(text))
    start, end = int(found[2]) * 60 + int(found[3]), int(found[4]) * 60 + int(found[5])
    if start >= DAY_MINUTES or end > DAY_MINUTES:
        raise ConfigError("update window", expected="times of one day", got=repr(text))
    return Window(frozenset(DAYS.index(day) for day in days), start, end % DAY_MINUTES)


def opens_at(windows: Sequence[Window], now: float, zone: tzinfo | None = None) -> float:
    """When a window is open next: `now` if one is, or if there are none. `zone` `None` is the device's own."""
    if not windows:
        return now
    midnight = datetime.fromtimestamp(now, UTC).astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    starts = []
    for days in range(-1, 8):
        day = midnight + timedelta(days=days)
        for window in windows:
            start = (day + timedelta(minutes=window.start)).timestamp()
            if day.weekday() in window.days and now < start + window.minutes * 60:
                starts.append(start)
    return max(now, min(starts))


def hold(
    windows: Sequence[Window],
    now: float,
    *,
    is_postponed: bool,
    again_s: float,
    blocks_download: bool,
    zone: tzinfo | None = None,
) -> Hold | None:
    """What keeps an update from going on at this moment, if anything does."""
    at = opens_at(windows, now, zone)
    if at > now:
        return Hold("window", "waits for its maintenance window", at, blocks_download)
    if is_postponed:
        return Hold("postponed", "the application asked for a moment", now + again_s, blocks_download=False)
    return None


def parse_windows(texts: Iterable[str]) -> tuple[Window, ...]:
    return tuple(parse_window(text) for text in texts)
