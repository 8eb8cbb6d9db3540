"""Where a device keeps the versions of one model: one packed file each, and a pointer that is switched in one rename.

    <data>/models/<name>/slots.json           what is installed, and which of it is active
                         slots/<digest>.edgeml
                         download/<sha256>.part        the file, as far as it came
                         download/<sha256>.parts/      what was fetched out of it piece by piece

Rules: a file gets its name only when all of it is on disk and checked; the pointer names only files that are there; what the
pointer does not name is rubbish and is removed at start. After every failure the pointer and its files are as before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.atomic import Write, is_full, move, write_file
from edgeml.wire.errors import UpdateError
from edgeml.wire.manifest import Name, Sha256, Version
from edgeml.wire.messages import Slot
from edgeml.wire.structs import learn

SPARE_BYTES: Final = 1024 * 1024  # left free beside a download: the state and the spool must still be written
FULL_DISK_HINT: Final = "free some space; the version that ran before still runs"


class Installed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One slot: `digest` is the manifest's, `sha256` and `bytes` are the packed file's."""

    digest: Sha256
    version: Version
    sha256: Sha256
    bytes: int


class _Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    active: Sha256 | None = None
    installed: tuple[Installed, ...] = ()


class Slots:
    """The slots of one model.

    Args:
        folder: this model's own; made if absent.
        write: stands for `os.write` wherever bytes reach the disk.
    """

    def __init__(self, folder: Path, model: Name, *, write: Write = os.write) -> None:
        self.folder = folder
        self.model = model
        self._write = write
        self._slots = folder / "slots"
        self.downloads = folder / "download"
        with contextlib.suppress(OSError):  # a full disk: there is nothing installed, and the next download tries again
            self._make_folders()
        self._pointer = self._read()
        self._sweep()

    @property
    def active(self) -> str | None:
        """Manifest digest of the version that answers."""
        return self._pointer.active

    @property
    def installed(self) -> tuple[Installed, ...]:
        return self._pointer.installed

    def path(self, digest: str) -> Path:
        return self._slots / f"{digest}.edgeml"

    def find(self, digest: str) -> Installed | None:
        return next((slot for slot in self.installed if slot.digest == digest), None)

    def part(self, sha256: str) -> Path:
        """Where an unfinished download of this file lies."""
        return self.downloads / f"{sha256}.part"

    def pieces(self, sha256: str) -> Path:
        """The folder for what is fetched out of this file piece by piece."""
        return self.downloads / f"{sha256}.parts"

    def require_space(self, needed_bytes: int) -> None:
        """Refuse before the first byte what cannot fit.

        Raises:
            UpdateError: code `disk_full` or `storage`, retryable.
        """
        try:
            self._make_folders()
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise storage_error(error) from error
        if free < needed_bytes + SPARE_BYTES:
            what = f"{needed_bytes} bytes do not fit: {free} are free and {SPARE_BYTES} must stay so"
            raise UpdateError(what, code="disk_full", retryable=True, hint=FULL_DISK_HINT)

    def install(self, file: Path, slot: Installed) -> None:
        """Move a checked file into its slot.

        Raises:
            UpdateError: code `disk_full`, retryable, or `storage`; the slots are as before and `file` is gone.
        """
        try:
            move(file, self.path(slot.digest))
            others = tuple(s for s in self.installed if s.digest != slot.digest)
            self._store(_Pointer(self.active, (*others, slot)))
        except OSError as error:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
                if self.find(slot.digest) is None:
                    self.path(slot.digest).unlink(missing_ok=True)
            raise storage_error(error) from error

    def activate(self, digest: str | None) -> None:
        """Point at an installed version, or at none.

        Raises:
            UpdateError: the disk would not take the pointer; it still points where it did.
        """
        if digest is not None and self.find(digest) is None:
            digest = None  # the factory bundle lies outside the slots
        if digest == self.active:
            return
        try:
            self._store(_Pointer(digest, self.installed))
        except OSError as error:
            raise storage_error(error) from error

    def prune(self, keep: Iterable[str]) -> None:
        """Delete every slot that is neither in `keep` nor active."""
        kept = {*keep, self.active}
        stay = tuple(slot for slot in self.installed if slot.digest in kept)
        try:
            if stay != self.installed:
                self._store(_Pointer(self.active, stay))
        except OSError as error:
            raise storage_error(error) from error
        self._sweep()

    def report(self) -> tuple[Slot, ...]:
        """The slots as reports carry them."""
        return tuple(Slot(slot.version, slot.digest, slot.digest == self.active) for slot in self.installed)

    def clear_downloads(self, *keep: str) -> None:
        """Delete unfinished downloads but those of these sha256."""
        kept = {place for sha256 in keep for place in (self.part(sha256), self.pieces(sha256))}
        for place in self.downloads.glob("*"):
            if place not in kept:
                with contextlib.suppress(OSError):
                    _remove(place)

    def clear_pieces(self, sha256: str) -> None:
        with contextlib.suppress(OSError):
            _remove(self.pieces(sha256))

    def _read(self) -> _Pointer:
        try:
            pointer = msgspec.json.decode((self.folder / "slots.json").read_bytes(), type=_Pointer)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return _Pointer()
        there = tuple(slot for slot in pointer.installed if self.path(slot.digest).is_file())
        active = pointer.active if any(slot.digest == pointer.active for slot in there) else None
        return _Pointer(active, there)

    def _store(self, pointer: _Pointer) -> None:
        write_file(self.folder / "slots.json", msgspec.json.encode(pointer), write=self._write)
        self._pointer = pointer

    def _make_folders(self) -> None:
        for place in (self.folder, self._slots, self.downloads):
            place.mkdir(parents=True, exist_ok=True)

    def _sweep(self) -> None:
        named = {self.path(slot.digest) for slot in self.installed}
        for file in self._slots.glob("*"):
            if file not in named:
                with contextlib.suppress(OSError):  # rubbish does no harm; the next sweep tries again
                    file.unlink()


def _remove(place: Path) -> None:
    if not place.is_dir():
        return place.unlink(missing_ok=True)
    for file in place.glob("*"):
        file.unlink()
    return place.rmdir()


def storage_error(error: OSError) -> UpdateError:
    """What a failed write means for an update."""
    full = is_full(error)
    return UpdateError(
        f"cannot store the update: {error.strerror}",
        code="disk_full" if full else "storage",
        retryable=True,
        hint=FULL_DISK_HINT if full else None,
    )


learn(__name__)
