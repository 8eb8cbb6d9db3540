"""The signed repository as a device sees it: python-tuf's own client reads it, before and after everything that goes wrong."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, TargetFile, Updater  # type: ignore[attr-defined]

from edgeml.fleet import trust as trust_module
from edgeml.fleet.config import Places
from edgeml.fleet.disk import write_whole
from edgeml.fleet.trust import LIFE, Target, Trust, create
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.errors import ConfigError, EnvironmentProblem

DAY_S = 86_400.0
NOW = float(int(datetime.now(UTC).timestamp()))
DATA = b"the bundle's bytes"
TARGET = Target("models/kws/1.0.0.edgeml", sha256_hex(DATA), len(DATA), {"model": "kws", "version": "1.0.0"})
OTHER = Target("models/kws/1.1.0.edgeml", sha256_hex(b"other"), 5, {"model": "kws", "version": "1.1.0"})


class Files(FetcherInterface):
    """Serves the repository's folder as the service does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Any:
        path = self._folder / urlsplit(url).path.removeprefix("/")
        if not path.is_file():
            raise DownloadHTTPError("not found", 404)
        return iter([path.read_bytes()])


def device_sees(places: Places, folder: Path, path: str) -> TargetFile | None:
    """What a device that starts from the first root finds under `path`; it keeps its metadata in `folder`."""
    folder.mkdir(exist_ok=True)
    updater = Updater(
        str(folder),
        "http://fleet/metadata/",
        fetcher=Files(places.tuf),
        bootstrap=(places.tuf / "metadata" / "1.root.json").read_bytes(),
    )
    updater.refresh()
    return updater.get_targetinfo(path)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(tmp_path / "fleet")
    create(made, NOW)
    return made


def test_a_device_finds_what_was_signed_and_nothing_else(places: Places, tmp_path: Path) -> None:
    Trust(places).sign_target(TARGET, NOW)
    found = device_sees(places, tmp_path / "device", TARGET.path)
    assert found is not None
    assert (found.length, found.hashes, found.custom) == (len(DATA), {"sha256": TARGET.sha256}, TARGET.custom)
    assert device_sees(places, tmp_path / "device", OTHER.path) is None


