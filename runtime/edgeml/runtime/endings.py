"""How an attempt at a version ends: failed, rejected or rolled back, and which versions are not tried again."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from edgeml.runtime.update import Failed, Outcome, Policy, Stage, Switch, Tell, Update

MOST_TRIES: Final = 3  # per revision
MOST_PENALTIES: Final = 16  # digests remembered as bad; older ones the fleet has long forgotten

REJECTIONS: Final = frozenset({"signature", "no_variant", "untrusted", "unlisted", "deadline", "penalty_box", "bad_target"})
"""Codes of an offer that was refused before it could do anything."""


def fail(update: Update, event: Failed, now: float, policy: Policy, jitter: float) -> Outcome:
    tries = update.tries + 1
    again = event.retryable and tries < MOST_TRIES
    update = replace(
        update, stage="failed", tries=tries, code=event.code, detail=event.detail, retryable=again, boots=0,
        wake_at=now + backoff_s(tries, policy, jitter) if again else None,
    )  # fmt: skip
    if not event.retryable:
        update = penalise(update, event.digest, event.code)
    return update, (Tell("failed"),)


def roll_back(update: Update, code: str, detail: str) -> Outcome:
    bad = update.active
    assert bad is not None
    back = way_back(update, bad)
    update = penalise(replace(update, active=back, confirmed=back, code=code, detail=detail, retryable=False), bad, code)
    return end(update, "rolled_back"), (Switch(back), Tell("rolled_back"))


def way_back(update: Update, bad: str) -> str | None:
    if update.confirmed != bad and update.confirmed in update.installed:
        return update.confirmed
    return next((d for d in reversed(update.installed) if d != bad and d not in update.penalties), None)


def reject(update: Update, code: str, detail: str) -> Outcome:
    return end(replace(update, code=code, detail=detail, retryable=False), "rejected"), (Tell("rejected"),)


def end(update: Update, stage: Stage) -> Update:
    return replace(update, stage=stage, wake_at=None, boots=0, waits=0)


def penalise(update: Update, digest: str, code: str) -> Update:
    kept = {d: c for d, c in update.penalties.items() if d != digest}
    while len(kept) >= MOST_PENALTIES:
        del kept[next(iter(kept))]
    return replace(update, penalties={**kept, digest: code})


def backoff_s(tries: int, policy: Policy, jitter: float) -> float:
    """Full jitter: uniform between 0 and base * 2^(tries - 1), capped."""
    return jitter * min(policy.backoff_cap_s, policy.backoff_s * 2.0 ** min(tries - 1, 32))
