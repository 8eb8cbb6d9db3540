"""Samples at the service: who may bring and read them, what they may take, and what forgetting a device leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from edgeml.fleet.api.app import build_app
from edgeml.fleet.config import Config
from edgeml.fleet.samples import DAY_S, SampleStore
from edgeml.fleet.samples_cli import stack
from edgeml.fleet.service import Fleet
from edgeml.wire.errors import LinkError, UsageError
from edgeml.wire.messages import Report, Telemetry, encode
from edgeml.wire.samples import SAMPLE_LIMIT_BYTES, SampleHeader, SampleTensor, decode_sample, encode_sample
from tests.unit.test_fleet_api import Desk

A = "a" * 64


def sample(number: int, *, model: str = "kws", noise: int = 0) -> bytes:
    """A sample with `number` as its one input, and about `noise` more bytes."""
    name = f"0190a2b4-0000-7000-8000-{number:012d}"
    rest = np.random.default_rng(number).bytes(noise)
    tensors = (SampleTensor("x", "int32", (1,)), SampleTensor("rest", "uint8", (noise,)))
    return encode_sample(SampleHeader(name, 10.0, model, "1.0.0", A, tensors, score=0.3), [number.to_bytes(4, "little"), rest])


def numbers(store: SampleStore, device: str | None = None) -> list[int]:
    return [int(row.header.id[-12:]) for row in store.listed(device=device)]


@pytest.fixture
def store(tmp_path: Path) -> SampleStore:
    return SampleStore(tmp_path / "samples", cap_bytes=10_000, days=30)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with (
        Fleet(Config(tmp_path / "fleet", broker="none", tick_s=0.02)) as fleet,
        TestClient(build_app(fleet), raise_server_exceptions=False) as client,
    ):
        yield Desk(fleet, client)


def test_a_sample_is_kept_once_and_found_again_after_a_restart(store: SampleStore, tmp_path: Path) -> None:
    assert store.take("cam-1", sample(1), 100.0)
    assert not store.take("cam-1", sample(1), 101.0)
    again = SampleStore(tmp_path / "samples", cap_bytes=10_000, days=30)
    assert again.read(again.listed()[0].header.id) == sample(1)
    assert again.bytes == len(sample(1))


def test_over_the_cap_the_device_with_most_bytes_loses_its_oldest(store: SampleStore) -> None:
    store.take("quiet", sample(1, noise=2000), 1.0)
    for number in range(2, 9):
        store.take("loud", sample(number, noise=2000), float(number))
    assert numbers(store, "quiet") == [1]
    assert numbers(store, "loud") == [8, 7, 6]
    assert store.bytes <= 10_000


def test_a_sample_larger_than_the_cap_and_one_that_is_none_leave_no_file(store: SampleStore, tmp_path: Path) -> None:
    assert not store.take("cam-1", sample(1, noise=11_000), 1.0)
    with pytest.raises(LinkError):
        store.take("cam-1", sample(1)[:-1], 1.0)
    assert list(tmp_path.glob("samples/*/*")) == []


def test_samples_end_after_their_days(store: SampleStore) -> None:
    store.take("cam-1", sample(1), 0.0)
    store.take("cam-1", sample(2), 20 * DAY_S)
    assert store.expire(31 * DAY_S) == 1
    assert numbers(store) == [2]


def test_a_file_that_is_no_sample_is_left_alone(store: SampleStore, tmp_path: Path) -> None:
    store.take("cam-1", sample(1), 0.0)
    (tmp_path / "samples" / "cam-1" / "notes.sample").write_text("not ours")
    again = SampleStore(tmp_path / "samples", cap_bytes=10_000, days=30)
    assert numbers(again) == [1]
    assert (tmp_path / "samples" / "cam-1" / "notes.sample").exists()


def test_a_device_brings_and_only_the_operator_reads_and_deletes(desk: Desk) -> None:
    device = desk.enrol("cam-1")["cam-1"]
    assert desk.http.post("/v1/samples", content=sample(1)).status_code == 401
    assert desk.http.post("/v1/samples", content=sample(1), headers=device).status_code == 201
    assert desk.http.post("/v1/samples", content=sample(1), headers=device).json() == {"kept": False}
    assert desk.http.get("/v1/samples", headers=device).status_code == 401
    [row] = desk.get("/v1/samples").json()
    assert (row["device"], row["header"]["model"], row["header"]["score"]) == ("cam-1", "kws", 0.3)
    path = f"/v1/samples/{row['header']['id']}"
    assert desk.http.get(path, headers=device).status_code == 401
    _, [content, _] = decode_sample(desk.get(path).content)
    assert content == b"\x01\0\0\0"
    assert desk.http.delete("/v1/samples", headers=desk.operator).status_code == 400
    asked = {"id": row["header"]["id"]}
    assert desk.http.delete("/v1/samples", headers=desk.operator, params=asked).json() == {"deleted": 1}
    assert desk.get(path).status_code == 404
    assert desk.get("/v1/events").json()[0]["kind"] == "samples deleted"


def test_what_is_no_sample_is_refused_in_words_and_not_kept(desk: Desk) -> None:
    device = desk.enrol("cam-1")["cam-1"]
    garbage = [(b"", 400), (b"PK\x03\x04 an npz", 400), (sample(1)[:-3], 400), (bytes(SAMPLE_LIMIT_BYTES + 1), 413)]
    for body, status in garbage:
        answer = desk.http.post("/v1/samples", content=body, headers=device)
        assert (answer.status_code, "error" in answer.json()) == (status, True)
    assert desk.get("/v1/samples").json() == []


def test_a_service_without_room_for_samples_says_so(tmp_path: Path) -> None:
    with (
        Fleet(Config(tmp_path / "fleet", broker="none", samples_bytes=0)) as fleet,
        TestClient(build_app(fleet)) as client,
    ):
        desk = Desk(fleet, client)
        answer = client.post("/v1/samples", content=sample(1), headers=desk.enrol("cam-1")["cam-1"])
    assert (answer.status_code, "takes no samples" in answer.json()["error"]) == (403, True)


def said(seq: int, device: str = "cam-1") -> list[dict[str, Any]]:
    """A report and a window, numbered `seq` and `seq` + 1."""
    report = Report(device, 1, seq, 10.0, 1, "kws", "failed", "1.0.0", A, code="crash", detail="/home/ann broke")
    window = Telemetry(device, 1, seq + 1, "kws", "1.0.0", A, start=0.0, seconds=60.0, runs=5)
    return [{"kind": "report", "body": json.loads(encode(report))}, {"kind": "telemetry", "body": json.loads(encode(window))}]


def test_a_device_that_asks_to_be_forgotten_leaves_nothing_it_said_or_showed(desk: Desk) -> None:
    devices = desk.enrol("cam-1", "cam-2")
    for device, headers in devices.items():
        desk.http.post("/v1/reports", headers=headers, json=said(10, device))
        desk.http.post("/v1/samples", headers=headers, content=sample(1 if device == "cam-1" else 2))
    mine = devices["cam-1"]
    answer = desk.http.post("/v1/forget", headers=mine, json={"before_seq": 20})
    assert answer.json() == {"reports": 1, "telemetry": 1, "samples": 1}
    page = desk.get("/v1/devices/cam-1").text
    assert "ann broke" not in page
    assert [row["device"] for row in desk.get("/v1/samples").json()] == ["cam-2"]
    assert "ann broke" in desk.get("/v1/devices/cam-2").text
    [event] = [e for e in desk.get("/v1/events").json() if e["kind"] == "forgotten"]
    assert (event["actor"], event["subject"], event["body"]) == ("device cam-1", "cam-1", answer.json())


def test_forgetting_twice_is_harmless_and_no_news(desk: Desk) -> None:
    mine = desk.enrol("cam-1")["cam-1"]
    desk.http.post("/v1/reports", headers=mine, json=said(10))
    for _ in range(2):
        answer = desk.http.post("/v1/forget", headers=mine, json={"before_seq": 20})
    assert answer.json() == {"reports": 0, "telemetry": 0, "samples": 0}
    assert len([e for e in desk.get("/v1/events").json() if e["kind"] == "forgotten"]) == 1


def test_a_message_that_was_under_way_is_not_taken_after_all_and_a_later_one_is(desk: Desk) -> None:
    mine = desk.enrol("cam-1")["cam-1"]
    desk.http.post("/v1/forget", headers=mine, json={"before_seq": 20})
    desk.http.post("/v1/reports", headers=mine, json=said(19))  # 19 and 20: said before
    assert desk.fleet.ingest.dropped == {"forgotten": 2}
    assert "ann broke" not in desk.get("/v1/devices/cam-1").text
    desk.http.post("/v1/reports", headers=mine, json=said(21))
    assert "ann broke" in desk.get("/v1/devices/cam-1").text


def test_a_wish_that_makes_no_sense_is_refused(desk: Desk) -> None:
    mine = desk.enrol("cam-1")["cam-1"]
    for body in (b"{}", b'{"before_seq":-1}', b'{"before_seq":9223372036854775808}', b"[]"):
        assert desk.http.post("/v1/forget", headers=mine, content=body).status_code == 400


def test_an_operator_forgets_a_device_and_removes_one_with_its_samples(desk: Desk, tmp_path: Path) -> None:
    mine = desk.enrol("cam-1")["cam-1"]
    desk.http.post("/v1/reports", headers=mine, json=said(10))
    desk.http.post("/v1/samples", headers=mine, content=sample(1))
    assert desk.http.post("/v1/devices/cam-1/forget", headers=mine).status_code == 401
    assert desk.post("/v1/devices/cam-1/forget").json() == {"reports": 1, "telemetry": 1, "samples": 1}
    assert desk.post("/v1/devices/nobody/forget").status_code == 404
    desk.http.post("/v1/samples", headers=mine, content=sample(2))
    desk.http.delete("/v1/devices/cam-1", headers=desk.operator)
    assert list(tmp_path.glob("fleet/samples/*/*")) == []


def test_samples_of_one_shape_make_one_file_and_others_are_refused() -> None:
    x = np.arange(3)
    np.testing.assert_array_equal(stack([{"x": x}, {"x": x + 1}])["x"], [[0, 1, 2], [1, 2, 3]])
    with pytest.raises(UsageError, match="one --model"):
        stack([{"x": x}, {"x": x[:2]}])
    with pytest.raises(UsageError, match="no such samples"):
        stack([])