def test_private_keys_are_for_their_owner_alone_and_outside_what_is_served(places: Places) -> None:
    files = sorted(places.keys.iterdir())
    assert [file.name for file in files] == ["online.pem", "root.pem", "targets.pem"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert stat.S_IMODE(places.keys.stat().st_mode) == 0o700
    assert not any(b"PRIVATE" in file.read_bytes() for file in places.tuf.rglob("*") if file.is_file())


def test_every_key_is_ed25519_and_root_differs_from_online(places: Places) -> None:
    root = json.loads((places.tuf / "metadata" / "1.root.json").read_bytes())["signed"]
    assert {key["keytype"] for key in root["keys"].values()} == {"ed25519"}
    roles = {name: role["keyids"] for name, role in root["roles"].items()}
    assert roles["snapshot"] == roles["timestamp"]
    assert len({roles["root"][0], roles["targets"][0], roles["timestamp"][0]}) == 3
    assert root["consistent_snapshot"] is True


def test_making_keys_again_changes_nothing(places: Places) -> None:
    before = {file: file.read_bytes() for file in places.data.rglob("*") if file.is_file()}
    create(places, NOW + DAY_S)
    assert {file: file.read_bytes() for file in places.data.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("survived", range(7))
def test_key_making_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int) -> None:
    places = Places(tmp_path / "fleet")
    die_after(monkeypatch, survived)
    with pytest.raises(Killed):
        create(places, NOW)
    monkeypatch.undo()
    create(places, NOW)
    Trust(places).sign_target(TARGET, NOW)
    assert device_sees(places, tmp_path / "device", TARGET.path) is not None


@pytest.mark.parametrize("survived", range(3))
def test_a_publish_that_was_interrupted_leaves_the_old_set_and_can_be_repeated(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    Trust(places).sign_target(TARGET, NOW)
    die_after(monkeypatch, survived)
    with pytest.raises(Killed):
        Trust(places).sign_target(OTHER, NOW)
    monkeypatch.undo()
    assert device_sees(places, tmp_path / "device", TARGET.path) is not None
    assert device_sees(places, tmp_path / "device", OTHER.path) is None
    Trust(places).sign_target(OTHER, NOW)
    assert device_sees(places, tmp_path / "device", TARGET.path) is not None
    assert device_sees(places, tmp_path / "device", OTHER.path) is not None


def test_signing_the_same_again_writes_nothing(places: Places) -> None:
    Trust(places).sign_target(TARGET, NOW)
    before = sorted(file.name for file in (places.tuf / "metadata").iterdir())
    Trust(places).sign_target(TARGET, NOW + 60)
    assert sorted(file.name for file in (places.tuf / "metadata").iterdir()) == before


@pytest.mark.parametrize(
    ("later_days", "renewed"),
    [
        (0.5, ()),
        (1.1, ("timestamp",)),
        (3.6, ("snapshot", "timestamp")),
        (46, ("targets", "snapshot", "timestamp")),
        (183, ("root", "targets", "snapshot", "timestamp")),
    ],
)
def test_what_has_lived_half_its_life_is_signed_again(places: Places, later_days: float, renewed: tuple[str, ...]) -> None:
    trust = Trust(places)
    trust.sign_target(TARGET, NOW)
    assert trust.refresh(NOW + later_days * DAY_S) == renewed
    assert trust.refresh(NOW + later_days * DAY_S) == ()
    for role in renewed:
        newest = max((places.tuf / "metadata").glob(f"*{role}.json"), key=lambda file: file.stat().st_mtime_ns)
        expires = datetime.fromisoformat(json.loads(newest.read_bytes())["signed"]["expires"])
        assert expires.timestamp() == pytest.approx(NOW + later_days * DAY_S + LIFE[role].total_seconds(), abs=1.0)


def test_a_device_follows_a_renewed_root(places: Places, tmp_path: Path) -> None:
    trust = Trust(places)
    trust.sign_target(TARGET, NOW)
    assert device_sees(places, tmp_path / "device", TARGET.path) is not None
    trust.refresh(NOW + 200 * DAY_S)
    Trust(places).sign_target(OTHER, NOW + 200 * DAY_S)
    assert device_sees(places, tmp_path / "device", OTHER.path) is not None
    assert device_sees(places, tmp_path / "new-device", OTHER.path) is not None


def test_keys_with_a_password_need_it(tmp_path: Path) -> None:
    places = Places(tmp_path / "fleet")
    create(places, NOW, "correct horse")
    assert b"ENCRYPTED" in (places.keys / "root.pem").read_bytes()
    assert b"ENCRYPTED" not in (places.keys / "online.pem").read_bytes()
    Trust(places, "correct horse").sign_target(TARGET, NOW)
    with pytest.raises(ConfigError, match="EDGEML_KEYS_PASSWORD"):
        Trust(places)
    with pytest.raises(ConfigError, match="wrong password"):
        Trust(places, "wrong horse")


def test_no_keys_names_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="edgeml fleet keys init --solo"):
        Trust(Places(tmp_path))


def test_metadata_signed_by_somebody_else_is_refused(places: Places, tmp_path: Path) -> None:
    thief = Places(tmp_path / "thief")
    create(thief, NOW)
    (places.tuf / "metadata" / "1.targets.json").write_bytes((thief.tuf / "metadata" / "1.targets.json").read_bytes())
    with pytest.raises(EnvironmentProblem, match="damaged"):
        Trust(places)


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.root.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"signed": 1}'])
def test_damaged_metadata_is_an_error_in_words(places: Places, name: str, content: bytes) -> None:
    (places.tuf / "metadata" / name).write_bytes(content)
    with pytest.raises(EnvironmentProblem, match="damaged"):
        Trust(places)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def die_after(monkeypatch: pytest.MonkeyPatch, survived: int) -> None:
    """End the process, so to speak, in place of the write after `survived` ones."""
    left = survived

    def write(*arguments: Any) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        write_whole(*arguments)

    monkeypatch.setattr(trust_module, "write_whole", write)
