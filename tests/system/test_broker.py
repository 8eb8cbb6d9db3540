"""The same service on both brokers: what reaches whom, and what nobody can do to another's device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeml.fleet.broker import Address, free_port
from edgeml.fleet.brokers import find_mosquitto
from edgeml.fleet.config import Config
from edgeml.fleet.devices import SERVICE_USER
from edgeml.fleet.service import Fleet
from edgeml.fleet.store import devices, messages
from edgeml.wire.messages import Desired, Report, State, Target, Telemetry, decode, encode, topic
from tests.system.fleet_clients import Peer, until

SHA = "a" * 64
BROKERS = [
    pytest.param("mosquitto", marks=pytest.mark.skipif(find_mosquitto() is None, reason="no mosquitto here")),
    "amqtt",
]


class Site:
    """A running service with two enrolled devices."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        assert fleet.broker is not None
        self.address: Address = fleet.broker.address
        enrolled = fleet.inventory.enrol(["cam-1", "cam-2"], {}, 1.0, "test")
        self.tokens = {one.id: one.token for one in enrolled}

    def peer(self, device: str, **rest: object) -> Peer:
        return Peer(self.address, device, self.tokens[device], **rest)  # type: ignore[arg-type]

    def want(self, device: str, version: str) -> None:
        with self.fleet.store.write() as connection:
            devices.want(connection, device, Target("kws", version, SHA, f"models/kws/{version}.edgeml"))
        self.fleet.tell([device])

    def row(self, device: str) -> devices.DeviceRow:
        with self.fleet.store.read() as connection:
            found = devices.find(connection, device)
        assert found is not None
        return found

    def reports(self, device: str) -> list[Report]:
        with self.fleet.store.read() as connection:
            return messages.reports_of(connection, device)


