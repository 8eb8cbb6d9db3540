"""What somebody who holds the network, the server or one key can do to a device, one attack a test.

Each opens with the attack and ends with what is on disk: the version that was there, and nothing of the attacker's.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, MetaFile, Root  # type: ignore[attr-defined]

from edgeml.runtime import trust as trust_module
from edgeml.runtime.fetch import Remote
from edgeml.runtime.trust import RELEASED_AT, Trust
from edgeml.runtime.updater import Failed, Fetched, Waiting
from edgeml.wire.errors import UpdateError
from edgeml.wire.messages import Target
from tests.system.standin import Repository, Service
from tests.unit.boards import Board
from tests.unit.fleet_bundles import make_bundle


class Attacked(Board):
    """A board that has installed 1.1.0; 1.2.0 is what an attacker wants on it, or keeps from it."""

    def __init__(self, folder: Path, service: Service, pool: urllib3.PoolManager) -> None:
        super().__init__(folder, service, pool)
        self.folder = folder
        self.pool = pool
        self.fetch()
        self.trusted = self.metadata()
        self.before = self.files()

    @property
    def repository(self) -> Repository:
        return self.service.repository

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in (self.folder / "device").rglob("*") if p.is_file()}

    def metadata(self) -> dict[str, int]:
        return {
            role: int(Metadata.from_file(str(self.folder / "trust" / f"{role}.json")).signed.version)
            for role in ("root", "timestamp", "snapshot", "targets")
        }

    def publish_evil(self) -> Target:
        return self.service.publish(make_bundle(self.folder / "evil", version="1.2.0", model=b"evil weights"))

    def attempt(self, target: Target) -> Failed | Waiting:
        self.target = target
        event = self.installer.fetch(target, 2)
        assert isinstance(event, Failed | Waiting), event
        assert self.files() == self.before, "the slots changed"
        return event


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Attacked]:
    with Service(tmp_path) as service, urllib3.PoolManager(retries=False) as pool:
        yield Attacked(tmp_path, service, pool)


def test_replay_of_an_old_whole_repository(board: Attacked) -> None:
    """The attack: every file of the server as it was last month, all rightly signed, to bring back a hole since mended."""
    old = dict(board.repository.files)
    newer = board.publish_evil()
    board.installer.fetch(board.target, 2)
    trust = board.installer.trust
    assert trust is not None
    trust.find(newer.path or "")
    seen = board.metadata()
    board.repository.files = old
    assert board.attempt(newer).code == "untrusted"
    assert board.metadata() == seen


def test_freeze(board: Attacked) -> None:
    """The attack: serve the last good metadata for ever, so that the device never hears of the repair. It ends by expiring."""
    board.repository.sign(expires=datetime.now(UTC) - timedelta(minutes=1))
    event = board.attempt(Target("kws", "1.2.0", "c" * 64, "models/kws/1.2.0.edgeml"))
    assert isinstance(event, Waiting)
    assert event.code == "metadata_expired"
    assert board.slots.find(board.target.manifest_sha256 or "") is None


class TwoKeys(Repository):
    """Bundles need two people's signatures."""

    def __init__(self) -> None:
        super().__init__()
        self.people = [CryptoSigner.generate_ed25519() for _ in range(2)]
        root: Metadata[Root] = self._root
        role = root.signed.roles["targets"]
        role.keyids.clear()
        role.threshold = 2
        for person in self.people:
            root.signed.add_key(person.public_key, "targets")
        self.root = self._sign(root)
        self.files["1.root.json"] = self.root
        self.signing = list(self.people)
        self.sign()

    def _sign(self, metadata: Any) -> bytes:
        if getattr(self, "signing", None) and metadata is self._targets:
            metadata.signatures.clear()
            for person in self.signing:
                metadata.sign(person, append=True)
            data: bytes = metadata.to_bytes()
            return data
        return super()._sign(metadata)


def test_one_stolen_targets_key_of_two(tmp_path: Path) -> None:
    """The attack: one release manager's laptop, and the whole server with it, sign an evil bundle."""
    with Service(tmp_path) as service, urllib3.PoolManager(retries=False) as pool:
        repository = TwoKeys()
        service.repository = repository
        service.root.write_bytes(repository.root)
        board = Attacked(tmp_path, service, pool)
        repository.signing = repository.people[:1]
        assert board.attempt(board.publish_evil()).code == "untrusted"
        assert board.metadata()["targets"] == board.trusted["targets"]


def test_artifact_swapped_at_the_cdn(board: Attacked) -> None:
    """The attack: metadata untouched, other bytes of the same length under the bundle's address."""
    target = board.publish_evil()
    files = board.repository.targets_files
    name = next(name for name in files if name.endswith("1.2.0.edgeml"))
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    event = board.attempt(target)
    assert isinstance(event, Failed)
    assert (event.code, event.retryable) == ("download", True)


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json"])
def test_endless_metadata(board: Attacked, name: str) -> None:
    """The attack: metadata that does not end, to fill memory or disk."""
    target = board.publish_evil()
    board.repository.files[name] = b"{" * 5_000_000
    assert board.attempt(target).code == "unreachable"
    assert sum(p.stat().st_size for p in (board.folder / "trust").rglob("*") if p.is_file()) < 100_000


def test_endless_bundle(board: Attacked) -> None:
    """The attack: a bundle that goes on after its signed length."""
    target = board.publish_evil()
    files = board.repository.targets_files
    name = next(name for name in files if name.endswith("1.2.0.edgeml"))
    files[name] = files[name] + bytes(5_000_000)
    event = board.attempt(target)
    assert event.code == "download"
    assert event.moved_bytes == 0


