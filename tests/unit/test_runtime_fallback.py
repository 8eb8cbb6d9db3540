from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime import fallback
from edgeml.runtime.backends import Array
from edgeml.runtime.cloud import Answer
from edgeml.runtime.cloud_gate import CloudGate
from edgeml.runtime.fallback import Policy, State
from edgeml.runtime.hybrid import Hybrid
from edgeml.runtime.model import Model, load
from edgeml.wire.errors import EngineError, InputError, LinkError, ServiceError
from edgeml.wire.manifest import Deferral
from tests.unit.bundles import logits, make_bundle, samples

SURE = np.array([2, 0, 0, 0], np.float32)  # logits 2.25, -2, -0.25: class 0 at 0.91
UNSURE = np.zeros(4, np.float32)  # logits 0.25, 0, -0.25: class 0 at 0.42


def test_three_failures_in_a_row_open_the_breaker() -> None:
    policy, state = Policy(open_s=30), State()
    for _ in range(2):
        state = fallback.failed(state, policy, now=0)
        assert fallback.may_ask(state, policy, 0, 1)[1] is None
    state = fallback.failed(state, policy, now=0)
    assert fallback.may_ask(state, policy, 29.9, 1)[1] == "breaker_open"


def test_a_success_between_failures_closes_the_count() -> None:
    policy, state = Policy(), State()
    for _ in range(10):
        state = fallback.succeeded(fallback.failed(fallback.failed(state, policy, 0), policy, 0), policy)
    assert fallback.may_ask(state, policy, 0, 1)[1] is None


def test_one_probe_goes_through_and_its_failure_doubles_the_wait() -> None:
    policy, state = Policy(open_s=30, longest_open_s=100), State()
    for _ in range(3):
        state = fallback.failed(state, policy, now=0)
    state, refusal = fallback.may_ask(state, policy, 30, 1)
    assert refusal is None
    assert fallback.may_ask(state, policy, 30, 1)[1] == "probing"
    state = fallback.failed(state, policy, now=30)
    assert fallback.may_ask(state, policy, 30 + 59, 1)[1] == "breaker_open"
    state, refusal = fallback.may_ask(state, policy, 30 + 60, 1)
    assert refusal is None
    state = fallback.failed(state, policy, now=90)
    assert fallback.may_ask(state, policy, 90 + 99, 1)[1] == "breaker_open"  # 120 is capped at 100
    state, refusal = fallback.may_ask(state, policy, 190, 1)
    assert refusal is None
    assert fallback.may_ask(fallback.succeeded(state, policy), policy, 190, 1)[1] is None


def test_the_daily_budget_counts_both_ways_and_starts_again_next_day() -> None:
    policy, state = Policy(daily_bytes=1000), State()
    state, refusal = fallback.may_ask(state, policy, 100.0, 600)
    assert refusal is None
    state = fallback.succeeded(state, policy, received_bytes=200)
    assert fallback.may_ask(state, policy, 200.0, 300)[1] == "budget"
    assert fallback.may_ask(state, policy, 200.0, 200)[1] is None
    assert fallback.may_ask(state, policy, 86_400.0, 1000)[1] is None


def test_money_is_a_budget_of_the_day_too() -> None:
    policy, state = Policy(daily_cost=1.0, cost_per_call=0.2, cost_per_megabyte=1.0), State()
    state, refusal = fallback.may_ask(state, policy, 100.0, 300_000)  # 0.2 + 0.3
    assert refusal is None
    state = fallback.succeeded(state, policy, received_bytes=100_000)  # 0.1
    assert state.spent_cost == pytest.approx(0.6)
    assert fallback.may_ask(state, policy, 200.0, 300_000)[1] == "budget"
    state, refusal = fallback.may_ask(state, policy, 200.0, 200_000)  # 0.4, the rest
    assert refusal is None
    assert fallback.may_ask(state, policy, 200.0, 0)[1] == "budget"
    assert fallback.may_ask(state, policy, 86_400.0, 300_000)[1] is None


def answered(state: State, policy: Policy, calls: int, latency_s: float = 0.01) -> State:
    for _ in range(calls):
        state = fallback.succeeded(fallback.may_ask(state, policy, 0, 1)[0], policy, 0, latency_s)
    return state


