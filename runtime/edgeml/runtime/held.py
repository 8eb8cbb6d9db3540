"""An update that waits for its maintenance window, or for an application that asked for a moment. Decisions only."""

from __future__ import annotations

from msgspec.structs import replace

from edgeml.runtime.update import Outcome, Stage, Tell, Update
from edgeml.runtime.window import Hold


def held(update: Update, stage: Stage, now: float, hold: Hold) -> Outcome:
    """Wait in `stage`; said once, since waiting is no news."""
    is_news = (stage, hold.code) != (update.stage, update.code)
    update = replace(
        update, stage=stage, wake_at=hold.until, code=hold.code, detail=hold.detail, retryable=False,
        held_since=held_since(update, now, hold),
    )  # fmt: skip
    return update, (Tell(stage),) if is_news else ()


def held_since(update: Update, now: float, hold: Hold) -> float | None:
    return (update.held_since or now) if hold.code == "postponed" else update.held_since
