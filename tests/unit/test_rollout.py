"""The rollout's machine, and random histories of it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.histories import run
from edgeml.fleet.rollout import (
    Command,
    Note,
    Offer,
    RolloutSpec,
    RolloutState,
    Seen,
    TakeBack,
    Verdict,
    Wave,
    apply,
    step,
)
from edgeml.wire.errors import ServiceError

SPEC = RolloutSpec("r", "kws", "1.2.0", "0" * 64, "p", "salt", (Wave(0.1), Wave(0.5), Wave(0.9)))


def said(outcome: str, sentence: str = "because") -> Seen:
    return Seen(Verdict(outcome, sentence, at=5.0, wave=0))  # type: ignore[arg-type]


def started(**changes: object) -> RolloutState:
    return apply(RolloutState(msgspec.structs.replace(SPEC, **changes)), "start", "ann", 1.0)


def test_a_rollout_offers_wave_after_wave_and_then_everybody() -> None:
    state, shares = started(), []
    for _ in range(4):
        state, actions = step(state, said("proceed"), 5.0)
        shares += [action.share for action in actions if isinstance(action, Offer)]
    assert shares == [0.5, 0.9, 1.0, 1.0]
    assert state.phase == "done"


def test_a_stop_takes_back_until_everybody_is_back() -> None:
    state, actions = step(started(), said("stop", "9 of 12"), 5.0)
    assert (state.phase, actions) == ("rolling_back", (Note("rolling_back", "9 of 12"), TakeBack()))
    state, actions = step(state, Seen(to_take_back=3, away=9), 6.0)
    assert (state.phase, actions) == ("rolling_back", (TakeBack(),))
    state, _ = step(state, Seen(to_take_back=0, away=1), 7.0)
    assert state.phase == "rolling_back"
    state, _ = step(state, Seen(), 8.0)
    assert (state.phase, state.ended_at, state.sentence) == ("rolled_back", 8.0, "9 of 12")


def test_without_automatic_rollback_a_stop_waits_for_a_person_and_offers_nothing() -> None:
    state, actions = step(started(auto_rollback=False), said("stop"), 5.0)
    assert (state.phase, [a for a in actions if not isinstance(a, Note)]) == ("stopped", [])
    assert apply(state, "rollback", "ann", 6.0).phase == "rolling_back"


def test_a_hold_is_looked_at_once_and_left_by_a_person_only() -> None:
    state, _ = step(started(), said("hold"), 5.0)
    state, _ = step(state, said("proceed"), 6.0)
    assert (state.phase, state.wave) == ("holding", 0)
    assert apply(state, "approve", "ann", 7.0).wave == 1


@pytest.mark.parametrize("phase", ["holding", "paused"])
def test_the_stop_gate_works_while_a_person_thinks(phase: str) -> None:
    state = msgspec.structs.replace(started(), phase=phase)
    assert step(state, said("stop"), 5.0)[0].phase == "rolling_back"


def test_a_paused_rollout_offers_nothing_and_resumes_where_it_was() -> None:
    paused = apply(step(started(), said("hold"), 5.0)[0], "pause", "ann", 6.0)
    assert step(paused, Seen(), 7.0)[1] == ()
    assert apply(paused, "resume", "ann", 8.0).phase == "holding"


def test_a_command_out_of_place_is_refused_with_the_way_out() -> None:
    with pytest.raises(ServiceError, match="is draft: cannot approve; possible when holding"):
        apply(RolloutState(SPEC), "approve", "ann", 1.0)


def test_a_state_survives_being_written_down() -> None:
    state, _ = step(started(), Seen(said("proceed").verdict, {"health": (0.1, -0.2)}), 5.0)
    assert msgspec.json.decode(msgspec.json.encode(state), type=RolloutState) == state


EVENTS = st.lists(
    st.one_of(
        st.sampled_from(["proceed", "hold", "stop", "wait"]),
        st.sampled_from(["pause", "resume", "approve", "abort", "rollback"]).map(lambda name: f"!{name}"),
    ),
    max_size=30,
)


@given(EVENTS)
def test_whatever_happens_a_repeated_tick_repeats_its_actions_and_nothing_else(events: list[str]) -> None:
    state = started()
    for event in events:
        if event.startswith("!"):
            command: Command = event[1:]  # type: ignore[assignment]
            try:
                state = apply(state, command, "ann", 2.0)
            except ServiceError:
                continue
        else:
            state, _ = step(state, said(event), 3.0)
        quiet = Seen(to_take_back=1)
        once, first = step(state, quiet, 4.0)
        twice, second = step(once, quiet, 4.0)
        assert (once, [a for a in first if not isinstance(a, Note)]) == (twice, list(second))
        if state.phase in {"rolling_back", "rolled_back", "aborted", "stopped", "paused"}:
            assert not any(isinstance(action, Offer) for action in second)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40))
def test_random_histories_end_where_the_fleet_wants_them(seed: int) -> None:
    _, problem, _ = run(seed)
    assert problem is None