def test_a_call_is_slow_beyond_nineteen_of_twenty_and_one_in_twenty_may_be_hedged() -> None:
    policy = Policy()
    assert fallback.hedge_after_s(answered(State(), policy, 19)) is None  # too few to know what is slow
    state = answered(answered(State(), policy, 40, 0.01), policy, 2, 0.5)
    assert fallback.hedge_after_s(state) == 0.01
    state, granted = fallback.may_hedge(state, policy, 0, 1)
    assert granted
    state, granted = fallback.may_hedge(state, policy, 0, 1)
    assert granted
    assert not fallback.may_hedge(state, policy, 0, 1)[1]
    assert fallback.hedge_after_s(state) is None


@pytest.mark.parametrize("share", [0.05, 0.01, 0.0])
def test_hedges_are_never_more_than_their_share_of_the_calls(share: float) -> None:
    policy, state, hedges = Policy(hedge_share=share), State(), 0
    for calls in range(1, 2000):
        state = answered(state, policy, 1)
        state, granted = fallback.may_hedge(state, policy, 0, 1)
        hedges += granted
        assert hedges <= share * calls + 1e-9
    assert hedges == pytest.approx(share * 2000, abs=1)


def test_a_hedge_is_paid_for_and_none_is_made_while_the_cloud_fails() -> None:
    policy = Policy(daily_bytes=1000)
    state = answered(State(), policy, 60)
    assert fallback.may_hedge(state, policy, 0, 940)[0].spent_bytes == 1000
    assert not fallback.may_hedge(state, policy, 0, 941)[1]
    assert fallback.hedge_after_s(fallback.failed(state, policy, 0)) is None


def test_what_was_spent_outlives_the_process_and_a_torn_file_counts_as_nothing(tmp_path: Path) -> None:
    policy, file = Policy(daily_bytes=1000), tmp_path / "spent.json"
    gate = CloudGate(policy, clock=lambda: 1e9, file=file)
    assert gate.may_ask(800) is None
    gate.save()
    assert CloudGate(policy, clock=lambda: 1e9, file=file).may_ask(300) == "budget"
    assert CloudGate(policy, clock=lambda: 1e9 + 86_400, file=file).may_ask(300) is None
    file.write_bytes(file.read_bytes()[:7])
    assert CloudGate(policy, clock=lambda: 1e9, file=file).may_ask(300) is None


@pytest.mark.parametrize(
    ("policy", "score", "least", "drifting", "reason"),
    [
        (Policy(), 0.4, 0.5, False, "low_confidence"),
        (Policy(), 0.5, 0.5, False, None),
        (Policy(least_score=0.3), 0.4, 0.5, False, None),
        (Policy(), 0.4, None, False, None),
        (Policy(), None, 0.5, False, None),
        (Policy(), 0.9, 0.5, True, "drift"),
        (Policy("device-only"), 0.1, 0.5, True, None),
        (Policy("prefer-cloud"), 0.1, 0.5, True, None),
    ],
    ids=["below", "at", "owner", "no-limit", "no-score", "drift", "device-only", "prefer-cloud"],
)
def test_the_cloud_is_asked_for_a_reason(
    policy: Policy, score: float | None, least: float | None, *, drifting: bool, reason: str | None
) -> None:
    assert fallback.reason_after(policy, score=score, least_score=least, drifting=drifting) == reason


def test_a_cloud_that_comes_first_leaves_the_device_its_time() -> None:
    policy = Policy("prefer-cloud", deadline_s=0.2)
    assert fallback.cloud_share_s(policy, 0.05, 0.01, 0.02) == pytest.approx(0.12)  # 0.2, less 0.01, 0.05 and 0.02
    assert fallback.cloud_share_s(policy, 0.05, 0.19, 0.02) == 0
    assert fallback.cloud_share_s(policy, None, 0.05, 0.02) == pytest.approx(0.13)


def test_what_is_kept_free_for_waking_up_follows_the_worst_lateness_within_limits() -> None:
    policy, state = Policy(deadline_s=0.2), State()
    assert fallback.wake_reserve_s(state, policy) == pytest.approx(0.02)
    for late_s, kept_s in ((0.001, 0.02), (0.04, 0.08), (0.002, 0.08), (0.5, 0.16)):
        state = fallback.woke(state, late_s)
        assert fallback.wake_reserve_s(state, policy) == pytest.approx(kept_s)
    for _ in range(fallback.LATENESSES):
        state = fallback.woke(state, 0.0)
    assert fallback.wake_reserve_s(state, policy) == pytest.approx(0.02)  # the board is quiet again


