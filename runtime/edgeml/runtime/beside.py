"""The shadow stage of an update: when a new version runs beside the old one first, and what is made of it. Decisions only."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from edgeml.runtime.update import Compared, Outcome, Policy, RunBeside, Tally, Tell, Update

LEAST_COMPARED: Final = 20  # calls; fewer say nothing about agreement or time


def is_needed(update: Update, digest: str, policy: Policy) -> bool:
    """Whether a version that passed its self-test has something to prove first: not one that stood a soak here before."""
    is_proven = digest in {*update.proven, update.active, update.confirmed, update.factory}
    return policy.shadow_s > 0 and update.active is not None and not is_proven


def begin(update: Update, digest: str, now: float, policy: Policy) -> Outcome:
    """Run beside; a restart goes on with the time and the calls that were there before."""
    until = now + policy.shadow_s if update.shadow_until is None else update.shadow_until
    update = replace(update, stage="shadow", shadow_until=until, wake_at=now + policy.health_s, code=None, detail=None)
    return update, (RunBeside(digest, update.attempt), Tell("shadow"))


def counted(update: Update, event: Compared, now: float, policy: Policy) -> Update:
    return replace(update, shadow=_tally(update).plus(event.tally or Tally()), wake_at=now + policy.health_s)


def is_decided(update: Update, now: float, policy: Policy) -> bool:
    """Enough calls, or no more time: a device with few calls must not wait for ever."""
    tally = _tally(update)
    return tally.runs + tally.errors >= policy.shadow_calls or update.shadow_until is None or now >= update.shadow_until


def objection(update: Update, policy: Policy) -> str | None:
    """Why the version must not take the place of the one it ran beside, if it must not."""
    tally = _tally(update)
    calls = tally.runs + tally.errors
    if calls < min(LEAST_COMPARED, policy.shadow_calls):
        return None
    if tally.errors > policy.most_error_share * calls:
        return "too many calls failed"
    if tally.agreed < policy.least_agreement * tally.runs:
        return f"fewer than {policy.least_agreement:.1%} of the answers agree"
    if tally.latency_ratio is not None and tally.latency_ratio > policy.most_latency_ratio:
        return f"a call takes more than {policy.most_latency_ratio:g} times as long"
    return None


def words(update: Update) -> str:
    tally = _tally(update)
    ratio = "" if tally.latency_ratio is None else f", {tally.latency_ratio:.2f} times its time"
    return f"{tally.agreed} of {tally.runs} answers as the old version's{ratio}, {tally.errors} errors"


def _tally(update: Update) -> Tally:
    return update.shadow or Tally()
