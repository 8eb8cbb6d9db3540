"""When an update may go on: windows, an application that postpones, and a line that is not to be filled."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import pytest

from edgeml.runtime.update import Booted, Fetch, Fetched, Policy, SelfTest, Switch, Tell, Tick, Update, Wanted
from edgeml.runtime.updater import step
from edgeml.runtime.window import Hold, hold, opens_at, parse_window, parse_windows
from edgeml.wire.errors import ConfigError
from edgeml.wire.messages import Target

A: Final = "a" * 64
B: Final = "b" * 64


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("windows", "now", "opens"),
    [
        ([], "2026-11-23 12:00", "2026-11-23 12:00"),
        (["02:00-05:00"], "2026-11-23 02:00", "2026-11-23 02:00"),
        (["02:00-05:00"], "2026-11-23 04:59", "2026-11-23 04:59"),
        (["02:00-05:00"], "2026-11-23 05:00", "2026-11-24 02:00"),
        (["22:00-06:00"], "2026-11-23 03:00", "2026-11-23 03:00"),
        (["22:00-06:00"], "2026-11-23 12:00", "2026-11-23 22:00"),
        (["sat,sun 00:00-24:00"], "2026-11-23 12:00", "2026-11-28 00:00"),
        (["mon 22:00-06:00"], "2026-11-24 05:00", "2026-11-24 05:00"),
        (["mon 22:00-06:00"], "2026-11-24 06:00", "2026-11-30 22:00"),
        (["sun 01:00-02:00", "12:30-13:00"], "2026-11-23 12:00", "2026-11-23 12:30"),
    ],
)
def test_a_window_opens_when_it_says(windows: list[str], now: str, opens: str) -> None:
    """2026-11-23 is a Monday."""
    assert opens_at(parse_windows(windows), at(now), UTC) == at(opens)


@pytest.mark.parametrize("text", ["2-5", "25:00-26:00", "02:00", "someday 02:00-05:00", "02:00-05:60", "24:00-01:00", ""])
def test_a_window_that_cannot_be_is_a_setting_to_mend(text: str) -> None:
    with pytest.raises(ConfigError, match="update window"):
        parse_window(text)


def test_a_window_comes_before_the_application() -> None:
    windows = parse_windows(["02:00-05:00"])
    held = hold(windows, at("2026-11-23 01:00"), is_postponed=True, again_s=60.0, blocks_download=True, zone=UTC)
    assert held is not None
    assert (held.code, held.until) == ("window", at("2026-11-23 02:00"))
    held = hold(windows, at("2026-11-23 03:00"), is_postponed=True, again_s=60.0, blocks_download=True, zone=UTC)
    assert held is not None
    assert (held.code, held.until, held.blocks_download) == ("postponed", at("2026-11-23 03:01"), False)
    assert hold(windows, at("2026-11-23 03:00"), is_postponed=False, again_s=60.0, blocks_download=True, zone=UTC) is None


SHUT: Final = Hold("window", "waits", 1000.0)
BUSY: Final = Hold("postponed", "a moment", 160.0, blocks_download=False)
WANTED: Final = Wanted(1, Target("kws", "1.1.0", B, "models/kws/1.1.0.edgeml"))
RUNNING: Final = Update("kws", active=A, confirmed=A, installed=(A,))


def play(update: Update, event: object, now: float, held: Hold | None) -> tuple[Update, list[object]]:
    update, actions = step(update, event, now, policy=Policy(), jitter=0.5, hold=held)  # type: ignore[arg-type]
    return update, list(actions)


def test_outside_its_window_nothing_is_downloaded() -> None:
    update, actions = play(RUNNING, WANTED, 100.0, SHUT)
    assert (update.stage, update.code, update.wake_at) == ("offered", "window", 1000.0)
    assert actions == [Tell("offered")]
    update, actions = play(update, Tick(), 1000.0, None)
    assert any(isinstance(action, Fetch) for action in actions)
    assert update.code is None


def test_a_postponed_version_is_downloaded_waits_verified_and_is_no_failure() -> None:
    update, actions = play(RUNNING, WANTED, 100.0, BUSY)
    assert any(isinstance(action, Fetch) for action in actions)
    update, actions = play(update, Fetched(B, update.attempt, 10, 10), 110.0, BUSY)
    assert (update.stage, update.code, update.tries, update.held_since) == ("verified", "postponed", 0, 110.0)
    assert actions == [Tell("verified")]
    update, actions = play(update, Tick(), 160.0, Hold("postponed", "a moment", 220.0, blocks_download=False))
    assert (actions, update.wake_at, update.held_since) == ([], 220.0, 110.0)
    update, actions = play(update, Tick(), 220.0, None)
    assert actions == [Tell("self_test"), SelfTest(B, update.attempt)]
    assert update.penalties == {}


def test_a_restart_while_it_waits_does_not_end_the_wait() -> None:
    update, _ = play(RUNNING, WANTED, 100.0, BUSY)
    update, _ = play(update, Fetched(B, update.attempt, 10, 10), 110.0, BUSY)
    update, actions = play(update, Booted((A, B)), 120.0, BUSY)
    assert (update.stage, update.boots) == ("verified", 0)
    assert actions == [Switch(A)]


def test_a_way_back_waits_for_nothing() -> None:
    """The fleet takes 1.1.0 back at noon; windows are at night."""
    running = Update("kws", rev=1, target=WANTED.target, stage="confirmed", active=B, confirmed=B, installed=(A, B))
    update, actions = play(running, Wanted(2, Target("kws", "1.0.0", A, "models/kws/1.0.0.edgeml")), 100.0, SHUT)
    assert SelfTest(A, update.attempt) in actions
