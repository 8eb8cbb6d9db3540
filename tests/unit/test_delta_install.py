"""A device that takes a delta where one is signed, and the whole bundle where that is better or the delta is no good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from edgeml.fleet.deltas import make_delta, read_contents
from edgeml.runtime.updater import Failed
from tests.system.standin import Service
from tests.unit.boards import Board


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Service(tmp_path) as service, urllib3.PoolManager(retries=False) as pool:
        yield Board(tmp_path, service, pool)


def honest(board: Board) -> bytes:
    return make_delta(read_contents(board.old), read_contents(board.new))


def test_a_signed_delta_is_all_that_comes_over_the_network(board: Board) -> None:
    delta = honest(board)
    board.sign_delta(delta)
    event = board.fetch()
    assert event.moved_bytes == len(delta) < 0.2 * event.bytes
    assert board.engine.notes == []


def test_without_a_delta_the_whole_bundle_comes(board: Board) -> None:
    event = board.fetch()
    assert event.moved_bytes == event.bytes


@pytest.mark.parametrize("what", ["garbage", "cut", "gone", "other bytes"])
def test_a_delta_that_is_no_good_costs_only_its_bytes(board: Board, what: str) -> None:
    delta = honest(board)
    board.sign_delta({"garbage": b"EDGEMLD1" + bytes(500), "cut": delta[:-40]}.get(what, delta))
    files = board.service.repository.targets_files
    name = next(name for name in files if name.endswith(".delta"))
    if what == "gone":
        del files[name]
    if what == "other bytes":
        files[name] = files[name][:-1] + b"?"
    event = board.fetch()
    assert event.moved_bytes <= event.bytes + len(delta)
    assert "the whole bundle was downloaded" in board.engine.notes[0]


def test_a_nearly_complete_download_goes_on_instead(board: Board) -> None:
    board.sign_delta(honest(board))
    whole = board.new.read_bytes()
    signed = board.installer.trust
    assert signed is not None
    board.slots.part(signed.find(board.target.path or "").remote.digest).write_bytes(whole[:-1000])
    assert board.fetch().moved_bytes == 1000


def test_a_base_that_was_damaged_on_disk_makes_no_wrong_bundle(board: Board) -> None:
    board.sign_delta(honest(board))
    data = bytearray(board.old.read_bytes())
    data[-5000] ^= 1
    board.old.write_bytes(data)
    assert board.fetch().moved_bytes > board.new.stat().st_size


def test_an_unsigned_delta_is_not_even_asked_for(board: Board) -> None:
    """The attack: whoever holds the server, and no key, serves a delta of his own."""
    name = f"models/kws/{'0' * 64}.1.1.0.from-{board.base}.delta"
    board.service.repository.targets_files[name] = honest(board)
    board.fetch()
    assert not any("delta" in request for request in board.service.requests)


def test_a_disk_without_room_for_delta_and_result_is_not_filled(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.sign_delta(honest(board))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000})())
    event = board.installer.fetch(board.target, 1)
    assert isinstance(event, Failed)
    assert (event.code, event.retryable, event.moved_bytes) == ("disk_full", True, 0)
    assert list(board.slots.downloads.iterdir()) == []
