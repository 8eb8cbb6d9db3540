"""The service as an operator and its devices meet it: a process that is started, killed, restarted, and told wrong things."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tuf.ngclient import Updater  # type: ignore[attr-defined]

from edgeml.fleet.brokers import find_mosquitto
from edgeml.fleet.store import Store, events
from edgeml.runtime.config import load_config
from edgeml.wire.errors import LinkError
from edgeml.wire.messages import Desired, Report, State, decode, encode, topic
from tests.system.fleet_clients import Peer, until
from tests.system.fleet_process import ServiceProcess, run
from tests.unit.fleet_bundles import make_bundle

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="no mosquitto here")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path) as made:
        yield made


def enrol(service: ServiceProcess, *ids: str) -> dict[str, str]:
    """Device id -> token; each has said that it runs onnxruntime."""
    with service.client() as client:
        tokens = {one["id"]: str(one["token"]) for one in client.post("/v1/devices", {"ids": list(ids)})["devices"]}
    for device, token in tokens.items():
        birth = json.loads(encode(State(device, 1, online=True, engines={"onnxruntime": "1"})))
        headers = {"Authorization": f"Bearer {token}"}
        httpx.post(f"{service.url}/v1/reports", json=[{"kind": "state", "body": birth}], headers=headers).raise_for_status()
    return tokens


def wanted(service: ServiceProcess, token: str) -> Desired:
    """By polling."""
    answer = httpx.get(f"{service.url}/v1/desired", headers={"Authorization": f"Bearer {token}"})
    return decode(Desired, answer.content)


def version_wanted(desired: Desired) -> str | None:
    return desired.targets[0].version if desired.targets else None


def retained(service: ServiceProcess, token: str) -> Desired:
    """What a device that connects now is told by the broker first."""
    with Peer(service.mqtt, "cam-1", token) as peer:
        peer.subscribe(topic("default", "cam-1", "desired"))
        peer.wait(lambda: bool(peer.got), "a retained message")
        return decode(Desired, peer.got[0][1])


def roll_out(service: ServiceProcess, version: str) -> dict[str, Any]:
    with service.client() as client:
        asked = {"model": "kws", "version": version, "canary": 1.0, "waves": [], "hold_back": 0.0, "soak_s": 3600.0}
        answer: dict[str, Any] = client.post("/v1/rollouts", asked)
        return answer


def publish(service: ServiceProcess, bundle: Path) -> None:
    with service.client() as client:
        client.publish(bundle)


def install_like_a_device(service: ServiceProcess, path: str, folder: Path) -> bytes:
    """Refresh the signed metadata from the first root, then fetch and check the target."""
    folder.mkdir(exist_ok=True)
    root = httpx.get(f"{service.url}/tuf/metadata/1.root.json").content
    updater = Updater(str(folder), f"{service.url}/tuf/metadata/", str(folder), f"{service.url}/tuf/targets/", bootstrap=root)
    target = updater.get_targetinfo(path)
    assert target is not None
    return Path(updater.download_target(target, str(folder / "bundle"))).read_bytes()


@pytest.mark.slow
def test_an_operator_gets_from_nothing_to_a_rollout_by_the_command_line(service: ServiceProcess, tmp_path: Path) -> None:
    service.start()
    bundle = make_bundle(tmp_path)
    assert "published kws@1.0.0" in service.cli("publish", str(bundle)).stdout
    assert "published already" in service.cli("publish", str(bundle)).stdout
    place = tmp_path / "device" / "agent.toml"
    added = service.cli("devices", "add", "cam-1", "--tag", "site=north", "--tag", 'name=the "big" one', "-o", str(place))
    assert added.returncode == 0, added.stderr
    config = load_config(place)
    assert config.service is not None
    assert config.broker is not None
    assert (config.device.id, config.device.tags) == ("cam-1", {"site": "north", "name": 'the "big" one'})
    assert (config.service.url, config.broker.url) == (service.url, service.mqtt.url)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert (place.parent / "root.json").read_bytes() == httpx.get(f"{service.url}/tuf/metadata/1.root.json").content
    assert service.cli("devices", "add", "cam-1", "-o", str(place)).returncode == 2
    assert service.cli("devices", "add", "cam-1").returncode == 2

    state = State("cam-1", 1, online=True, engines={"onnxruntime": "1"})
    with Peer(service.mqtt, "cam-1", config.service.token) as peer:
        peer.publish(topic("default", "cam-1", "state"), encode(state))
        peer.subscribe(topic("default", "cam-1", "desired"))
        until(lambda: service.json("devices", "list")[0]["online"], "presence")
        created = service.cli(
            "rollout", "create", "kws@1.0.0", "--canary", "100%", "--waves", "", "--hold-back", "0", "--soak", "2h"
        )
        assert created.returncode == 0, created.stderr
        peer.wait(lambda: any(version_wanted(decode(Desired, got)) == "1.0.0" for _, got in peer.got), "the version")
    status = service.cli("rollout", "status")
    assert "running" in status.stdout
    assert "device told have settled" in status.stdout
    for command, phase in [("pause", "paused"), ("resume", "running"), ("rollback", "rolling_back")]:
        assert service.json("rollout", command)["phase"] == phase
    assert "enrolled" in service.cli("events").stdout
    assert [row["version"] for row in service.json("models")] == ["1.0.0"]


def test_a_lost_token_is_renewed_and_the_old_one_ends(service: ServiceProcess, tmp_path: Path) -> None:
    service.start()
    old, new = tmp_path / "old" / "agent.toml", tmp_path / "new" / "agent.toml"
    assert service.cli("devices", "add", "cam-1", "--tag", "site=north", "-o", str(old)).returncode == 0
    assert service.cli("devices", "renew", "cam-1", "-o", str(old)).returncode == 2, "it would overwrite a file"
    assert service.cli("devices", "renew", "cam-1", "-o", str(new)).returncode == 0
    assert service.cli("devices", "renew", "cam-2", "-o", str(tmp_path / "none.toml")).returncode != 0
    assert not (tmp_path / "none.toml").exists()
    before, after = (tomllib.loads(path.read_text()) for path in (old, new))
    assert (
        after["device"] == before["device"] == {"id": "cam-1", "tenant": "default", "data": "data", "tags": {"site": "north"}}
    )
    tokens = [one["service"].pop("token") for one in (before, after)]
    assert before == after
    ask = [httpx.get(f"{service.url}/v1/desired", headers={"Authorization": f"Bearer {token}"}) for token in tokens]
    assert [answer.status_code for answer in ask] == [401, 200]
    assert (new.parent / "root.json").read_bytes() == (old.parent / "root.json").read_bytes()


def test_bulk_enrolment_writes_a_line_for_each_device(service: ServiceProcess, tmp_path: Path) -> None:
    service.start()
    place = tmp_path / "many" / "devices.jsonl"
    done = service.cli("devices", "add", "--bulk", "250", "--prefix", "sim", "--tag", "hardware=pi", "-o", str(place))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    assert [lines[0]["id"], lines[-1]["id"], len({line["token"] for line in lines})] == ["sim-0001", "sim-0250", 250]
    assert len(service.json("devices", "list")) == 250
    with Peer(service.mqtt, "sim-0250", lines[-1]["token"]) as peer:
        assert peer.is_in


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rollout", "create", "kws@9.9.9"], 2, "kws@9.9.9 is not published"),
        (["rollout", "create", "kws"], 2, "MODEL@VERSION"),
        (["rollout", "create", "kws@1.0.0", "--canary", "lots"], 2, "like 5% or 0.05"),
        (["rollout", "status", "none"], 2, "no rollout 'none'"),
        (["rollout", "pause"], 2, "no rollout yet"),
        (["publish", "nothing.edgeml"], 2, "nothing.edgeml"),
        (["devices", "add"], 2, "an ID, or --bulk"),
        (["devices", "add", "a/b"], 2, "device id 'a/b'"),
        (["devices", "add", "x", "--tag", "north"], 2, "KEY=VALUE"),
        (["devices", "remove", "nobody"], 2, "no device 'nobody'"),
        (["keys", "init"], 2, "--solo"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_answered_in_words(running: ServiceProcess, arguments: list[str], code: int, words: str) -> None:
    done = running.cli(*arguments)
    assert done.returncode == code, done
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One service for the tests that leave no trace in it."""
    with ServiceProcess(tmp_path_factory.mktemp("running")) as made:
        yield made.start()


