"""The HTTP side on a real store and real keys, without sockets: what a device, an operator and a stranger get."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from edgeml.fleet.api.app import build_app
from edgeml.fleet.api.http import BODY_LIMIT_BYTES
from edgeml.fleet.config import Config
from edgeml.fleet.service import Fleet
from edgeml.fleet.store.tables import events
from edgeml.wire.messages import Report, encode
from tests.unit.fleet_bundles import make_bundle

A = "a" * 64


class Desk:
    """A service with its HTTP side."""

    def __init__(self, fleet: Fleet, client: TestClient) -> None:
        self.fleet = fleet
        self.http = client
        self.operator = {"Authorization": f"Bearer {fleet.operator_key}"}

    def get(self, path: str, **rest: Any) -> Any:
        return self.http.get(path, headers=self.operator, **rest)

    def post(self, path: str, **rest: Any) -> Any:
        return self.http.post(path, headers=self.operator, **rest)

    def enrol(self, *ids: str, **tags: str) -> dict[str, dict[str, str]]:
        """Device id -> the headers it authenticates with."""
        answer = self.post("/v1/devices", json={"ids": ids, "tags": tags})
        assert answer.status_code == 201, answer.text
        tokens = {one["id"]: {"Authorization": f"Bearer {one['token']}"} for one in answer.json()["devices"]}
        for device, headers in tokens.items():
            birth = {"device": device, "session": 1, "online": True, "engines": {"onnxruntime": "1"}}
            assert self.http.post("/v1/reports", headers=headers, json=[{"kind": "state", "body": birth}]).json() == {
                "accepted": 1
            }
        return tokens

    def publish(self, bundle: Path) -> Any:
        return self.post("/v1/models", content=bundle.read_bytes())

    def roll_out(self, version: str = "1.0.0", **rest: Any) -> Any:
        asked = {"model": "kws", "version": version, "canary": 1.0, "waves": [], "hold_back": 0.0, "soak_s": 0.0}
        return self.post("/v1/rollouts", json=asked | rest)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with (
        Fleet(Config(tmp_path / "fleet", broker="none", tick_s=0.02)) as fleet,
        TestClient(build_app(fleet), raise_server_exceptions=False) as client,
    ):
        yield Desk(fleet, client)


def report(seq: int, rev: int = 1) -> dict[str, Any]:
    import json

    message = Report("cam-1", 1, seq, 10.0, rev, "kws", "confirmed", "1.0.0", A)
    return {"kind": "report", "body": json.loads(encode(message))}


@pytest.mark.parametrize("path", ["/v1/overview", "/v1/models", "/v1/devices", "/v1/devices/x", "/v1/rollouts", "/v1/events"])
@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}], ids=["none", "wrong", "basic"]
)
def test_an_operators_page_needs_the_operators_key(desk: Desk, path: str, headers: dict[str, str]) -> None:
    answer = desk.http.get(path, headers=headers)
    assert answer.status_code == 401
    assert "key" in answer.json()["error"]


def test_a_devices_token_opens_no_operators_page_and_the_operators_key_is_no_device(desk: Desk) -> None:
    device = desk.enrol("cam-1")["cam-1"]
    assert desk.http.get("/v1/devices", headers=device).status_code == 401
    assert desk.http.post("/v1/models", headers=device, content=b"x").status_code == 401
    assert desk.get("/v1/desired").status_code == 401


def test_a_device_polls_what_is_wanted_and_304_saves_the_answer(desk: Desk, tmp_path: Path) -> None:
    device = desk.enrol("cam-1")["cam-1"]
    first = desk.http.get("/v1/desired", headers=device)
    assert (first.status_code, first.headers["etag"], first.json()) == (200, '"0"', {"rev": 0, "targets": []})
    same = desk.http.get("/v1/desired", headers=device | {"If-None-Match": '"0"'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", '"0"')
    desk.publish(make_bundle(tmp_path))
    assert desk.roll_out(confirm_small=False).status_code == 201
    news = desk.http.get("/v1/desired?wait=10", headers=device | {"If-None-Match": '"0"'})
    assert (news.status_code, news.headers["etag"]) == (200, '"1"')
    (target,) = news.json()["targets"]
    assert (target["model"], target["version"], target["path"]) == ("kws", "1.0.0", "models/kws/1.0.0.edgeml")


def test_a_long_poll_is_answered_when_there_is_news(desk: Desk, tmp_path: Path) -> None:
    device = desk.enrol("cam-1")["cam-1"]
    desk.publish(make_bundle(tmp_path))
    answers: list[Any] = []

    def poll() -> None:
        answers.append(desk.http.get("/v1/desired?wait=30", headers=device | {"If-None-Match": '"0"'}))

    waiting = threading.Thread(target=poll)
    waiting.start()
    desk.roll_out()
    waiting.join(10)
    assert [answer.json()["rev"] for answer in answers] == [1]


def test_a_long_poll_without_news_ends_with_304(desk: Desk) -> None:
    device = desk.enrol("cam-1")["cam-1"]
    assert desk.http.get("/v1/desired?wait=0.05", headers=device | {"If-None-Match": '"0"'}).status_code == 304


def test_reports_over_http_are_taken_once(desk: Desk) -> None:
    device = desk.enrol("cam-1")["cam-1"]
    batch = [report(1), report(2), report(2), {"kind": "nonsense", "body": {}}, {"kind": "report", "body": []}]
    for _ in range(2):
        answer = desk.http.post("/v1/reports", headers=device, json=batch)
        assert (answer.status_code, answer.json()) == (200, {"accepted": 3})
    page = desk.get("/v1/devices/cam-1").json()
    assert [one["seq"] for one in page["reports"]] == [2, 1]
    assert page["device"]["last_seen"] is not None


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'[{"kind": 1, "body": {}}]', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_list_of_messages_is_refused_in_words(desk: Desk, body: bytes) -> None:
    device = desk.enrol("cam-1")["cam-1"]
    answer = desk.http.post("/v1/reports", headers=device, content=body)
    assert answer.status_code == 400
    assert "the body is not a list" in answer.json()["error"]


def test_a_body_too_long_is_refused(desk: Desk) -> None:
    device = desk.enrol("cam-1")["cam-1"]
    answer = desk.http.post("/v1/reports", headers=device, content=b" " * (BODY_LIMIT_BYTES + 1))
    assert answer.status_code == 413
    assert "longer than" in answer.json()["error"]


def test_a_published_bundle_can_be_fetched_in_pieces_by_anyone(desk: Desk, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    row = desk.publish(bundle).json()
    url = f"/tuf/targets/models/kws/{row['bundle_sha256']}.1.0.0.edgeml"
    whole = desk.http.get(url)
    assert whole.content == bundle.read_bytes()
    assert "immutable" in whole.headers["cache-control"]
    piece = desk.http.get(url, headers={"Range": "bytes=100-199"})
    assert (piece.status_code, piece.content) == (206, bundle.read_bytes()[100:200])
    rest = desk.http.get(url, headers={"Range": "bytes=1000-"})
    assert (rest.status_code, rest.content) == (206, bundle.read_bytes()[1000:])
    assert desk.http.get(url, headers={"Range": f"bytes={len(whole.content)}-"}).status_code == 416


@pytest.mark.parametrize(
    "path",
    [
        "/tuf/metadata/2.root.json",
        "/tuf/metadata/..%2f..%2foperator.key",
        "/tuf/metadata/1.root.json.bak",
        "/tuf/targets/..%2f..%2fkeys/root.pem",
        "/tuf/targets/models/kws/1.0.0.edgeml",
        "/tuf/targets/models/..%2f..%2f..%2foperator.key",
        "/nothing",
    ],
)
def test_nothing_but_the_signed_files_is_served(desk: Desk, path: str) -> None:
    answer = desk.http.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]
    assert desk.http.get("/tuf/metadata/1.root.json").status_code == 200


def test_publishing_answers_201_then_200_then_409_and_422_for_damage(desk: Desk, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    assert desk.publish(bundle).status_code == 201
    assert desk.publish(bundle).status_code == 200
    other = desk.publish(make_bundle(tmp_path, model=b"other"))
    assert other.status_code == 409
    assert "new version" in other.json()["error"]
    bundle.write_bytes(bundle.read_bytes()[:-1])
    damaged = desk.publish(bundle)
    assert damaged.status_code == 422
    assert desk.publish(bundle).json()["kind"] == "BundleError"
    assert [(row["version"], row["state"]) for row in desk.get("/v1/models").json()] == [("1.0.0", "published")]
    assert desk.get("/v1/models/kws/1.0.0").json()["manifest"]["name"] == "kws"
    assert desk.get("/v1/models/kws/9.9.9").status_code == 404


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"version": "9.9.9"}, 404, "published: 1.0.0"),
        ({"model": "nope"}, 404, "edgeml fleet publish"),
        ({"canary": 0.5, "waves": [0.4]}, 400, "growing"),
        ({"canary": 0}, 400, "canary"),
        ({"hold_back": 1.0}, 400, "hold_back"),
        ({"limit": 2.0}, 400, "limit"),
        ({"soak_s": -1}, 400, "soak_s"),
        ({"guards": ["nonsense"]}, 400, "guards"),
        ({"unknown": 1}, 400, "unknown"),
    ],
)
def test_a_rollout_that_cannot_be_is_refused_in_words(
    desk: Desk, tmp_path: Path, asked: dict[str, Any], status: int, words: str
) -> None:
    desk.publish(make_bundle(tmp_path))
    answer = desk.roll_out(**asked)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
    assert desk.get("/v1/rollouts").json() == []


def test_one_rollout_of_a_model_at_a_time_and_each_command_in_its_phase(desk: Desk, tmp_path: Path) -> None:
    desk.enrol("cam-1")
    desk.publish(make_bundle(tmp_path))
    made = desk.roll_out(soak_s=3600).json()
    assert (made["phase"], made["share"]) == ("running", 1.0)
    assert made["forecast"] == ["1 device is too few for a statistical guarantee: plain ceilings, and a person between waves"]
    again = desk.roll_out()
    assert again.status_code == 409
    assert made["id"] in again.json()["error"]
    place = f"/v1/rollouts/{made['id']}"
    assert desk.post(f"{place}/pause").json()["phase"] == "paused"
    wrong = desk.post(f"{place}/pause")
    assert wrong.status_code == 409
    assert "is paused: cannot pause" in wrong.json()["error"]
    assert desk.post(f"{place}/resume").json()["phase"] == "running"
    assert desk.post(f"{place}/abort").json()["phase"] == "aborted"
    assert desk.post(f"{place}/dance").status_code == 404
    assert desk.post("/v1/rollouts/none/pause").status_code == 404
    kinds = [event["kind"] for event in desk.get(f"/v1/events?subject={made['id']}").json()]
    assert [kind for kind in reversed(kinds) if kind in {"rollout created", "pause", "resume", "abort"}] == [
        "rollout created",
        "pause",
        "resume",
        "abort",
    ]


def test_the_overview_has_all_that_the_page_shows(desk: Desk, tmp_path: Path) -> None:
    desk.enrol("cam-1", site="north")
    desk.publish(make_bundle(tmp_path))
    desk.roll_out()
    page = desk.get("/v1/overview").json()
    assert sorted(page) == ["devices", "events", "fleet", "models", "rollouts", "samples", "service"]
    assert page["fleet"]["devices"] == 1
    assert page["devices"][0]["tags"] == {"site": "north"}
    assert page["rollouts"][0]["sentence"]
    assert page["rollouts"][0]["shadow"] is None
    assert page["samples"] == {
        "taken": True, "kept": {"samples": 0, "bytes": 0, "devices": 0, "by_model": {}}, "newest": [],
    }  # fmt: skip
    assert page["models"][0]["version"] == "1.0.0"


def test_metrics_are_what_prometheus_reads(desk: Desk) -> None:
    desk.enrol("cam-1", "cam-2")
    lines = desk.http.get("/metrics").text.splitlines()
    assert "edgeml_devices 2.0" in lines
    assert "edgeml_samples_bytes 0.0" in lines
    assert "# TYPE edgeml_reports counter" in [line.replace("_total", "") for line in lines]
    assert desk.http.get("/healthz").json()["status"] == "ok"


def test_devices_are_enrolled_in_bulk_paged_tagged_renewed_and_removed(desk: Desk) -> None:
    answer = desk.post("/v1/devices", json={"prefix": "cam", "count": 12, "tags": {"site": "north"}}).json()
    assert [one["id"] for one in answer["devices"]][::11] == ["cam-0001", "cam-0012"]
    assert '"root"' in answer["root"]
    first = desk.get("/v1/devices?limit=10").json()
    rest = desk.get(f"/v1/devices?limit=10&after={first[-1]['id']}").json()
    assert [len(first), len(rest)] == [10, 2]
    assert desk.http.put("/v1/devices/cam-0001/tags", headers=desk.operator, json={"site": "south"}).status_code == 200
    assert desk.get("/v1/devices/cam-0001").json()["device"]["tags"] == {"site": "south"}
    token = desk.post("/v1/devices/cam-0001/token").json()["devices"][0]["token"]
    assert desk.http.get("/v1/desired", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert desk.http.delete("/v1/devices/cam-0001", headers=desk.operator).status_code == 200
    assert desk.http.get("/v1/desired", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert desk.http.delete("/v1/devices/cam-0001", headers=desk.operator).status_code == 404
    assert desk.post("/v1/devices", json={"prefix": "cam", "count": 10**9}).status_code == 400
    assert desk.post("/v1/devices", json={"ids": ["a/b"]}).status_code == 400
    assert desk.post("/v1/devices", json={"ids": ["cam-0002"]}).status_code == 409


def test_an_operator_can_check_that_no_event_was_changed(desk: Desk) -> None:
    desk.enrol("cam-1")
    desk.enrol("cam-2")
    found = desk.get("/v1/events/check").json()
    assert (found["events"], found["broken_at"]) == (2, None)
    with desk.fleet.store.write() as connection:
        connection.execute(events.update().where(events.c.subject == "cam-1").values(actor="nobody"))
    assert desk.get("/v1/events/check").json()["broken_at"] is not None
    assert desk.http.get("/v1/events/check").status_code == 401
