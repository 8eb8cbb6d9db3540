"""The update of one model on one device, as a machine without IO: `step(update, event, now)` gives a state and actions.

    offered → downloading → verified → self_test → [shadow →] soaking → confirmed
                 failed (retried while that can help) · rejected (not even tried) · rolled_back (tried, and taken back)

Rules it keeps, whatever arrives in whatever order:
- the highest revision wins; a lower or equal one changes nothing, so re-delivery is harmless; a higher one supersedes mid-way
- the caller stores the new state before it does the first action; every action can be done again after a crash
- what is in a slot is not downloaded: going back needs no network
- `active` only ever names a version that passed its self-test here; `confirmed` the last one that stood its soak
- with `shadow_s`, a new version first runs beside the active one, whose answers are given; a proven one need not
- an unhealthy version, or one that restarts the device TRIAL_BOOTS times while it soaks, is taken back and not tried again
- a clock that falls back, or that was far ahead and is put right, delays nothing by more than one period
- a failure that trying again can mend is tried MOST_TRIES times; a service out of reach is no failure, only a wait
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from edgeml.runtime import beside
from edgeml.runtime.endings import REJECTIONS, backoff_s, end, fail, penalise, reject, roll_back
from edgeml.runtime.held import held, held_since
from edgeml.runtime.resume import TRIAL_BOOTS, booted, damaged
from edgeml.runtime.update import (
    Action,
    Booted,
    CheckHealth,
    Compare,
    Compared,
    Damaged,
    Event,
    Failed,
    Fetch,
    Fetched,
    Health,
    Outcome,
    Policy,
    Prune,
    RunBeside,
    SelfTest,
    Stage,
    StopBeside,
    Switch,
    Tally,
    Tell,
    Tested,
    Tick,
    Update,
    Waiting,
    Wanted,
    Work,
)
from edgeml.runtime.window import Hold

__all__ = [
    "TRIAL_BOOTS",
    "Action",
    "Booted",
    "CheckHealth",
    "Compare",
    "Compared",
    "Damaged",
    "Event",
    "Failed",
    "Fetch",
    "Fetched",
    "Health",
    "Outcome",
    "Policy",
    "Prune",
    "RunBeside",
    "SelfTest",
    "Stage",
    "StopBeside",
    "Switch",
    "Tally",
    "Tell",
    "Tested",
    "Tick",
    "Update",
    "Waiting",
    "Wanted",
    "Work",
    "backoff_s",
    "is_due",
    "step",
]

STEADY_S: Final = 600.0  # up for so long, a restart is no longer this version's doing


def step(update: Update, event: Event, now: float, *, policy: Policy, jitter: float, hold: Hold | None = None) -> Outcome:
    """The next state, and what to do once it is stored.

    `now` is in Unix seconds; `jitter` is uniform in [0, 1), drawn by the caller; `hold` says what keeps a new version waiting.
    """
    update = _in_time(update, now, policy)
    match event:
        case Wanted():
            return _wanted(update, event, now, policy, hold)
        case Booted():
            return booted(update, event, now, hold)
        case Tick():
            return _tick(update, now, policy, hold)
        case Fetched():
            return _fetched(update, event, now, hold)
        case Waiting():
            return _waiting(update, event, now, policy, jitter)
        case Failed():
            return _failed(update, event, now, policy, jitter)
        case Tested():
            return _tested(update, event, now, policy)
        case Compared() | Health():
            return _looked_at(update, event, now, policy, hold)
        case Damaged():
            return damaged(update, event, now, policy, jitter)


def is_due(update: Update, now: float, policy: Policy) -> bool:
    """Whether a `Tick` would do something."""
    wake_at = _in_time(update, now, policy).wake_at
    return wake_at is not None and now >= wake_at


def _in_time(update: Update, now: float, policy: Policy) -> Update:
    """No timer lies further ahead than it was ever set: one that does was set by a clock that has been put back since."""
    soak_until, booted_at = min(update.soak_until, now + policy.soak_s), min(update.booted_at, now)
    wake_at = update.wake_at
    if wake_at is not None and update.stage not in {"offered", "verified"}:  # these may well wait for their hour
        longest_s = max(policy.soak_s, policy.health_s, policy.backoff_cap_s)
        wake_at = now if wake_at > now + longest_s else wake_at
    shadow_until = None if update.shadow_until is None else min(update.shadow_until, now + policy.shadow_s)
    now_set = (update.soak_until, update.booted_at, update.wake_at, update.shadow_until)
    if (soak_until, booted_at, wake_at, shadow_until) == now_set:
        return update
    return replace(update, soak_until=soak_until, booted_at=booted_at, wake_at=wake_at, shadow_until=shadow_until)


def _wanted(update: Update, event: Wanted, now: float, policy: Policy, hold: Hold | None) -> Outcome:
    if event.rev <= update.rev:
        return update, ()
    same = update.target is not None and event.target.version == update.target.version
    same = same and event.target.manifest_sha256 == update.wanted
    under_way = update.stage in {"downloading", "verified", "self_test", "shadow", "soaking", "rolled_back"}
    update = replace(update, rev=event.rev, target=event.target)
    if same and under_way and update.stage is not None:
        return update, (Tell(update.stage),)
    alone: tuple[Action, ...] = (StopBeside(),) if update.stage == "shadow" else ()
    update, actions = _taken_back(update)
    update, more = _offer(_fresh(update), now, policy, hold)
    return update, (*alone, *actions, *more)


def _taken_back(update: Update) -> Outcome:
    """A version that is superseded before it stood its soak does not go on unwatched, unless it is all there is."""
    back = update.confirmed
    if update.active in {back, update.wanted} or back not in update.installed:
        return update, ()
    return replace(update, active=back), (Switch(back),)


def _fresh(update: Update) -> Update:
    return replace(
        update, stage="offered", tries=0, waits=0, boots=0, wake_at=None, downloaded_bytes=0,
        code=None, detail=None, retryable=False, held_since=None, shadow_until=None, shadow=None,
    )  # fmt: skip


def _offer(update: Update, now: float, policy: Policy, hold: Hold | None) -> Outcome:
    target, digest = update.target, update.wanted
    assert target is not None
    if target.version is None:
        left = () if update.factory is None else (update.factory,)
        gone = end(replace(update, active=None, confirmed=None, installed=left), "confirmed")
        return gone, (Switch(None), Prune(()), Tell("confirmed"))
    if digest is None:
        return reject(update, "bad_target", f"version {target.version!r} without a manifest digest")
    if digest == update.active == update.confirmed:
        return end(update, "confirmed"), (Tell("confirmed"),)
    if digest == update.active:
        return _soak(update, digest, now, policy), (Tell("soaking"),)
    if digest in update.penalties:
        return reject(update, "penalty_box", f"{digest[:12]} failed here before: {update.penalties[digest]}")
    if target.deadline is not None and now > target.deadline:
        return reject(update, "deadline", "offered too late to start")
    if now < target.not_before:
        return replace(update, stage="offered", wake_at=target.not_before), (Tell("offered"),)
    if hold is not None and hold.blocks_download and digest not in update.installed:
        return held(update, "offered", now, hold)
    return _begin(update)


def _test(update: Update, digest: str) -> Outcome:
    update = replace(update, stage="self_test", wake_at=None, code=None, detail=None)
    return update, (Tell("self_test"), SelfTest(digest, update.attempt))


def _begin(update: Update) -> Outcome:
    target, digest = update.target, update.wanted
    assert target is not None
    assert digest is not None
    update = replace(
        update, attempt=update.attempt + 1, code=None, detail=None, retryable=False, wake_at=None, boots=0,
        shadow_until=None, shadow=None,
    )  # fmt: skip
    if digest in update.installed:
        return replace(update, stage="self_test"), (Tell("verified"), Tell("self_test"), SelfTest(digest, update.attempt))
    keep = tuple(d for d in dict.fromkeys((update.active, update.confirmed, update.factory)) if d is not None)
    proven = tuple(d for d in update.proven if d in keep)
    update = replace(update, stage="downloading", installed=tuple(d for d in update.installed if d in keep), proven=proven)
    return update, (Tell("downloading"), Prune(keep), Fetch(target, update.attempt))


def _fetched(update: Update, event: Fetched, now: float, hold: Hold | None) -> Outcome:
    if update.stage != "downloading" or event.attempt != update.attempt:
        return update, ()
    installed = (*(d for d in update.installed if d != event.digest), event.digest)
    moved = max(update.downloaded_bytes + event.moved_bytes, event.bytes if event.moved_bytes else 0)
    update = replace(
        update, stage="self_test", installed=installed, downloaded_bytes=moved, boots=0, waits=0, wake_at=None,
        code=None, detail=None,
    )  # fmt: skip
    if hold is not None:
        return held(update, "verified", now, hold)
    return update, (Tell("verified"), Tell("self_test"), SelfTest(event.digest, update.attempt))


def _waiting(update: Update, event: Waiting, now: float, policy: Policy, jitter: float) -> Outcome:
    if update.stage != "downloading" or event.attempt != update.attempt:
        return update, ()
    waits = update.waits + 1
    is_news = event.code != update.code
    update = replace(
        update, waits=waits, wake_at=now + backoff_s(waits, policy, jitter), code=event.code, detail=event.detail,
        downloaded_bytes=update.downloaded_bytes + event.moved_bytes,
    )  # fmt: skip
    return update, (Tell("downloading"),) if is_news else ()


def _failed(update: Update, event: Failed, now: float, policy: Policy, jitter: float) -> Outcome:
    if update.stage not in {"downloading", "self_test", "shadow"} or event.attempt != update.attempt:
        return update, ()
    update = replace(update, downloaded_bytes=update.downloaded_bytes + event.moved_bytes)
    if event.code in REJECTIONS:
        return reject(update, event.code, event.detail)
    return fail(update, event, now, policy, jitter)


def _tested(update: Update, event: Tested, now: float, policy: Policy) -> Outcome:
    if update.stage != "self_test" or event.attempt != update.attempt:
        return update, ()
    if beside.is_needed(update, event.digest, policy):
        return beside.begin(update, event.digest, now, policy)
    return _soak(update, event.digest, now, policy), (Switch(event.digest), Tell("soaking"))


def _compared(update: Update, event: Compared, now: float, policy: Policy, hold: Hold | None) -> Outcome:
    """Go on, wait for more calls, or refuse; a version that waits only for its window goes on being compared."""
    if update.stage != "shadow" or event.digest != update.wanted:
        return update, ()
    update = beside.counted(update, event, now, policy)
    if now - update.booted_at >= min(STEADY_S, policy.shadow_s / 2):
        update = replace(update, boots=0)
    if not beside.is_decided(update, now, policy):
        return (update, ()) if event.tally is not None else _test(update, event.digest)
    objection = beside.objection(update, policy)
    if objection is not None:
        update = penalise(update, event.digest, "shadow")
        update, told = reject(update, "shadow", f"{objection}; {beside.words(update)}")
        return update, (StopBeside(), *told)
    if hold is not None:
        is_news = hold.code != update.code
        update = replace(update, code=hold.code, detail=hold.detail, held_since=held_since(update, now, hold))
        return update, (Tell("shadow"),) if is_news else ()
    update = replace(_soak(update, event.digest, now, policy), detail=beside.words(update))
    return update, (Switch(event.digest), Tell("soaking"))


def _soak(update: Update, digest: str, now: float, policy: Policy) -> Update:
    return replace(
        update, stage="soaking", active=digest, boots=0, booted_at=now, soak_until=now + policy.soak_s,
        wake_at=now + min(policy.health_s, policy.soak_s), code=None, detail=None, retryable=False,
    )  # fmt: skip


def _tick(update: Update, now: float, policy: Policy, hold: Hold | None) -> Outcome:
    if update.wake_at is None or now < update.wake_at:
        return update, ()
    assert update.target is not None
    match update.stage:
        case "offered" | "failed":
            return _offer(replace(update, wake_at=None), now, policy, hold)
        case "verified" if update.wanted is not None:
            return _test(update, update.wanted) if hold is None else held(update, "verified", now, hold)
        case "downloading":
            return replace(update, wake_at=None), (Fetch(update.target, update.attempt),)
        case "shadow" if update.wanted is not None:
            return replace(update, wake_at=now + policy.health_s), (Compare(update.wanted),)
        case "soaking" if update.active is not None:
            return replace(update, wake_at=now + policy.health_s), (CheckHealth(update.active),)
        case _:
            return replace(update, wake_at=None), ()


def _looked_at(update: Update, event: Compared | Health, now: float, policy: Policy, hold: Hold | None) -> Outcome:
    if isinstance(event, Compared):
        return _compared(update, event, now, policy, hold)
    return _health(update, event, now, policy)


def _health(update: Update, event: Health, now: float, policy: Policy) -> Outcome:
    if update.stage != "soaking" or event.digest != update.active:
        return update, ()
    if event.problem is not None:
        return roll_back(update, "health", event.problem)
    if event.runs >= max(policy.least_runs, 1) and event.errors > policy.most_error_share * event.runs:
        return roll_back(update, "health", f"{event.errors} of {event.runs} runs failed since the switch")
    if now >= update.soak_until:
        stood = (*(d for d in update.proven if d != event.digest), event.digest)
        return end(replace(update, confirmed=update.active, proven=stood), "confirmed"), (Tell("confirmed"),)
    steady = now - update.booted_at >= min(STEADY_S, policy.soak_s / 2)
    wake_at = min(now + policy.health_s, update.soak_until)
    return replace(update, boots=0 if steady else update.boots, wake_at=wake_at), ()
