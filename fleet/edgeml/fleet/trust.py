"""The TUF repository: which bundles may run, signed with Ed25519 keys.

`create` makes the keys and the first metadata (solo: one person, threshold 1; growing to more is a root rotation that devices
follow by themselves). `sign_target` adds one bundle. `refresh` renews what is about to expire; the service calls it often.

Whatever happens in between, devices see one consistent set: new numbered files first, `timestamp.json` last, by rename.
Numbered files that no timestamp names (a publish that was killed) are written again by the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp  # type: ignore[attr-defined]
from tuf.api.serialization import DeserializationError

from edgeml.fleet.config import Places
from edgeml.fleet.disk import PRIVATE, private_folder, write_whole
from edgeml.wire.errors import ConfigError, EnvironmentProblem

KEY_NAMES: Final = ("root", "targets", "online")
LIFE: Final = {
    "root": timedelta(days=365),
    "targets": timedelta(days=90),
    "snapshot": timedelta(days=7),
    "timestamp": timedelta(days=2),
}
PASSWORD_VARIABLE: Final = "EDGEML_KEYS_PASSWORD"  # noqa: S105 - the variable's name
_KEY_OF: Final = {"root": "root", "targets": "targets", "snapshot": "online", "timestamp": "online"}
T = TypeVar("T", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class Target:
    """A file that devices may install. `custom` is signed with it, for whoever reads the metadata."""

    path: str
    sha256: str
    bytes: int
    custom: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Roles:
    """The metadata that `timestamp.json` names at this moment."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]


class Trust:
    """An existing repository; thread-safe.

    Raises:
        ConfigError: there is none under `places`, or its keys cannot be read.
        EnvironmentProblem: its metadata was damaged.
    """

    def __init__(self, places: Places, password: str | None = None) -> None:
        self._folder = places.tuf / "metadata"
        self._lock = threading.Lock()
        if not exists(places):
            raise ConfigError(f"no signing keys in {str(places.data)!r}", hint="run `edgeml fleet keys init --solo`")
        self._signers = {name: _load_key(places.keys / f"{name}.pem", password) for name in KEY_NAMES}
        self._roles = _load(self._folder)

    @property
    def root(self) -> bytes:
        """The first root: what a device is given to start its trust from."""
        return (self._folder / "1.root.json").read_bytes()

    def targets(self) -> dict[str, str]:
        """What may run: TUF target path -> sha256."""
        return {path: target.hashes["sha256"] for path, target in self._roles.targets.signed.targets.items()}

    def sign_target(self, target: Target, now: float, *beside: Target) -> None:
        """Let devices install `target`, and use what is `beside` it; nothing changes if all are listed already."""
        files = [TargetFile(t.bytes, {"sha256": t.sha256}, t.path, {"custom": t.custom}) for t in (target, *beside)]
        with self._lock:
            if all(self._roles.targets.signed.targets.get(file.path) == file for file in files):
                return
            targets = _copy(self._roles.targets)
            targets.signed.targets.update({file.path: file for file in files})
            self._commit(now, targets=targets)

    def refresh(self, now: float) -> tuple[str, ...]:
        """Sign again every role with less than half of its life left; gives their names."""
        with self._lock:
            due = tuple(role for role in LIFE if _is_due(getattr(self._roles, role).signed.expires, role, now))
            if "root" in due:
                self._renew_root(now)
            if set(due) - {"root"}:
                targets = _copy(self._roles.targets) if "targets" in due else None
                self._commit(now, targets=targets, snapshot_too="snapshot" in due)
            return due

    def _renew_root(self, now: float) -> None:
        root = _copy(self._roles.root)
        root.signed.version += 1
        data = self._sign(root, "root", now)
        write_whole(self._folder / f"{root.signed.version}.root.json", data)
        self._roles = Roles(root, self._roles.timestamp, self._roles.snapshot, self._roles.targets)

    def _commit(self, now: float, *, targets: Metadata[Targets] | None = None, snapshot_too: bool = False) -> None:
        old = self._roles
        snapshot = old.snapshot
        if targets is not None:
            targets.signed.version += 1
            write_whole(self._folder / f"{targets.signed.version}.targets.json", self._sign(targets, "targets", now))
        if targets is not None or snapshot_too:
            snapshot = _copy(old.snapshot)
            snapshot.signed.version += 1
            snapshot.signed.meta["targets.json"] = MetaFile((targets or old.targets).signed.version)
            write_whole(self._folder / f"{snapshot.signed.version}.snapshot.json", self._sign(snapshot, "snapshot", now))
        timestamp = _copy(old.timestamp)
        timestamp.signed.version += 1
        timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
        write_whole(self._folder / "timestamp.json", self._sign(timestamp, "timestamp", now))
        self._roles = Roles(old.root, timestamp, snapshot, targets or old.targets)

    def _sign(self, metadata: Metadata[T], role: str, now: float) -> bytes:
        return _sign(metadata, self._signers[_KEY_OF[role]], role, now)


