"""What the service remembers: each message once, revisions that only grow, an audit that shows tampering, the ledger's view."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.fleet.ledger import Event, Order, TelemetrySum
from edgeml.fleet.rollout import RolloutSpec, RolloutState, Wave
from edgeml.fleet.store import Store, devices, events, messages
from edgeml.fleet.store.devices import NewDevice
from edgeml.fleet.store.ledger import StoreLedger, find_rollout
from edgeml.fleet.store.sums import AHEAD_S
from edgeml.wire.errors import EnvironmentProblem
from edgeml.wire.messages import Report, Slot, State, Target, Telemetry, UpdateState
from edgeml.wire.sketches import Histogram, LatencySketch

A, B = "a" * 64, "b" * 64
NEW = Target("kws", "1.1.0", B, "models/kws/1.1.0.edgeml", "r1", 0)
OLD = Target("kws", "1.0.0", A, "models/kws/1.0.0.edgeml")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "fleet.db")
    enrol(made, "d1", "d2", "d3")
    return made


def enrol(store: Store, *ids: str) -> None:
    with store.write() as connection:
        devices.add(connection, [NewDevice(one, f"hash of {one}", "$7$", {"site": "north"}) for one in ids], 1.0)


def row(store: Store, device: str) -> devices.DeviceRow:
    with store.read() as connection:
        found = devices.find(connection, device)
    assert found is not None
    return found


def report(seq: int, state: UpdateState = "confirmed", **rest: object) -> Report:
    plain = {"device": "d1", "session": 1, "at": 5.0, "rev": 1, "model": "kws", "version": "1.1.0", "manifest_sha256": B} | rest
    return Report(seq=seq, state=state, **plain)  # type: ignore[arg-type]


def window(seq: int, start: float, runs: int = 10, device: str = "d1", version: str = "1.0.0") -> Telemetry:
    return Telemetry(device, 1, seq, "kws", version, A, start, 60.0, runs)


def rollout(name: str = "r1", phase: str = "running", created_at: float = 1.0) -> RolloutState:
    spec = RolloutSpec(name, "kws", "1.1.0", B, NEW.path or "", "salt", (Wave(0.1),), created_at=created_at)
    return RolloutState(spec, phase=phase)  # type: ignore[arg-type]


def add(store: Store, *said: Report | Telemetry, at: float = 7.0) -> list[bool]:
    with store.write() as connection:
        return [
            messages.add_report(connection, one, at) if isinstance(one, Report) else messages.add_telemetry(connection, one, at)
            for one in said
        ]


def test_a_message_is_taken_once_by_device_and_seq(store: Store) -> None:
    assert add(store, report(1), report(1), report(2), window(3, 0.0), window(3, 0.0)) == [True, False, True, True, False]
    assert add(store, report(1), window(3, 0.0)) == [False, False]
    with store.read() as connection:
        assert messages.totals(connection) == (2, 1)


def test_a_late_report_does_not_overwrite_a_newer_one(store: Store) -> None:
    add(store, report(9, "confirmed"), report(3, "downloading"))
    with store.read() as connection:
        (attempt,) = messages.attempts_of(connection, "d1")
    assert (attempt.seq, attempt.state) == (9, "confirmed")


def test_what_is_installed_is_what_the_newest_report_says(store: Store) -> None:
    add(store, report(5, slots=(Slot("1.1.0", B, active=True), Slot("1.0.0", A, active=False))))
    add(store, report(4, slots=(Slot("1.0.0", A, active=True),)))
    with store.read() as connection:
        assert messages.installed_of(connection) == {"d1": {"kws": "1.1.0"}}


@given(st.permutations([(1, True), (1, False), (2, True), (2, False), (3, True)]))
@settings(max_examples=60, deadline=None)
def test_births_and_wills_in_any_order_end_with_the_newest_session_online(order: Sequence[tuple[int, bool]]) -> None:
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "fleet.db")
        enrol(store, "d1")
        with store.write() as connection:
            for session, online in order:
                devices.present(connection, State("d1", session, online=online))
        assert (row(store, "d1").session, row(store, "d1").online) == (3, True)
        store.close()


def test_a_revision_grows_only_when_something_is_wanted_anew(store: Store) -> None:
    with store.write() as connection:
        assert [devices.want(connection, "d1", target) for target in (OLD, OLD, NEW, NEW, OLD)] == [1, None, 2, None, 3]
        assert devices.want(connection, "nobody", OLD) is None
    assert row(store, "d1").desired.targets == (OLD,)


def test_other_models_of_a_device_are_left_alone(store: Store) -> None:
    vision = Target("vision", "2.0.0", A, "models/vision/2.0.0.edgeml")
    with store.write() as connection:
        devices.want(connection, "d1", vision)
        devices.want(connection, "d1", NEW)
    assert row(store, "d1").desired.targets == (NEW, vision)


def test_only_what_was_acknowledged_counts_as_told(store: Store) -> None:
    with store.write() as connection:
        devices.want(connection, "d1", OLD)
        devices.want(connection, "d2", OLD)
        devices.told(connection, [("d1", 1)])
        assert [device for device, _ in devices.untold(connection, 10)] == ["d2"]
        devices.want(connection, "d1", NEW)
        devices.told(connection, [("d1", 1)])  # an acknowledgement that came late
        assert [(device, desired.rev) for device, desired in devices.untold(connection, 10)] == [("d1", 2), ("d2", 1)]
        devices.told(connection, [("d1", 2), ("d2", 1)])
        devices.forget_told(connection)
        assert len(devices.untold(connection, 10)) == 2


def test_removing_a_device_forgets_all_it_said(store: Store) -> None:
    add(store, report(1), window(2, 0.0))
    with store.write() as connection:
        assert devices.remove(connection, "d1")
        assert messages.totals(connection) == (0, 0)
        assert not devices.remove(connection, "d1")


def test_the_audit_shows_a_changed_event_and_a_missing_one(store: Store, tmp_path: Path) -> None:
    with store.write() as connection:
        for number in range(5):
            events.append(connection, at=float(number), actor="ann", kind="published", subject="kws@1.0.0", body={"n": number})
        assert events.first_break(connection) is None
    direct = sqlite3.connect(tmp_path / "fleet.db")
    direct.execute("UPDATE events SET actor = 'eve' WHERE id = 3")
    direct.commit()
    with store.read() as connection:
        assert events.first_break(connection) == 3
    direct.execute("UPDATE events SET actor = 'ann' WHERE id = 3")
    direct.execute("DELETE FROM events WHERE id = 2")
    direct.commit()
    direct.close()
    with store.read() as connection:
        assert events.first_break(connection) == 3


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    def fail_half_way() -> None:
        with store.write() as connection:
            devices.want(connection, "d1", OLD)
            events.append(connection, at=1.0, actor="ann", kind="k", subject="s")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert row(store, "d1").desired.rev == 0
    with store.read() as connection:
        assert events.listed(connection) == []


def test_a_database_of_another_schema_is_refused_in_words(tmp_path: Path) -> None:
    Store(tmp_path / "fleet.db").close()
    direct = sqlite3.connect(tmp_path / "fleet.db")
    direct.execute("UPDATE schema_version SET version = 99")
    direct.commit()
    direct.close()
    with pytest.raises(EnvironmentProblem, match=r"schema: expected \d+, got 99"):
        Store(tmp_path / "fleet.db")


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(EnvironmentProblem, match="not a database"):
        Store(tmp_path / "fleet.db")


class TestLedger:
    """The store as the controller sees it."""

    def test_telling_twice_changes_nothing_the_second_time(self, store: Store) -> None:
        changed: list[str] = []
        ledger = StoreLedger(store, changed.extend)
        ledger.save(rollout())
        orders = [Order(device, NEW, "r1", 0, "offer", 5.0) for device in ("d1", "d2", "gone")]
        assert [ledger.tell(orders), ledger.tell(orders)] == [2, 0]
        assert changed == ["d1", "d2"]
        assert [(row(store, one).desired.rev, row(store, one).desired.targets) for one in ("d1", "d3")] == [
            (1, (NEW,)),
            (0, ()),
        ]

    def test_an_assignment_keeps_what_was_wanted_before_it(self, store: Store) -> None:
        with store.write() as connection:
            devices.want(connection, "d1", OLD)
        ledger = StoreLedger(store)
        ledger.save(rollout())
        ledger.tell([Order("d1", NEW, "r1", 0, "offer", 5.0)])
        ledger.tell([Order("d1", NEW, "r1", 1, "offer", 6.0)])
        (assignment,) = ledger.assignments("r1")
        assert (assignment.previous, assignment.wave, assignment.told_at, assignment.taken_back_at) == (OLD, 0, 5.0, None)

    def test_a_device_that_was_never_told_anything_goes_back_to_what_it_runs(self, store: Store) -> None:
        """Its factory bundle is all it had: without this, a rollback would take its model away."""
        ledger = StoreLedger(store)
        ledger.save(rollout())
        ledger.tell([Order("d1", NEW, "r1", 0, "offer", 5.0, previous=OLD)])
        (assignment,) = ledger.assignments("r1")
        assert assignment.previous == OLD

    def test_taking_back_wants_the_old_version_again_under_a_higher_revision(self, store: Store) -> None:
        with store.write() as connection:
            devices.want(connection, "d1", OLD)
        ledger = StoreLedger(store)
        ledger.save(rollout())
        ledger.tell([Order("d1", NEW, "r1", 0, "offer", 5.0)])
        back = [Order("d1", OLD, "r1", 0, "take_back", 9.0)]
        assert [ledger.tell(back), ledger.tell(back)] == [1, 0]
        (assignment,) = ledger.assignments("r1")
        assert assignment.taken_back_at == 9.0
        assert (row(store, "d1").desired.rev, row(store, "d1").desired.targets) == (3, (OLD,))

    def test_an_outcome_is_the_newest_report_on_this_rollouts_version(self, store: Store) -> None:
        add(store, report(1, "downloading", rollout="r1"), report(3, "failed", rollout="r1", code="self_test"), at=50.0)
        add(store, report(2, "verified", rollout="r1"), report(9, "confirmed", rollout="r2"))
        add(store, report(10, "confirmed", rollout="r1", version="1.0.0", manifest_sha256=A))
        (outcome,) = StoreLedger(store).outcomes("r1", "1.1.0")
        assert (outcome.device, outcome.state, outcome.code, outcome.at) == ("d1", "failed", "self_test", 50.0)

    def test_a_device_that_gave_up_for_good_is_known_by_the_manifest(self, store: Store) -> None:
        add(
            store,
            report(1, "failed", code="self_test"),
            report(2, "failed", manifest_sha256=A, version="1.0.0", retryable=True),
        )
        device = StoreLedger(store).devices("kws")[0]
        assert device.failed == {B}
        add(store, report(3, "confirmed", rollout="again"))
        assert StoreLedger(store).devices("kws")[0].failed == frozenset()

    def test_a_device_is_seen_with_its_engines_signature_and_both_kinds_of_tags(self, store: Store) -> None:
        state = State(
            "d1", 1, online=True, engines={"litert": "2"}, tags={"site": "south", "hardware": "pi"}, models={"kws": "f" * 64}
        )
        with store.write() as connection:
            devices.present(connection, state)
        device = StoreLedger(store).devices("kws")[0]
        assert (device.engines, device.signature, device.online) == (frozenset({"litert"}), "f" * 64, True)
        assert device.tags == {"site": "north", "hardware": "pi"}
        assert StoreLedger(store).devices("vision")[0].signature is None

    def test_of_the_done_rollouts_only_the_newest_of_a_model_is_driven_on(self, store: Store) -> None:
        ledger = StoreLedger(store)
        for name, phase, at in [("r1", "done", 1.0), ("r2", "done", 2.0), ("r3", "rolled_back", 3.0), ("r4", "paused", 4.0)]:
            ledger.save(rollout(name, phase, at))
        assert [state.spec.id for state in ledger.rollouts()] == ["r4", "r2"]

    def test_a_state_saved_is_the_state_found(self, store: Store) -> None:
        ledger = StoreLedger(store)
        ledger.save(rollout())
        ledger.save(rollout(phase="holding"))
        ledger.append(Event(3.0, "r1", "hold", "too few devices"))
        with store.read() as connection:
            assert find_rollout(connection, "r1") == rollout(phase="holding")
            assert [(event.kind, event.body["text"]) for event in events.listed(connection)] == [("hold", "too few devices")]


class TestSums:
    """Telemetry added up."""

    def test_windows_add_per_device_and_version(self, store: Store) -> None:
        ledger = StoreLedger(store)
        sketch, histogram = LatencySketch({3: 2}), Histogram((0.5,), (1, 2))
        full = Telemetry(
            "d1",
            1,
            1,
            "kws",
            "1.0.0",
            A,
            10.0,
            60.0,
            5,
            {"oom": 1},
            {"deadline": 2, "low": 1},
            latency=sketch,
            confidence=histogram,
        )
        again = Telemetry("d1", 1, 2, "kws", "1.0.0", A, 70.0, 60.0, 7, latency=sketch, confidence=histogram)
        add(store, full, again, window(3, 20.0, 9, version="1.1.0"), window(1, 30.0, 4, device="d2"))
        assert ledger.telemetry("kws", 0.0, 100.0) == [
            TelemetrySum("d1", "1.0.0", 12, 1, 3, LatencySketch({3: 4}), Histogram((0.5,), (2, 4))),
            TelemetrySum("d1", "1.1.0", 9, 0, 0),
            TelemetrySum("d2", "1.0.0", 4, 0, 0),
        ]

    def test_a_period_is_open_at_its_end(self, store: Store) -> None:
        add(store, *(window(seq, float(seq), 2**seq) for seq in range(5)))
        assert [one.answers for one in StoreLedger(store).telemetry("kws", 1.0, 3.0)] == [2 + 4]

    def test_a_window_of_a_clock_that_runs_ahead_counts_when_its_time_comes(self, store: Store) -> None:
        ledger = StoreLedger(store)
        add(store, window(1, 100.0, 1), window(2, 200.0, 10), window(3, 200.0 + 2 * AHEAD_S, 100))
        assert [one.answers for one in ledger.telemetry("kws", 0.0, 150.0)] == [1]
        assert [one.answers for one in ledger.telemetry("kws", 0.0, 250.0)] == [11]
        assert [one.answers for one in ledger.telemetry("kws", 0.0, 150.0)] == [1]
        assert [one.answers for one in ledger.telemetry("kws", 0.0, 300.0 + 2 * AHEAD_S)] == [111]

    def test_edges_that_differ_do_not_break_the_sum(self, store: Store) -> None:
        for seq, edges in enumerate([(0.5,), (0.6,)]):
            add(store, Telemetry("d1", 1, seq, "kws", "1.0.0", A, 1.0, 60.0, 5, confidence=Histogram(edges, (1, 1))))
        (total,) = StoreLedger(store).telemetry("kws", 0.0, 10.0)
        assert (total.answers, total.confidence) == (10, Histogram((0.5,), (1, 1)))

    @given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(0, 40)), max_size=25))
    @settings(max_examples=40, deadline=None)
    def test_asking_while_windows_arrive_gives_what_asking_once_gives(self, arrivals: list[tuple[int, int, int]]) -> None:
        with TemporaryDirectory() as folder:
            store = Store(Path(folder) / "fleet.db")
            enrol(store, "d1")
            ledger = StoreLedger(store)
            for seq, (start, runs, until) in enumerate(arrivals):
                add(store, window(seq, float(start), runs))
                expected = sum(r for s, r, _ in arrivals[: seq + 1] if 5 <= s < until)
                assert sum(one.answers for one in ledger.telemetry("kws", 5.0, float(until))) == expected
            store.close()
