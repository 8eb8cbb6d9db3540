"""What becomes of an update when the device restarts, or a version in a slot turns out to be damaged. Decisions only."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from edgeml.runtime.endings import fail, penalise, roll_back, way_back
from edgeml.runtime.held import held
from edgeml.runtime.update import Action, Booted, Damaged, Failed, Fetch, Outcome, Policy, Prune, SelfTest, Switch, Tell, Update
from edgeml.runtime.window import Hold

TRIAL_BOOTS: Final = 3  # one more than the retry that a watchdog or a flaky supply explains


def booted(update: Update, event: Booted, now: float, hold: Hold | None) -> Outcome:
    installed = tuple(dict.fromkeys((*event.installed, *((event.factory,) if event.factory else ()))))
    update = replace(update, installed=installed, factory=event.factory, booted_at=now)
    if update.active is None and update.stage is None and event.factory is not None:
        update = replace(update, active=event.factory, confirmed=event.factory)
    if update.stage is None or update.target is None:
        return update, (Switch(update.active),)
    update, actions = _resumed(update, now, hold)
    return update, (Switch(update.active), *actions)


def _resumed(update: Update, now: float, hold: Hold | None) -> Outcome:
    """Take up what a restart interrupted."""
    assert update.target is not None
    match update.stage:
        case "downloading":
            return replace(update, wake_at=None), (Tell("downloading"), Fetch(update.target, update.attempt))
        case "verified" if hold is not None and update.wanted in update.installed:
            return held(update, "verified", now, hold)
        case "verified" | "self_test" | "shadow":
            return _tested_again(replace(update, boots=update.boots + 1))
        case "soaking":
            update = replace(update, boots=update.boots + 1, wake_at=now)
            if update.boots >= TRIAL_BOOTS:
                return roll_back(update, "boot_loop", f"{update.boots} restarts while soaking")
            return update, (Tell("soaking"),)
        case None:
            return update, ()
        case stage:
            return update, (Tell(stage),)


def _tested_again(update: Update) -> Outcome:
    digest, target = update.wanted, update.target
    assert digest is not None
    assert target is not None
    if update.boots >= TRIAL_BOOTS:
        update = penalise(replace(update, retryable=False, wake_at=None), digest, "crash")
        detail = f"{update.boots} restarts in the self-test" + (" or beside the old version" if update.shadow_until else "")
        return replace(update, stage="failed", code="crash", detail=detail, boots=0), (Tell("failed"),)
    if digest not in update.installed:
        return replace(update, stage="downloading"), (Tell("downloading"), Fetch(target, update.attempt))
    return replace(update, stage="self_test"), (Tell("self_test"), SelfTest(digest, update.attempt))


def damaged(update: Update, event: Damaged, now: float, policy: Policy, jitter: float) -> Outcome:
    """Go on with another installed version; the wanted one, if that is what broke, is downloaded again."""
    installed = tuple(d for d in update.installed if d != event.digest)
    was_active = event.digest == update.active
    update = replace(
        update, installed=installed, factory=None if event.digest == update.factory else update.factory,
        active=None if was_active else update.active,
        confirmed=None if event.digest == update.confirmed else update.confirmed,
    )  # fmt: skip
    if was_active:
        update = replace(update, active=way_back(update, event.digest))
    moves: tuple[Action, ...] = (Switch(update.active), Prune(installed)) if was_active else (Prune(installed),)
    if event.digest != update.wanted or update.stage not in {"soaking", "confirmed", "self_test", "shadow"}:
        return update, moves
    failure = Failed(event.digest, update.attempt, "damaged", event.detail, retryable=True)
    update, told = fail(replace(update, tries=0), failure, now, policy, jitter)
    return update, (*moves, *told)
