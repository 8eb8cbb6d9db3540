# ruff: noqa: ARG002 - the stand-in engine answers without looking
"""A device that takes a delta where one is signed, and the whole bundle where that is better or the delta is no good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import urllib3

from edgeml.fleet.deltas import make_delta, read_contents
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.fetch import Fetcher
from edgeml.runtime.install import Installer, Vitals
from edgeml.runtime.slots import Slots
from edgeml.runtime.trust import Custom, Trust
from edgeml.runtime.updater import Failed, Fetched
from edgeml.wire.delta import delta_path
from edgeml.wire.messages import Target
from tests.system.standin import Service
from tests.unit.fleet_bundles import make_bundle

RNG = np.random.default_rng(5)
OLD = RNG.integers(-40, 40, 50_000).astype(np.int8)
NEW = OLD + (RNG.random(OLD.size) < 0.1).astype(np.int8)


class Engine:
    """Checks bytes and runs nothing."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def accepts(self, model: str, custom: Custom) -> None: ...

    def check(self, model: str, path: Path) -> str:
        with open_bundle(path) as bundle:
            return bundle.digest

    def prepare(self, model: str, digest: str, path: Path) -> None: ...

    def switch(self, model: str, digest: str | None, path: Path | None) -> None: ...

    def vitals(self, model: str, digest: str) -> Vitals:
        return Vitals(0, 0)

    def version(self, model: str, digest: str) -> str | None:
        return None

    def note(self, model: str, problem: str) -> None:
        self.notes.append(problem)


class Board:
    """A device that has 1.0.0 from the factory, and a service that has 1.1.0."""

    def __init__(self, folder: Path, service: Service, pool: urllib3.PoolManager) -> None:
        self.old = make_bundle(folder / "old", version="1.0.0", model=OLD.tobytes())
        self.new = make_bundle(folder / "new", version="1.1.0", model=NEW.tobytes())
        self.service = service
        self.target: Target = service.publish(self.new)
        self.base = read_contents(self.old).manifest.digest
        self.engine = Engine()
        self.slots = Slots(folder / "device", "kws")
        trust = Trust(folder / "trust", service.url, service.root.read_bytes(), pool=pool)
        self.installer = Installer(
            "kws", self.slots, trust, Fetcher(pool, stall_s=2.0), self.engine, lambda: self.target.manifest_sha256
        )
        self.installer.factory = (self.base, self.old)

    def sign_delta(self, delta: bytes) -> None:
        assert self.target.version is not None
        self.service.repository.add(delta_path("kws", self.target.version, self.base), delta, {})

    def fetch(self) -> Fetched:
        event = self.installer.fetch(self.target, 1)
        assert isinstance(event, Fetched), event
        assert self.target.manifest_sha256 is not None
        assert self.slots.path(self.target.manifest_sha256).read_bytes() == self.new.read_bytes()
        assert list(self.slots.downloads.iterdir()) == []
        return event


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