def test_mix_and_match(board: Attacked) -> None:
    """The attack: today's snapshot with last month's list of bundles, each rightly signed, that never were together."""
    old = board.repository.files[f"{board.trusted['targets']}.targets.json"]
    target = board.publish_evil()
    board.repository.files[f"{board.trusted['targets'] + 1}.targets.json"] = old
    assert board.attempt(target).code == "untrusted"
    assert board.metadata()["targets"] == board.trusted["targets"]


def test_rollback_of_metadata(board: Attacked) -> None:
    """The attack: a new timestamp (the online key is stolen) that names an older snapshot."""
    repository = board.repository
    target = board.publish_evil()
    trust = board.installer.trust
    assert trust is not None
    trust.find(target.path or "")
    seen = board.metadata()
    stolen = copy.deepcopy(repository._timestamp)
    stolen.signed.version += 1
    stolen.signed.snapshot_meta = MetaFile(seen["snapshot"] - 1)
    repository.files["timestamp.json"] = repository._sign(stolen)
    assert board.attempt(target).code == "untrusted"
    assert board.metadata()["snapshot"] == seen["snapshot"]


def test_wrong_root(board: Attacked) -> None:
    """The attack: a next root, well formed and signed by a stranger, to take the device over for good."""
    stranger = Repository()
    stranger._root.signed.version = 2
    target = board.publish_evil()
    board.repository.files["2.root.json"] = stranger._sign(stranger._root)
    assert board.attempt(target).code == "untrusted"
    assert board.metadata()["root"] == 1


def test_the_service_names_another_bundle_than_the_signature(board: Attacked) -> None:
    """The attack: the fleet service, taken over, calls an old signed bundle by a new version's name."""
    evil = board.publish_evil()
    lie = Target("kws", "1.3.0", evil.manifest_sha256, evil.path)
    assert board.attempt(lie).code == "untrusted"


class Elsewhere(BaseHTTPRequestHandler):
    """Redirects bundles to another host, or drips."""

    behaviour = "redirect"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.behaviour == "redirect":
            self.send_response(302)
            self.send_header("Location", "http://localhost:1/evil")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", "50000")
        self.end_headers()
        pause = threading.Event()
        try:
            while True:
                self.wfile.write(b"{")
                pause.wait(0.02)
        except OSError:
            return


@pytest.fixture
def hostile() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("behaviour", "code"), [("redirect", "redirect"), ("drip", "unreachable")])
def test_a_bundle_redirected_elsewhere_or_dripped(board: Attacked, hostile: str, behaviour: str, code: str) -> None:
    """The attack: send the device to a host of the attacker's, or hold its one worker for ever with a byte now and then."""
    Elsewhere.behaviour = behaviour
    board.installer.fetcher.stall_s = 0.3
    part = board.slots.part("0" * 64)
    with pytest.raises(UpdateError) as caught:
        board.installer.fetcher.fetch(Remote(f"{hostile}/x", 50_000, "0" * 64), part)
    assert caught.value.code == code
    assert not part.exists() or part.stat().st_size < 1024


@pytest.mark.parametrize("behaviour", ["redirect", "drip"])
def test_metadata_redirected_elsewhere_or_dripped(
    board: Attacked, hostile: str, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: the same with metadata."""
    Elsewhere.behaviour = behaviour
    monkeypatch.setattr(trust_module, "METADATA_SECONDS", 0.3)
    trust = Trust(board.folder / "trust", hostile, board.service.root.read_bytes(), pool=board.pool)
    with pytest.raises(UpdateError) as caught:
        trust.find(board.target.path or "")
    assert caught.value.code == "unreachable"
    assert board.metadata() == board.trusted


@pytest.mark.parametrize("year", [1970, 2000])
def test_a_clock_from_before_this_software_does_not_make_expired_metadata_fresh(board: Attacked, year: int) -> None:
    """The attack: stop the device's clock (or let its battery die) and replay metadata that has expired since."""
    now = datetime(year, 1, 1, tzinfo=UTC).timestamp()
    trust = Trust(board.folder / "fresh", board.service.url, board.service.root.read_bytes(), pool=board.pool, now=lambda: now)
    assert trust.floor() == RELEASED_AT
    trust.find(board.target.path or "")  # fresh metadata can still be used: a board without a clock is not locked out
    assert trust.floor() == RELEASED_AT
    (board.folder / "fresh" / "floor").write_text(repr(datetime.now(UTC).timestamp() + 10 * 86400))
    with pytest.raises(UpdateError) as caught:
        trust.find(board.target.path or "")
    assert caught.value.code == "metadata_expired"


def test_a_clock_in_2099_blocks_installing_and_comes_back(board: Attacked) -> None:
    """The attack: a false time server. What is installed goes on; when the clock is right again, so do updates."""
    clock = [datetime(2099, 1, 1, tzinfo=UTC).timestamp()]
    trust = Trust(
        board.folder / "trust", board.service.url, board.service.root.read_bytes(), pool=board.pool, now=lambda: clock[0]
    )
    floor = trust.floor()
    with pytest.raises(UpdateError) as caught:
        trust.find(board.target.path or "")
    assert (caught.value.code, trust.floor(), board.files()) == ("metadata_expired", floor, board.before)
    clock[0] = datetime.now(UTC).timestamp()
    assert trust.find(board.target.path or "").custom.version == "1.1.0"
    assert isinstance(board.installer.fetch(board.target, 3), Fetched)
