"""Whatever a device sends, the batch goes on: honest messages are stored, the rest is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeml.fleet.devices import Inventory
from edgeml.fleet.ingest import Inbound, Ingest
from edgeml.fleet.store import Store, devices, messages
from edgeml.wire.messages import Drift, Report, Slot, State, Telemetry, encode
from edgeml.wire.sketches import Histogram, LatencySketch

A = "a" * 64
NOW = 1000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "fleet.db")
    Inventory(made).enrol(["d1", "d2"], {}, 1.0, "test")
    yield made
    made.close()


@pytest.fixture
def ingest(store: Store) -> Ingest:
    return Ingest(store, lambda: NOW)


def report(seq: int = 1, device: str = "d1") -> Report:
    return Report(device, 1, seq, 10.0, 1, "kws", "confirmed", "1.0.0", A)


def window(seq: int = 1, **rest: object) -> Telemetry:
    plain = {"start": 0.0, "seconds": 60.0, "runs": 5} | rest
    return Telemetry("d1", 1, seq, "kws", "1.0.0", A, **plain)  # type: ignore[arg-type]


def inbound(message: Report | Telemetry | State, kind: str, device: str = "d1") -> Inbound:
    return Inbound(device, kind, encode(message))


def stored(store: Store) -> tuple[int, int]:
    with store.read() as connection:
        return messages.totals(connection)


def test_a_batch_is_stored_and_counted(store: Store, ingest: Ingest) -> None:
    state = State("d1", 4, online=True, slots={"kws": (Slot("1.0.0", A, active=True),)})
    batch = [inbound(report(), "report"), inbound(window(2), "telemetry"), inbound(state, "state"), inbound(report(), "report")]
    assert ingest.take(batch) == 4
    assert stored(store) == (1, 1)
    assert (ingest.taken, ingest.duplicates, ingest.dropped) == ({"report": 2, "telemetry": 1, "state": 1}, 1, {})
    with store.read() as connection:
        found = devices.find(connection, "d1")
        assert found is not None
        assert (found.online, found.session, found.last_seen) == (True, 4, NOW)
        assert messages.installed_of(connection) == {"d1": {"kws": "1.0.0"}}


def test_a_last_will_is_not_a_sign_of_life(store: Store, ingest: Ingest) -> None:
    ingest.take([inbound(State("d1", 4, online=False), "state")])
    with store.read() as connection:
        found = devices.find(connection, "d1")
    assert found is not None
    assert found.last_seen is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Inbound("d1", "desired", b"{}"), "unknown kind"),
        (Inbound("d9", "report", encode(report(device="d9"))), "unknown device"),
        (Inbound("d1", "report", encode(report(device="d2"))), "another device's name"),
        (Inbound("d1", "report", b""), "not a message"),
        (Inbound("d1", "report", b"[" * 60_000), "not a message"),
        (Inbound("d1", "report", b" " * 70_000 + encode(report())), "not a message"),
        (Inbound("d1", "report", b"\xff\xfe"), "not a message"),
        (Inbound("d1", "report", encode(report()).replace(b'"at":10.0', b'"at":NaN')), "not a message"),
        (Inbound("d1", "telemetry", encode(report())), "not a message"),
        (Inbound("d1", "report", encode(report(-1))), "impossible numbers"),
        (Inbound("d1", "report", encode(report(1 << 63))), "impossible numbers"),
        (Inbound("d1", "telemetry", encode(window(runs=1 << 70))), "impossible numbers"),
        (Inbound("d1", "telemetry", encode(window(errors={"oom": -5}))), "impossible numbers"),
        (Inbound("d1", "telemetry", encode(window(errors={"a": 1 << 62, "b": 1 << 62}))), "impossible numbers"),
        (Inbound("d1", "telemetry", encode(window(errors={str(n): 1 for n in range(1000)}))), "impossible numbers"),
        (Inbound("d1", "telemetry", encode(window(latency=LatencySketch({1: -1})))), "impossible numbers"),
        (Inbound("d1", "telemetry", encode(window(start=1e300))), "impossible numbers"),
        (Inbound("d1", "state", encode(State("d1", -1, online=True))), "impossible numbers"),
        (
            Inbound("d1", "state", encode(State("d1", 1, online=True, tags={str(n): "" for n in range(500)}))),
            "impossible numbers",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_honest_device_sends_is_counted_and_dropped(store: Store, ingest: Ingest, bad: Inbound, reason: str) -> None:
    assert ingest.take([bad, inbound(report(5), "report")]) == 1
    assert ingest.dropped == {reason: 1}
    assert stored(store) == (1, 0)


def test_a_histogram_that_contradicts_itself_is_dropped(ingest: Ingest) -> None:
    text = encode(window(confidence=Histogram((0.5,), (1, 2))))
    assert ingest.take([Inbound("d1", "telemetry", text.replace(b"[1,2]", b"[1,2,3]"))]) == 0
    assert ingest.dropped == {"not a message": 1}


@given(st.sampled_from(["report", "telemetry", "state", "desired", ""]), st.binary(max_size=300))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_raise(ingest: Ingest, kind: str, payload: bytes) -> None:
    ingest.take([Inbound("d1", kind, payload)])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([report(), window(2), State("d1", 1, online=True)]), st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_field_of_any_other_value_raises(ingest: Ingest, message: Report | Telemetry | State, data: st.DataObject) -> None:
    fields = {name: msgspec.to_builtins(getattr(message, name)) for name in message.__struct_fields__}
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(_JSON)
    ingest.take([Inbound("d1", type(message).__name__.lower(), msgspec.json.encode(fields))])


def test_a_device_that_drifts_shows_until_it_is_back(store: Store, ingest: Ingest) -> None:
    far, near = Drift(1800, 0.4, 0.05, alarm=True), Drift(900, 0.01, 0.001)

    def shown() -> dict[str, dict[str, tuple[str, ...]]]:
        with store.read() as connection:
            return messages.drifts_of(connection)

    ingest.take([inbound(window(2, drift={"input:x": far, "classes": near}), "telemetry")])
    assert shown() == {"d1": {"kws": ("input:x",)}}
    ingest.take([inbound(window(1), "telemetry")])  # came late: an older window says nothing about now
    assert shown() == {"d1": {"kws": ("input:x",)}}
    ingest.take([inbound(window(3, drift={"input:x": near}), "telemetry")])
    assert shown() == {}
