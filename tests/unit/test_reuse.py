"""A device that fetches only the blobs that none of its versions has, out of the one file that is signed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from edgeml.fleet.deltas import make_delta, read_contents
from edgeml.runtime import reuse
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.fetch import Remote
from edgeml.runtime.updater import Failed
from tests.system.standin import Service
from tests.unit.boards import NEW, Board

SHARED = bytes(range(256)) * 1000
OVERHEAD_BYTES = 2048  # a manifest, and the 43 bytes before it


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setattr(reuse, "LEAST_BYTES", 64 * 1024)  # the test's bundles are small
    with Service(tmp_path) as service, urllib3.PoolManager(retries=False) as pool:
        yield Board(tmp_path, service, pool, second=SHARED)


def test_only_the_blob_that_changed_comes_over_the_network(board: Board) -> None:
    event = board.fetch()
    assert len(NEW) < event.moved_bytes < len(NEW) + OVERHEAD_BYTES < event.bytes - len(SHARED) + OVERHEAD_BYTES
    assert board.service.target_bytes == event.moved_bytes
    assert board.engine.notes == []


def test_a_delta_is_taken_where_it_is_smaller_than_the_blobs(board: Board) -> None:
    delta = make_delta(read_contents(board.old), read_contents(board.new))
    board.sign_delta(delta)
    assert len(delta) < len(NEW)
    assert board.fetch().moved_bytes == len(delta)


def test_the_blobs_are_taken_where_the_delta_is_larger(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "LEAST_BYTES", 0)
    board.sign_delta(bytes(len(NEW) + 1))  # as large as that, it is not even looked into
    assert board.fetch().moved_bytes < len(NEW) + OVERHEAD_BYTES
    assert not any("delta" in request for request in board.service.requests)


def test_a_small_bundle_comes_whole_in_one_request(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "LEAST_BYTES", 1024 * 1024)
    event = board.fetch()
    assert event.moved_bytes == event.bytes
    assert sum(request.endswith(".edgeml") for request in board.service.requests) == 1


def test_many_small_blobs_cost_more_than_one_file_of_twice_their_size(board: Board, tmp_path: Path) -> None:
    """A round trip each: what is saved must be worth them."""
    blobs = tuple(Remote("bundle", 1000, f"{number:064x}") for number in range(30))
    with open_bundle(board.new) as bundle:
        recipe = reuse.Recipe(bundle.manifest, b"", blobs, tmp_path, ())
    assert recipe.left_bytes == 30_000
    assert recipe.cost_bytes > 60_000
    (tmp_path / f"{blobs[0].digest}.part").write_bytes(bytes(400))
    assert recipe.left_bytes == 29_600


def test_a_server_that_gives_no_ranges_is_asked_for_the_whole_bundle(board: Board) -> None:
    board.service.gives_ranges = False
    event = board.fetch()
    assert event.bytes < event.moved_bytes < event.bytes + OVERHEAD_BYTES
    assert "gives no ranges" in board.engine.notes[0]


def test_a_blob_swapped_at_the_server_is_not_taken(board: Board) -> None:
    """The attack: whoever holds the server, and no key, changes bytes of one blob."""
    files = board.service.repository.targets_files
    name = next(name for name in files if name.endswith("1.1.0.edgeml"))
    good = files[name]
    at = good.index(NEW.tobytes())
    files[name] = good[:at] + b"?" + good[at + 1 :]
    event = board.installer.fetch(board.target, 1)
    assert isinstance(event, Failed)
    assert event.code == "download"
    assert board.slots.installed == ()
    files[name] = good
    board.fetch()


def test_a_manifest_that_is_not_the_signed_one_is_not_taken(board: Board) -> None:
    files = board.service.repository.targets_files
    name = next(name for name in files if name.endswith("1.1.0.edgeml"))
    files[name] = files[name].replace(b'"seed":0', b'"seed":1')
    event = board.installer.fetch(board.target, 1)
    assert isinstance(event, Failed)
    assert board.slots.installed == ()


def test_what_was_fetched_before_a_stop_is_not_fetched_again(board: Board) -> None:
    board.service.chunk_bytes, board.service.chunk_s = 4096, 0.01
    stops = iter([False] * 3)
    wanted = board.installer.wanted
    board.installer.wanted = lambda: None if next(stops, True) else board.target.manifest_sha256
    assert board.installer.fetch(board.target, 1) is None
    before = board.installer.fetcher.moved_bytes
    assert 4096 < before < len(NEW)
    board.installer.wanted, board.service.chunk_s = wanted, 0.0
    assert before + board.fetch().moved_bytes < len(NEW) + OVERHEAD_BYTES


def test_a_version_here_that_was_damaged_on_disk_makes_no_wrong_bundle(board: Board) -> None:
    data = bytearray(board.old.read_bytes())
    data[data.index(SHARED)] ^= 1
    board.old.write_bytes(data)
    event = board.fetch()
    assert event.moved_bytes > len(SHARED)


def test_a_disk_without_room_for_parts_and_result_takes_the_whole_bundle(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    real = board.slots.require_space
    size = board.new.stat().st_size
    monkeypatch.setattr(board.slots, "require_space", lambda needed: real(needed if needed <= size else 1 << 60))
    assert board.fetch().moved_bytes > len(SHARED)
    assert "do not fit" in board.engine.notes[0]