def exists(places: Places) -> bool:
    """Whether keys and metadata were made, to the end."""
    return (places.tuf / "metadata" / "timestamp.json").is_file()


def create(places: Places, now: float, password: str | None = None) -> None:
    """Make one person's keys and an empty repository, unless they exist. Interrupted, it goes on where it stopped.

    Args:
        places: keys go to `places.keys` (readable by the owner alone), metadata to `places.tuf`.
        now: Unix seconds.
        password: encrypts the root and targets keys on disk; the online key is needed by the service at any hour and is not.
    """
    if exists(places):
        return
    private_folder(places.keys)
    signers = {name: _make_key(places.keys / f"{name}.pem", None if name == "online" else password) for name in KEY_NAMES}
    folder = places.tuf / "metadata"
    root = Root(version=1, consistent_snapshot=True)
    for role, key in _KEY_OF.items():
        root.add_key(signers[key].public_key, role)
    signed: list[tuple[str, str, Metadata[Any]]] = [
        ("1.root.json", "root", Metadata(root)),
        ("1.targets.json", "targets", Metadata(Targets(version=1))),
        ("1.snapshot.json", "snapshot", Metadata(Snapshot(version=1, meta={"targets.json": MetaFile(1)}))),
        ("timestamp.json", "timestamp", Metadata(Timestamp(version=1, snapshot_meta=MetaFile(1)))),
    ]
    for name, role, metadata in signed:
        write_whole(folder / name, _sign(metadata, signers[_KEY_OF[role]], role, now))


def _sign(metadata: Metadata[T], signer: CryptoSigner, role: str, now: float) -> bytes:
    metadata.signed.expires = datetime.fromtimestamp(int(now), UTC) + LIFE[role]
    metadata.sign(signer)
    return metadata.to_bytes()


def _copy(metadata: Metadata[T]) -> Metadata[T]:
    return Metadata[T].from_bytes(metadata.to_bytes())


def _is_due(expires: datetime, role: str, now: float) -> bool:
    return expires - datetime.fromtimestamp(now, UTC) < LIFE[role] / 2


def _load(folder: Path) -> Roles:
    """The set that the timestamp names, each file signed by whom the newest root says.

    Raises:
        EnvironmentProblem: a file is missing, damaged or signed by nobody the root knows.
    """
    version = max(int(path.name.split(".")[0]) for path in folder.glob("*.root.json"))
    try:
        root = _read(folder / f"{version}.root.json", Metadata[Root].from_bytes)
        root.verify_delegate("root", root)
        timestamp = _read(folder / "timestamp.json", Metadata[Timestamp].from_bytes)
        name = f"{timestamp.signed.snapshot_meta.version}.snapshot.json"
        snapshot = _read(folder / name, Metadata[Snapshot].from_bytes)
        name = f"{snapshot.signed.meta['targets.json'].version}.targets.json"
        targets = _read(folder / name, Metadata[Targets].from_bytes)
        root.verify_delegate("timestamp", timestamp)
        root.verify_delegate("snapshot", snapshot)
        root.verify_delegate("targets", targets)
    except (OSError, RepositoryError, DeserializationError) as error:
        raise EnvironmentProblem(
            f"the signed metadata in {str(folder)!r} is damaged: {error}", hint="put the folder back from a copy"
        ) from error
    return Roles(root, timestamp, snapshot, targets)


def _read(path: Path, parse: Callable[[bytes], Metadata[T]]) -> Metadata[T]:
    return parse(path.read_bytes())


def _make_key(path: Path, password: str | None) -> CryptoSigner:
    if path.is_file():
        return _load_key(path, password)
    signer = CryptoSigner.generate_ed25519()
    write_whole(path, _pem(signer, password), PRIVATE)
    return signer


def _pem(signer: CryptoSigner, password: str | None) -> bytes:
    private = load_pem_private_key(signer.private_bytes, None)
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _load_key(path: Path, password: str | None) -> CryptoSigner:
    try:
        data = path.read_bytes()
        secret = password.encode() if password and b"ENCRYPTED" in data else None
        return CryptoSigner(load_pem_private_key(data, secret))
    except OSError as error:
        raise ConfigError(f"cannot read the key {str(path)!r}: {error.strerror}") from error
    except TypeError as error:
        raise ConfigError(f"the key {str(path)!r} is encrypted", hint=f"set {PASSWORD_VARIABLE}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"the key {str(path)!r} cannot be used: wrong password, or damaged") from error