def test_a_board_that_wakes_threads_late_gives_the_cloud_less(model: Model) -> None:
    cloud, gate = FakeCloud(says_high), CloudGate(Policy(deadline_s=5))
    with Hybrid(model, cloud, gate) as hybrid:
        hybrid.run({"x": UNSURE})
        gate.woke(2.0)
        hybrid.run({"x": UNSURE})
    usual, less = cloud.asked
    assert 4 < usual <= 4.5
    assert 0.5 < less <= 1.0  # four fifths of the deadline are kept at most


class FakeCloud:
    """Answers with `reply`, which may raise or wait."""

    def __init__(self, reply: Callable[[Mapping[str, Array]], dict[str, Array]]) -> None:
        self.reply = reply
        self.asked: list[float] = []

    def infer(self, inputs: Mapping[str, Array], *, request_id: str, deadline_s: float) -> Answer:  # noqa: ARG002
        self.asked.append(deadline_s)
        return Answer(self.reply(inputs), "toy", "2.0.0", 100, 100)

    def close(self) -> None: ...


def says_high(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"logits": np.array([[0, 0, 9]] * len(inputs["x"]), np.float32)}


def is_dead(inputs: Mapping[str, Array]) -> dict[str, Array]:
    raise LinkError("the cloud cannot be reached")


def refuses(inputs: Mapping[str, Array]) -> dict[str, Array]:
    raise ServiceError("no", status=503)


def lies(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"logits": np.array([[np.nan, 0, 0]], np.float32)}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(make_bundle(tmp_path, defer_below=0.6))


def test_a_sure_device_does_not_ask(model: Model) -> None:
    cloud = FakeCloud(says_high)
    with Hybrid(model, cloud, CloudGate(Policy(deadline_s=5))) as hybrid:
        result = hybrid.run({"x": SURE})
    assert (result.source, result.label, result.fallback, cloud.asked) == ("device", "low", None, [])


def test_an_unsure_device_takes_the_clouds_answer(model: Model) -> None:
    with Hybrid(model, FakeCloud(says_high), CloudGate(Policy(deadline_s=5))) as hybrid:
        result = hybrid.run({"x": UNSURE})
    assert (result.source, result.label, result.version, result.fallback) == ("cloud", "high", "2.0.0", "low_confidence")
    assert result.outputs["logits"].shape == (3,)
    assert result.score == pytest.approx(np.exp(9) / (np.exp(9) + 2), abs=1e-6)


def test_the_artifacts_own_threshold_and_temperature_decide(tmp_path: Path) -> None:
    """Its logits 0.25, 0, -0.25 at temperature 0.1 are 2.5, 0, -2.5: 0.92, sure enough; at 1 they would be 0.42."""
    own = load(make_bundle(tmp_path, defer_below=0.6, deferral=Deferral(temperature=0.1, defer_below=0.9)))
    cloud = FakeCloud(says_high)
    with Hybrid(own, cloud, CloudGate(Policy(deadline_s=5))) as hybrid:
        assert (hybrid.run({"x": UNSURE}).source, cloud.asked) == ("device", [])
    never = load(make_bundle(tmp_path, version="2.0.0", defer_below=0.6, deferral=Deferral()))
    with Hybrid(never, cloud, CloudGate(Policy(deadline_s=5))) as hybrid:
        assert hybrid.run({"x": UNSURE}).source == "device"


def test_the_clouds_answer_is_as_sure_as_the_source_not_as_the_artifact(tmp_path: Path) -> None:
    own = load(make_bundle(tmp_path, deferral=Deferral(temperature=5.0, defer_below=1.0)))
    with Hybrid(own, FakeCloud(says_high), CloudGate(Policy(deadline_s=5))) as hybrid:
        assert hybrid.run({"x": SURE}).score == pytest.approx(np.exp(9) / (np.exp(9) + 2), abs=1e-6)