@pytest.fixture(params=BROKERS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    config = Config(tmp_path / "fleet", broker=request.param, mqtt_port=free_port("127.0.0.1"), tick_s=0.05)
    with Fleet(config) as fleet:
        yield Site(fleet)


def report(device: str, seq: int, state: str = "confirmed") -> Report:
    return Report(device, 1, seq, 10.0, 1, "kws", state, "1.0.0", SHA)  # type: ignore[arg-type]


def test_what_is_wanted_reaches_a_device_that_connects_later(site: Site) -> None:
    site.want("cam-1", "1.0.0")
    until(lambda: site.row("cam-1").told_rev == 1, "telling the broker")
    with site.peer("cam-1") as peer:
        assert peer.subscribe(topic("default", "cam-1", "desired"))
        peer.wait(lambda: bool(peer.got), "a retained message")
        desired = decode(Desired, peer.got[0][1])
    assert (desired.rev, desired.targets[0].version) == (1, "1.0.0")


def test_a_connected_device_hears_of_every_change(site: Site) -> None:
    with site.peer("cam-1") as peer:
        peer.subscribe(topic("default", "cam-1", "desired"))
        for version in ("1.0.0", "1.1.0", "1.0.0"):
            rev = site.row("cam-1").desired.rev + 1
            site.want("cam-1", version)
            peer.expect(encode(site.row("cam-1").desired))
            assert site.row("cam-1").desired.rev == rev
        assert decode(Desired, peer.got[-1][1]).targets[0].version == "1.0.0"


def test_a_report_sent_five_times_is_stored_once(site: Site) -> None:
    with site.peer("cam-1") as peer:
        for _ in range(5):
            peer.publish(topic("default", "cam-1", "report"), encode(report("cam-1", 7)))
        peer.publish(topic("default", "cam-1", "report"), encode(report("cam-1", 8)))
        until(lambda: len(site.reports("cam-1")) == 2, "two reports")
    assert [one.seq for one in site.reports("cam-1")] == [8, 7]
    until(lambda: site.fleet.ingest.duplicates == 4, "counting the repeated ones")


def test_telemetry_arrives(site: Site) -> None:
    window = Telemetry("cam-1", 1, 3, "kws", "1.0.0", SHA, start=0.0, seconds=60.0, runs=12, errors={"deadline": 2})
    with site.peer("cam-1") as peer:
        peer.publish(topic("default", "cam-1", "telemetry"), encode(window))

        def windows() -> list[Telemetry]:
            with site.fleet.store.read() as connection:
                return messages.windows_of(connection, "cam-1")

        until(lambda: windows() == [window], "the window")


def test_a_last_will_marks_the_device_away_and_one_of_an_older_session_does_not(site: Site) -> None:
    place = topic("default", "cam-1", "state")
    first = site.peer("cam-1", will=(place, encode(State("cam-1", 1, online=False))))
    first.publish(place, encode(State("cam-1", 1, online=True)))
    until(lambda: site.row("cam-1").online, "the birth")
    first.vanish()
    until(lambda: not site.row("cam-1").online, "the last will")
    with site.peer("cam-1") as again:
        again.publish(place, encode(State("cam-1", 2, online=True)))
        again.publish(place, encode(State("cam-1", 1, online=False)))  # late: session 1 is over
        again.publish(topic("default", "cam-1", "report"), encode(report("cam-1", 1)))
        until(lambda: bool(site.reports("cam-1")), "the report behind it")
        assert site.row("cam-1").online
        assert site.row("cam-1").session == 2


@pytest.mark.parametrize(
    ("user", "password", "client_id"),
    [("cam-1", "wrong", None), ("nobody", "wrong", None), (SERVICE_USER, "", None), ("", "", "cam-1")],
    ids=["wrong password", "not enrolled", "the service's name", "no name"],
)
def test_strangers_are_refused(site: Site, user: str, password: str, client_id: str | None) -> None:
    peer = Peer(site.address, user, password, client_id=client_id)
    assert "Not authorized" in peer.reasons[0] or "Bad user name" in peer.reasons[0]
    peer.close()


def test_a_device_removed_is_refused_at_once(site: Site) -> None:
    site.fleet.inventory.remove("cam-1", 2.0, "test")
    peer = site.peer("cam-1")
    assert not peer.is_in
    peer.close()


def test_a_device_enrolled_while_running_is_let_in_at_once(site: Site) -> None:
    (enrolled,) = site.fleet.inventory.enrol(["cam-3"], {}, 2.0, "test")
    with Peer(site.address, "cam-3", enrolled.token) as peer:
        assert peer.is_in


@pytest.mark.parametrize("pattern", ["edgeml/v1/default/d/cam-2/desired", "edgeml/v1/default/d/+/desired", "edgeml/#", "#"])
def test_a_device_cannot_read_what_another_is_told(site: Site, pattern: str) -> None:
    with site.peer("cam-1") as spy, site.peer("cam-2") as other:
        spy.subscribe(pattern)
        spy.subscribe(topic("default", "cam-1", "desired"))
        other.subscribe(topic("default", "cam-2", "desired"))
        site.want("cam-2", "6.6.6")
        other.wait(lambda: bool(other.got), "its own news")
        site.want("cam-1", "1.0.0")
        spy.wait(lambda: bool(spy.got), "its own news, which came after the other's")
        assert {where for where, _ in spy.got} == {topic("default", "cam-1", "desired")}


def test_a_device_cannot_read_what_another_says(site: Site) -> None:
    with site.peer("cam-1") as spy, site.peer("cam-2") as other:
        spy.subscribe(topic("default", "cam-2", "report"))
        spy.subscribe(topic("default", "cam-1", "desired"))
        other.publish(topic("default", "cam-2", "report"), encode(report("cam-2", 1)))
        until(lambda: bool(site.reports("cam-2")), "the report")
        site.want("cam-1", "1.0.0")
        spy.wait(lambda: bool(spy.got), "its own news")
        assert {where for where, _ in spy.got} == {topic("default", "cam-1", "desired")}


def test_a_device_cannot_speak_for_another(site: Site) -> None:
    with site.peer("cam-1") as liar:
        liar.publish(topic("default", "cam-2", "report"), encode(report("cam-2", 1)))
        liar.publish(topic("default", "cam-1", "report"), encode(report("cam-2", 2)))  # its own topic, another's name inside
        liar.publish(topic("default", "cam-1", "report"), encode(report("cam-1", 3)))
        until(lambda: bool(site.reports("cam-1")), "its own report")
    assert site.reports("cam-2") == []
    assert site.fleet.ingest.dropped == {"another device's name": 1}


def test_a_device_cannot_tell_another_what_to_run(site: Site) -> None:
    forged = encode(Desired(99, (Target("kws", "6.6.6", SHA, "models/kws/6.6.6.edgeml"),)))
    with site.peer("cam-1") as liar, site.peer("cam-2") as victim:
        victim.subscribe(topic("default", "cam-2", "desired"))
        liar.publish(topic("default", "cam-2", "desired"), forged, retain=True)
        liar.publish(topic("default", "cam-1", "desired"), forged, retain=True)
        site.want("cam-2", "1.0.0")
        victim.wait(lambda: bool(victim.got), "the service's word")
    with site.peer("cam-2") as later:
        later.subscribe(topic("default", "cam-2", "desired"))
        later.wait(lambda: bool(later.got), "the retained message")
    assert forged not in [got for _, got in (*victim.got, *later.got)]


def test_a_last_will_cannot_speak_for_another(site: Site) -> None:
    place = topic("default", "cam-2", "state")
    with site.peer("cam-2") as victim:
        victim.publish(place, encode(State("cam-2", 1, online=True)))
        until(lambda: site.row("cam-2").online, "the birth")
        liar = site.peer("cam-1", will=(place, encode(State("cam-2", 9, online=False))))
        if liar.is_in:
            liar.vanish()
        with site.peer("cam-1") as honest:
            honest.publish(topic("default", "cam-1", "report"), encode(report("cam-1", 1)))
            until(lambda: bool(site.reports("cam-1")), "a report sent after the will")
        assert site.row("cam-2").online


def test_a_device_cannot_throw_another_out_by_taking_its_client_id(site: Site) -> None:
    with site.peer("cam-2") as victim:
        victim.subscribe(topic("default", "cam-2", "desired"))
        liar = site.peer("cam-1", client_id="cam-2")
        stranger = Peer(site.address, "cam-1", "wrong", client_id="cam-2")
        site.want("cam-2", "1.0.0")
        victim.wait(lambda: bool(victim.got), "news on the same connection")
        assert victim.drops == 0
        assert victim.is_in
        for peer in (liar, stranger):
            peer.close()


def test_a_device_that_reconnects_gets_only_its_own_retained_message(site: Site) -> None:
    for device in ("cam-1", "cam-2"):
        site.want(device, "1.0.0")
    until(lambda: all(site.row(device).told_rev == 1 for device in ("cam-1", "cam-2")), "telling both")
    with site.peer("cam-1") as first, site.peer("cam-2") as other:
        first.subscribe(topic("default", "cam-1", "desired"))
        other.subscribe(topic("default", "cam-2", "desired"))
        first.vanish()
        with site.peer("cam-1") as again:
            again.subscribe(topic("default", "cam-1", "desired"))
            again.wait(lambda: bool(again.got), "the retained message")
            site.want("cam-1", "1.1.0")
            again.wait(lambda: any(decode(Desired, got).rev == 2 for _, got in again.got), "the next revision")
            assert {where for where, _ in again.got} == {topic("default", "cam-1", "desired")}


def test_garbage_is_counted_and_the_rest_goes_on(site: Site) -> None:
    place = topic("default", "cam-1", "report")
    with site.peer("cam-1") as peer:
        for payload in (b"", b"{", b"\xff" * 100, b"[" * 2000, encode(report("cam-1", -1)), b'{"device":"cam-1"}'):
            peer.publish(place, payload)
        peer.publish(place, encode(report("cam-1", 1)))
        until(lambda: len(site.reports("cam-1")) == 1, "the good one")
    assert site.fleet.ingest.dropped == {"not a message": 5, "impossible numbers": 1}


@pytest.mark.skipif(find_mosquitto() is None, reason="no mosquitto here")
def test_the_password_file_is_what_mosquittos_own_tool_writes(tmp_path: Path) -> None:
    """Same format, same algorithm: the broker's own tool must agree, or be absent."""
    if shutil.which("mosquitto_passwd", path="/usr/bin:/usr/sbin") is None:
        pytest.skip("no mosquitto_passwd here")
    import subprocess

    from edgeml.fleet.devices import password_fits

    path = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(path), "cam-1", "secret"], check=True, capture_output=True)
    stored = path.read_text().strip().partition(":")[2]
    assert password_fits("secret", stored)
    assert not password_fits("Secret", stored)
