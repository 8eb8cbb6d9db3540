"""When to ask the cloud instead of the device, and when not: a policy without IO; time comes in as `now`.

    state -> may_ask(state, policy, now, size) -> (state, None | why not)
    the call is made; then succeeded(state) or failed(state, policy, now)

The circuit breaker opens after three failures in a row and lets one probe through after a delay that doubles with every failed
probe. The byte budget is per day of the clock that `now` comes from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

Mode = Literal["prefer-device", "prefer-cloud", "device-only", "cloud-only"]
Reason = Literal["error", "deadline", "low_confidence", "drift"]
Refusal = Literal["breaker_open", "probing", "budget"]

MODES: Final[tuple[Mode, ...]] = ("prefer-device", "prefer-cloud", "device-only", "cloud-only")
DAY_S: Final = 86_400.0
FAILURES_TO_OPEN: Final = 3
_SLOW_SHARE: Final = 0.2  # weight of the newest latency in the estimate


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner allows.

    `deadline_s` bounds a whole call. `least_score` asks the cloud below it (`None`: the artifact's `defer_below`, if any).
    `daily_bytes` bounds request and response bytes a day (`None`: no bound).
    """

    mode: Mode = "prefer-device"
    deadline_s: float = 0.25
    least_score: float | None = None
    daily_bytes: int | None = None
    failures_to_open: int = FAILURES_TO_OPEN
    open_s: float = 30.0
    longest_open_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """`failures` in a row; closed while `open_until` is `None`. `opened` counts openings in a row and doubles the delay."""

    failures: int = 0
    open_until: float | None = None
    opened: int = 0
    probing: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What the policy remembers between calls."""

    breaker: Breaker = Breaker()
    day: int = 0
    spent_bytes: int = 0
    device_latency_s: float | None = None  # estimate, the newest weighs most


def reason_before(policy: Policy, state: State) -> Reason | None:
    """Why to ask the cloud before the device has tried, or `None`. Only where the device comes first."""
    late = state.device_latency_s is not None and state.device_latency_s > policy.deadline_s
    return "deadline" if policy.mode == "prefer-device" and late else None


def reason_after(policy: Policy, *, score: float | None, least_score: float | None, drifting: bool = False) -> Reason | None:
    """Why the device's own answer should be checked with the cloud, or `None`.

    `least_score` is the artifact's `defer_below`; the policy's own wins.
    """
    if policy.mode != "prefer-device":
        return None
    least = policy.least_score if policy.least_score is not None else least_score
    if score is not None and least is not None and score < least:
        return "low_confidence"
    return "drift" if drifting else None


def may_ask(state: State, policy: Policy, now: float, size_bytes: int) -> tuple[State, Refusal | None]:
    """Whether the cloud may be asked with a request of this size; a granted one counts at once."""
    day = int(now // DAY_S)
    if day != state.day:
        state = replace(state, day=day, spent_bytes=0)
    if policy.daily_bytes is not None and state.spent_bytes + size_bytes > policy.daily_bytes:
        return state, "budget"
    breaker = state.breaker
    if breaker.open_until is not None:
        if now < breaker.open_until:
            return state, "breaker_open"
        if breaker.probing:
            return state, "probing"
        breaker = replace(breaker, probing=True)
    return replace(state, breaker=breaker, spent_bytes=state.spent_bytes + size_bytes), None


def succeeded(state: State, received_bytes: int = 0) -> State:
    """The cloud gave a usable answer."""
    return replace(state, breaker=Breaker(), spent_bytes=state.spent_bytes + received_bytes)


def failed(state: State, policy: Policy, now: float, received_bytes: int = 0) -> State:
    """The cloud gave no usable answer in time."""
    breaker = state.breaker
    failures = breaker.failures + 1
    spent = state.spent_bytes + received_bytes
    if failures < policy.failures_to_open and not breaker.probing:
        return replace(state, breaker=replace(breaker, failures=failures), spent_bytes=spent)
    delay = min(policy.open_s * 2**breaker.opened, policy.longest_open_s)
    opened = Breaker(failures=failures, open_until=now + delay, opened=min(breaker.opened + 1, 16))
    return replace(state, breaker=opened, spent_bytes=spent)


def device_answered(state: State, latency_s: float) -> State:
    """Fold one device latency into the estimate."""
    old = state.device_latency_s
    estimate = latency_s if old is None else old + _SLOW_SHARE * (latency_s - old)
    return replace(state, device_latency_s=estimate)


def cloud_share_s(state: State, policy: Policy, elapsed_s: float) -> float:
    """How long the cloud may take so that the device's own answer still comes in time; 0 if there is no time left.

    Where the device has answered already, or answers never (`cloud-only`), the cloud may take all that is left.
    """
    reserve = state.device_latency_s or 0.0 if policy.mode == "prefer-cloud" else 0.0
    return max(0.0, policy.deadline_s - elapsed_s - reserve)