@pytest.mark.parametrize("reply", [is_dead, refuses, lies], ids=["dead", "refusing", "lying"])
def test_the_device_answers_when_the_cloud_is_no_use(model: Model, reply: Callable[..., dict[str, Array]]) -> None:
    with Hybrid(model, FakeCloud(reply), CloudGate(Policy(deadline_s=5))) as hybrid:
        result = hybrid.run({"x": UNSURE})
        assert hybrid.last_problem in {"unreachable", "refused"}
    assert (result.source, result.label, result.fallback) == ("device", "low", None)


def test_a_hanging_cloud_does_not_delay_the_answer(model: Model) -> None:
    release = threading.Event()

    def hangs(inputs: Mapping[str, Array]) -> dict[str, Array]:
        release.wait(30)
        return says_high(inputs)

    with Hybrid(model, FakeCloud(hangs), CloudGate(Policy(deadline_s=0.2))) as hybrid:
        started = time.monotonic()
        result = hybrid.run({"x": UNSURE})
        took = time.monotonic() - started
        release.set()
    assert (result.source, result.label) == ("device", "low")
    assert took < 1.0  # the deadline is 0.2 s; the rest is this machine's patience


def test_a_slow_call_is_asked_once_more_and_the_first_answer_counts(model: Model) -> None:
    slow, release = threading.Event(), threading.Event()

    def sometimes_slow(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if slow.is_set():
            slow.clear()
            release.wait(30)
        return says_high(inputs)

    cloud = FakeCloud(sometimes_slow)
    with Hybrid(model, cloud, CloudGate(Policy(deadline_s=20))) as hybrid:
        for _ in range(20):
            hybrid.run({"x": UNSURE})
        slow.set()
        result = hybrid.run({"x": UNSURE})
        release.set()
    assert (result.source, len(cloud.asked)) == ("cloud", 22)


def test_a_hedge_answers_where_the_first_call_breaks(model: Model) -> None:
    calls, second = [0], threading.Event()

    def breaks_late(inputs: Mapping[str, Array]) -> dict[str, Array]:
        calls[0] += 1
        if calls[0] == 21:
            second.wait(30)
            raise LinkError("cut off")
        if calls[0] == 22:
            second.set()
            time.sleep(0.05)
        return says_high(inputs)

    with Hybrid(model, FakeCloud(breaks_late), CloudGate(Policy(deadline_s=20))) as hybrid:
        assert [hybrid.run({"x": UNSURE}).source for _ in range(21)] == ["cloud"] * 21
    assert calls == [22]


def test_models_of_one_device_share_breaker_and_budget(model: Model) -> None:
    gate = CloudGate(Policy(deadline_s=5, daily_bytes=1000), clock=lambda: 0.0)
    first, second = FakeCloud(says_high), FakeCloud(says_high)
    with Hybrid(model, first, gate) as one, Hybrid(model, second, gate) as other:
        assert one.run({"x": UNSURE}).source == "cloud"
        assert other.run({"x": UNSURE}).source == "device"
        assert (other.last_problem, second.asked) == ("budget", [])


def test_what_the_application_redacts_is_what_leaves(model: Model) -> None:
    sent: list[Array] = []

    def remembers(inputs: Mapping[str, Array]) -> dict[str, Array]:
        sent.append(inputs["x"])
        return says_high(inputs)

    gate = CloudGate(Policy(deadline_s=5))
    with Hybrid(model, FakeCloud(remembers), gate, redact=lambda inputs: {"x": 0 * inputs["x"] + 1}) as hybrid:
        assert hybrid.run({"x": UNSURE}).source == "cloud"
    assert sent[0].tolist() == [[1, 1, 1, 1]]


def fails(inputs: dict[str, Array]) -> Mapping[str, Array]:
    raise RuntimeError("no face found")


@pytest.mark.parametrize(
    "redact", [lambda _: None, fails, lambda _: {"x": np.zeros(3, np.float32)}, lambda _: {}],
    ids=["withheld", "fails", "wrong-shape", "nothing"],
)  # fmt: skip
def test_nothing_leaves_where_the_application_says_no(model: Model, redact: Callable[..., Mapping[str, Array] | None]) -> None:
    cloud = FakeCloud(says_high)
    with Hybrid(model, cloud, CloudGate(Policy(deadline_s=5)), redact=redact) as hybrid:
        assert hybrid.run({"x": UNSURE}).source == "device"
        assert (hybrid.last_problem, cloud.asked) == ("withheld", [])
    with Hybrid(model, cloud, CloudGate(Policy("cloud-only", deadline_s=5)), redact=redact) as hybrid, pytest.raises(LinkError):
        hybrid.run({"x": UNSURE})


def test_a_dead_cloud_is_left_alone_after_three_tries(model: Model) -> None:
    cloud = FakeCloud(is_dead)
    with Hybrid(model, cloud, CloudGate(Policy(deadline_s=5), clock=lambda: 0.0)) as hybrid:
        for _ in range(10):
            assert hybrid.run({"x": UNSURE}).source == "device"
        assert hybrid.last_problem == "breaker_open"
    assert len(cloud.asked) == 3


def test_a_device_that_fails_is_answered_for(model: Model) -> None:
    model.close()
    with Hybrid(model, FakeCloud(says_high), CloudGate(Policy(deadline_s=5))) as hybrid:
        result = hybrid.run({"x": SURE})
        assert (result.source, result.fallback) == ("cloud", "error")
    with (
        Hybrid(model, FakeCloud(is_dead), CloudGate(Policy(deadline_s=5))) as hybrid,
        pytest.raises(EngineError, match="closed"),
    ):
        hybrid.run({"x": SURE})


def test_a_wrong_input_is_nobodys_to_answer(model: Model) -> None:
    cloud = FakeCloud(says_high)
    for mode in fallback.MODES:
        with Hybrid(model, cloud, CloudGate(Policy(mode, deadline_s=5))) as hybrid, pytest.raises(InputError):
            hybrid.run({"x": SURE[:2]})
    assert cloud.asked == []


def test_prefer_cloud_falls_back_to_the_device(model: Model) -> None:
    policy = Policy("prefer-cloud", deadline_s=5)
    with Hybrid(model, FakeCloud(says_high), CloudGate(policy)) as hybrid:
        assert (hybrid.run({"x": SURE}).source, hybrid.run({"x": SURE}).fallback) == ("cloud", None)
    with Hybrid(model, FakeCloud(is_dead), CloudGate(policy)) as hybrid:
        result = hybrid.run({"x": SURE})
    assert (result.source, result.label, result.fallback) == ("device", "low", "error")


def test_the_first_call_to_a_hanging_cloud_already_leaves_the_device_its_time(model: Model) -> None:
    cloud = FakeCloud(is_dead)
    model.warm_latency_s = 0.3
    with Hybrid(model, cloud, CloudGate(Policy("prefer-cloud", deadline_s=0.5))) as hybrid:
        assert hybrid.run({"x": SURE}).source == "device"
    assert 0 < cloud.asked[0] <= 0.2


def test_cloud_only_raises_what_went_wrong(model: Model) -> None:
    with Hybrid(model, FakeCloud(is_dead), CloudGate(Policy("cloud-only", deadline_s=5))) as hybrid, pytest.raises(LinkError):
        hybrid.run({"x": SURE})


def test_device_only_never_asks(model: Model) -> None:
    cloud = FakeCloud(says_high)
    with Hybrid(model, cloud, CloudGate(Policy("device-only", deadline_s=5))) as hybrid:
        assert hybrid.run({"x": UNSURE}).source == "device"
    assert cloud.asked == []


def test_a_device_too_slow_for_the_deadline_asks_first_and_tries_again_later(model: Model) -> None:
    cloud = FakeCloud(says_high)
    with Hybrid(model, cloud, CloudGate(Policy(deadline_s=0.5))) as hybrid:
        hybrid.device_latency_s = 0.8
        first = hybrid.run({"x": SURE})
        assert (first.source, first.fallback) == ("cloud", "deadline")
        sources = [hybrid.run({"x": SURE}).source for _ in range(40)]
    assert sources[-1] == "device"


def test_a_batch_goes_to_the_cloud_as_a_batch(model: Model) -> None:
    with Hybrid(model, FakeCloud(says_high), CloudGate(Policy("cloud-only", deadline_s=5))) as hybrid:
        assert hybrid.run({"x": samples(4)}).outputs["logits"].shape == logits(samples(4)).shape