def test_a_damaged_bundle_is_refused_with_exit_3(running: ServiceProcess, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    data = bytearray(bundle.read_bytes())
    data[-100] ^= 1
    bundle.write_bytes(data)
    done = running.cli("publish", str(bundle))
    assert (done.returncode, running.json("models")) == (3, [])


def test_a_service_that_is_not_there_is_exit_6(tmp_path: Path) -> None:
    (tmp_path / "operator.key").write_text("key\n")
    done = run("models", "--url", "http://127.0.0.1:9", data=tmp_path)
    assert done.returncode == 6
    assert "no fleet service at http://127.0.0.1:9" in done.stderr
    assert run("models", data=tmp_path / "nowhere").returncode == 2


def test_a_taken_port_is_exit_6_and_leaves_nothing_running(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        http = run("serve", "--port", port, "--mqtt-port", "0", data=tmp_path / "a")
        mqtt = run("serve", "--port", "0", "--mqtt-port", port, data=tmp_path / "b")
    assert (http.returncode, mqtt.returncode) == (6, 6)
    assert f"port {port}" in http.stderr
    assert "--port" in http.stderr
    assert "--mqtt-port" in mqtt.stderr


def test_two_services_cannot_share_a_folder(running: ServiceProcess) -> None:
    done = run("serve", "--port", "0", "--mqtt-port", "0", data=running.data)
    assert done.returncode == 6
    assert "another service uses" in done.stderr


def test_a_stopped_service_takes_its_broker_with_it(service: ServiceProcess) -> None:
    service.start()
    assert service.stop() == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", service.mqtt_port), 1)
    assert not (service.data / "service.json").exists()
    with pytest.raises(LinkError), service.client() as client:
        client.get("/v1/models")


def test_an_outside_broker_that_is_away_does_not_hinder_polling(tmp_path: Path) -> None:
    with ServiceProcess(tmp_path, broker="mqtt://nobody:secret@127.0.0.1:9") as service:
        service.start()
        (token,) = enrol(service, "cam-1").values()
        publish(service, make_bundle(tmp_path))
        roll_out(service, "1.0.0")
        until(lambda: version_wanted(wanted(service, token)) == "1.0.0", "the version, by polling")
        assert "secret" not in (tmp_path / "service.log").read_text()


@needs_mosquitto
def test_a_broker_that_dies_is_started_again_and_everyone_is_told_again(service: ServiceProcess, tmp_path: Path) -> None:
    service.start()
    (token,) = enrol(service, "cam-1").values()
    publish(service, make_bundle(tmp_path))
    roll_out(service, "1.0.0")
    until(lambda: version_wanted(wanted(service, token)) == "1.0.0", "the decision")
    pid = int((service.data / "broker" / "mosquitto.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    until(lambda: int((service.data / "broker" / "mosquitto.pid").read_text()) != pid, "a new broker")
    until(lambda: version_wanted(retained(service, token)) == "1.0.0", "the retained message")


@needs_mosquitto
def test_what_devices_say_while_the_service_is_dead_is_not_lost(service: ServiceProcess) -> None:
    service.start()
    (token,) = enrol(service, "cam-1").values()
    until(lambda: httpx.get(f"{service.url}/healthz").json()["broker"] == "connected", "the link")
    with Peer(service.mqtt, "cam-1", token) as peer:
        service.kill()
        for seq in range(50):
            peer.publish(topic("default", "cam-1", "report"), encode(Report("cam-1", 1, seq, 1.0, 1, "kws", "confirmed")))
        assert peer.drops == 0
        service.start()
        with service.client() as client:

            def seqs() -> list[int]:
                return [one["seq"] for one in client.get("/v1/devices/cam-1")["reports"]]

            until(lambda: len(seqs()) == 50, "all reports")
            assert seqs() == list(reversed(range(50)))
        assert peer.drops == 0  # the broker was taken over, not replaced


PUBLISH_KILLS = [
    "edgeml.fleet.registry:Registry.publish|before|1",
    "edgeml.fleet.registry:Registry._keep|after|1",
    "edgeml.fleet.trust:Trust.sign_target|before|1",
    "edgeml.fleet.trust:write_whole|after|1",
    "edgeml.fleet.trust:write_whole|after|2",
    "edgeml.fleet.trust:write_whole|after|3",
    "edgeml.fleet.store.versions:set_state|before|1",
]


@pytest.mark.slow
@pytest.mark.parametrize("moment", PUBLISH_KILLS)
def test_a_publish_killed_at_any_moment_ends_published_or_can_be_repeated(
    service: ServiceProcess, tmp_path: Path, moment: str
) -> None:
    service.start()
    publish(service, make_bundle(tmp_path, version="0.9.0"))
    service.stop()
    service.start(moment)
    bundle = make_bundle(tmp_path)
    with pytest.raises(LinkError):
        publish(service, bundle)
    service.wait_killed()
    service.start()
    old = install_like_a_device(service, "models/kws/0.9.0.edgeml", tmp_path / "device")
    assert old == (tmp_path / "kws-0.9.0.edgeml").read_bytes()
    publish(service, bundle)
    assert install_like_a_device(service, "models/kws/1.0.0.edgeml", tmp_path / "device") == bundle.read_bytes()
    assert [(row["version"], row["state"]) for row in service.json("models")] == [
        ("1.0.0", "published"),
        ("0.9.0", "published"),
    ]
    assert_audit_holds(service)


ROLLOUT_KILLS = [
    "edgeml.fleet.api.rollouts:save_rollout|after|1",
    "edgeml.fleet.store.ledger:_tell|before|1",
    "edgeml.fleet.store.ledger:StoreLedger.tell|after|1",
    "edgeml.fleet.store.devices:told|before|2",
    "edgeml.fleet.link:Link._tell_batch|before|2",
]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["forward", "back"])
@pytest.mark.parametrize("moment", ROLLOUT_KILLS)
def test_a_rollout_killed_at_any_moment_ends_where_it_was_going(
    service: ServiceProcess, tmp_path: Path, moment: str, step: str
) -> None:
    """Either the operator was answered, or sees after the restart that the command was not taken and gives it again."""
    service.start()
    (token,) = enrol(service, "cam-1").values()
    publish(service, make_bundle(tmp_path))
    if step == "back":
        roll_out(service, "1.0.0")
        until(lambda: version_wanted(wanted(service, token)) == "1.0.0", "the version")
    service.stop()
    service.start(moment)
    command(service, step)
    service.wait_killed()
    service.start()
    goal = "1.0.0" if step == "forward" else None
    with service.client() as client:
        phases = [one["phase"] for one in client.get("/v1/rollouts")]
    if phases in ([], ["running"]) and version_wanted(wanted(service, token)) != goal:
        command(service, step)
    until(lambda: version_wanted(wanted(service, token)) == goal, f"{goal}, by polling")
    final = wanted(service, token)
    until(lambda: retained(service, token) == final, "the same, by the broker")
    assert_audit_holds(service)


def command(service: ServiceProcess, step: str) -> None:
    """Start or roll back; the service may die over it."""
    try:
        if step == "forward":
            roll_out(service, "1.0.0")
        else:
            with service.client() as client:
                client.post(f"/v1/rollouts/{client.get('/v1/rollouts')[0]['id']}/rollback")
    except LinkError:
        pass


def assert_audit_holds(service: ServiceProcess) -> None:
    store = Store(service.data / "fleet.db")
    with store.read() as connection:
        assert events.first_break(connection) is None
    store.close()


def test_agent_toml_is_toml_for_any_tag(service: ServiceProcess, tmp_path: Path) -> None:
    service.start()
    place = tmp_path / "agent.toml"
    tags = {"a.b": "c]", "site": "Straße \\ 'x' \u2603 \U0001f600"}
    options = [word for key, value in tags.items() for word in ("--tag", f"{key}={value}")]
    assert service.cli("devices", "add", "cam-1", *options, "-o", str(place)).returncode == 0
    assert tomllib.loads(place.read_text())["device"]["tags"] == tags
