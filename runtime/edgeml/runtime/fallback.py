"""When to ask the cloud instead of the device, and when not: a policy without IO; time comes in as `now`.

    state -> may_ask(state, policy, now, size) -> (state, None | why not)
    the call is made; then succeeded(state, …) or failed(state, policy, now)

- The circuit breaker opens after three failures in a row and lets one probe through after a delay that doubles with every
  failed probe.
- Bytes and money are budgets of a day of the clock that `now` comes from, for all models of a device together.
- A busy board wakes threads late. Each wait tells how late, and what is kept free at the end of a deadline follows the worst.
- A call that takes longer than nineteen of twenty did may be asked once more beside the first: a hedge. Each call earns
  `hedge_share` of one, so that hedges never are more than that share of the calls.
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
WAKE_SHARE: Final = 0.1  # of the deadline, kept free at least: how late a thread is woken up is known from earlier ones only
MOST_WAKE_SHARE: Final = 0.8  # kept free at most: the answer in time comes first, and a near cloud needs no more
WAKE_FACTOR: Final = 2.0  # times the worst lateness of late
LATENESSES: Final = 64  # newest calls whose lateness counts
MEGABYTE: Final = 1_000_000
LATENCIES: Final = 64  # newest ones, that tell a slow call
LEAST_LATENCIES: Final = 20  # fewer have no slowest twentieth
SLOW_QUANTILE: Final = 0.95
HEDGES_SAVED: Final = 3.0  # that quiet times may earn
_SLOW_SHARE: Final = 0.2  # weight of the newest latency in the estimate


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner allows.

    `deadline_s` bounds a whole call. `least_score` asks the cloud below it (`None`: the artifact's `defer_below`, if any).
    `daily_bytes` and `daily_cost` bound what requests and responses take and cost a day (`None`: no bound).
    """

    mode: Mode = "prefer-device"
    deadline_s: float = 0.25
    least_score: float | None = None
    daily_bytes: int | None = None
    daily_cost: float | None = None
    cost_per_call: float = 0.0
    cost_per_megabyte: float = 0.0
    hedge_share: float = 0.05
    failures_to_open: int = FAILURES_TO_OPEN
    open_s: float = 30.0
    longest_open_s: float = 600.0

    def cost(self, size_bytes: int, *, calls: int = 0) -> float:
        return calls * self.cost_per_call + size_bytes / MEGABYTE * self.cost_per_megabyte


@dataclass(frozen=True, slots=True)
class Breaker:
    """`failures` in a row; closed while `open_until` is `None`. `opened` counts openings in a row and doubles the delay."""

    failures: int = 0
    open_until: float | None = None
    opened: int = 0
    probing: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What the policy remembers of one endpoint.

    `hedges` were earned and not used. `latencies_s` of calls and `lateness_s` of threads that waited for them: newest last.
    """

    breaker: Breaker = Breaker()
    day: int = 0
    spent_bytes: int = 0
    spent_cost: float = 0.0
    hedges: float = 0.0
    latencies_s: tuple[float, ...] = ()
    lateness_s: tuple[float, ...] = ()


def reason_before(policy: Policy, device_latency_s: float | None) -> Reason | None:
    """Why to ask the cloud before the device has tried, or `None`. Only where the device comes first."""
    late = device_latency_s is not None and device_latency_s > policy.deadline_s
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
    state = _of_today(state, now)
    if not _affords(state, policy, size_bytes):
        return state, "budget"
    breaker = state.breaker
    if breaker.open_until is not None:
        if now < breaker.open_until:
            return state, "breaker_open"
        if breaker.probing:
            return state, "probing"
        breaker = replace(breaker, probing=True)
    spent = _spend(state, policy, size_bytes, calls=1)
    return replace(spent, breaker=breaker, hedges=min(HEDGES_SAVED, state.hedges + policy.hedge_share)), None


def hedge_after_s(state: State) -> float | None:
    """How long a call may take before it counts as slow; `None` where none may be asked twice."""
    if state.hedges < 1 or len(state.latencies_s) < LEAST_LATENCIES or state.breaker.failures:
        return None
    ordered = sorted(state.latencies_s)
    return ordered[int(SLOW_QUANTILE * len(ordered))]


def may_hedge(state: State, policy: Policy, now: float, size_bytes: int) -> tuple[State, bool]:
    """Whether a slow call may be asked once more; a granted one counts at once."""
    state = _of_today(state, now)
    if state.hedges < 1 or not _affords(state, policy, size_bytes):
        return state, False
    return replace(_spend(state, policy, size_bytes, calls=1), hedges=state.hedges - 1), True


def succeeded(state: State, policy: Policy, received_bytes: int = 0, latency_s: float | None = None) -> State:
    """The cloud gave a usable answer."""
    latencies = state.latencies_s if latency_s is None else (*state.latencies_s, latency_s)[-LATENCIES:]
    return replace(_spend(state, policy, received_bytes), breaker=Breaker(), latencies_s=latencies)


def failed(state: State, policy: Policy, now: float, received_bytes: int = 0) -> State:
    """The cloud gave no usable answer in time."""
    state = _spend(state, policy, received_bytes)
    breaker = state.breaker
    failures = breaker.failures + 1
    if failures < policy.failures_to_open and not breaker.probing:
        return replace(state, breaker=replace(breaker, failures=failures))
    delay = min(policy.open_s * 2**breaker.opened, policy.longest_open_s)
    return replace(state, breaker=Breaker(failures, open_until=now + delay, opened=min(breaker.opened + 1, 16)))


def folded(estimate_s: float | None, latency_s: float) -> float:
    """The estimate of the device's latency with one more; the newest weighs most."""
    return latency_s if estimate_s is None else estimate_s + _SLOW_SHARE * (latency_s - estimate_s)


def woke(state: State, late_s: float) -> State:
    """A thread that waited for the cloud was woken up so much too late, at the worst time of one call."""
    return replace(state, lateness_s=(*state.lateness_s, late_s)[-LATENESSES:])


def wake_reserve_s(state: State, policy: Policy) -> float:
    """How much of the deadline to keep free for the waking of the thread that waits."""
    wanted = WAKE_FACTOR * max(state.lateness_s, default=0.0)
    return min(max(WAKE_SHARE * policy.deadline_s, wanted), MOST_WAKE_SHARE * policy.deadline_s)


def cloud_share_s(policy: Policy, device_latency_s: float | None, elapsed_s: float, wake_s: float) -> float:
    """How long the cloud may take so that the device's own answer still comes in time; 0 if there is no time left.

    Where the device has answered already, or answers never (`cloud-only`), the cloud may take what is left but for `wake_s`, in
    which the thread that waits is woken up.
    """
    reserve = device_latency_s or 0.0 if policy.mode == "prefer-cloud" else 0.0
    return max(0.0, policy.deadline_s - wake_s - elapsed_s - reserve)


def _of_today(state: State, now: float) -> State:
    day = int(now // DAY_S)
    return state if day == state.day else replace(state, day=day, spent_bytes=0, spent_cost=0.0)


def _affords(state: State, policy: Policy, size_bytes: int) -> bool:
    if policy.daily_bytes is not None and state.spent_bytes + size_bytes > policy.daily_bytes:
        return False
    return policy.daily_cost is None or state.spent_cost + policy.cost(size_bytes, calls=1) <= policy.daily_cost + 1e-9


def _spend(state: State, policy: Policy, size_bytes: int, *, calls: int = 0) -> State:
    cost = state.spent_cost + policy.cost(size_bytes, calls=calls)
    return replace(state, spent_bytes=state.spent_bytes + size_bytes, spent_cost=cost)
