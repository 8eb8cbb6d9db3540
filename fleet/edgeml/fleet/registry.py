"""Publish: check a bundle, keep it where devices fetch it, sign that it may run.

In that order, each step safe to repeat. A version row says `signing` until its signature stands; a service that was killed in
between finishes it at the next start (`recover`).
"""

from __future__ import annotations

import shutil
import threading
import uuid
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeml.fleet.config import Places
from edgeml.fleet.deltas import MOST_BUNDLE_BYTES, Contents, make_delta, read_contents, worthwhile
from edgeml.fleet.disk import private_folder, sync_folder, write_whole
from edgeml.fleet.packed import Packed, check_packed
from edgeml.fleet.store import Store, events, versions
from edgeml.fleet.store.versions import VersionRow
from edgeml.fleet.trust import Target, Trust
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.delta import delta_path
from edgeml.wire.errors import EnvironmentProblem, ServiceError
from edgeml.wire.manifest import Manifest, decode_manifest

MOST_BASES: Final = 4  # versions that a new one gets deltas from


class Registry:
    """Model versions: rows in the store, bytes under `tuf/targets`, signatures in the TUF metadata."""

    def __init__(self, store: Store, trust: Trust, places: Places) -> None:
        self._store = store
        self._trust = trust
        self._places = places
        self._lock = threading.Lock()

    def staging(self) -> Path:
        """A path for an upload, on the disk where it will stay."""
        return private_folder(self._places.incoming) / f"{uuid.uuid4().hex}.edgeml"

    def publish(self, staged: Path, now: float, actor: str) -> tuple[VersionRow, bool]:
        """Take the bundle at `staged` (it is moved, or deleted); gives its row and whether it is new.

        Raises:
            BundleError: it is not what its manifest promises.
            ServiceError: (409) this version is published with other bytes.
        """
        try:
            packed = check_packed(staged)
            with self._lock:
                return self._publish(packed, staged, now, actor)
        finally:
            staged.unlink(missing_ok=True)

    def recover(self, now: float) -> list[VersionRow]:
        """Finish what a killed service began; gives the versions that became published."""
        shutil.rmtree(self._places.incoming, ignore_errors=True)
        with self._store.read() as connection:
            begun = [row for row in versions.listed(connection) if row.state == "signing"]
        return [self._sign(row, now) for row in begun]

    def _publish(self, packed: Packed, staged: Path, now: float, actor: str) -> tuple[VersionRow, bool]:
        manifest = packed.manifest
        with self._store.read() as connection:
            old = versions.find(connection, manifest.name, manifest.version)
        if old is not None:
            if old.manifest_sha256 != manifest.digest:
                raise ServiceError(
                    f"{manifest.name}@{manifest.version} is published already, with other bytes"
                    f" (manifest {old.manifest_sha256[:12]}, not {manifest.digest[:12]})",
                    status=409,
                    hint="give the new bundle a new version",
                )
            return (self._sign(old, now) if old.state == "signing" else old), False
        row = _row(packed, now)
        self._keep(staged, row)
        with self._store.write() as connection:
            versions.add(connection, row, manifest.encode())
            what = {"manifest_sha256": row.manifest_sha256, "bytes": row.bytes}
            events.append(connection, at=now, actor=actor, kind="published", subject=f"{row.model}@{row.version}", body=what)
        return self._sign(row, now), True

    def _keep(self, staged: Path, row: VersionRow) -> None:
        place = self.bundle_path(row)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            staged.chmod(0o644)
            staged.replace(place)
            sync_folder(place.parent)
        except OSError as error:
            raise EnvironmentProblem(f"cannot keep the bundle in {str(place.parent)!r}: {error.strerror}") from error

    def bundle_path(self, row: VersionRow) -> Path:
        """Where the bytes are: TUF's consistent snapshot puts the digest before the file's name."""
        return self._places.tuf / "targets" / "models" / row.model / f"{row.bundle_sha256}.{row.version}.edgeml"

    def _sign(self, row: VersionRow, now: float) -> VersionRow:
        with self._store.read() as connection:
            text = versions.manifest_json(connection, row.model, row.version)
        assert text is not None
        custom = _custom(decode_manifest(text.encode()))
        self._trust.sign_target(Target(row.path, row.bundle_sha256, row.bytes, custom), now, *self._deltas(row))
        with self._store.write() as connection:
            versions.set_state(connection, row.model, row.version, "published")
        return msgspec.structs.replace(row, state="published")

    def _deltas(self, row: VersionRow) -> list[Target]:
        """Make the deltas from the versions published last: the ones that devices run."""
        if row.bytes > MOST_BUNDLE_BYTES:
            return []
        new = read_contents(self.bundle_path(row))
        return [target for base in self._bases(row) if (target := self._delta(base, row, new)) is not None]

    def _bases(self, row: VersionRow) -> list[VersionRow]:
        with self._store.read() as connection:
            older = [old for old in versions.listed(connection, row.model) if old.state == "published"]
        return [old for old in older if old.manifest_sha256 != row.manifest_sha256 and old.bytes <= MOST_BUNDLE_BYTES][
            :MOST_BASES
        ]

    def _delta(self, base: VersionRow, row: VersionRow, new: Contents) -> Target | None:
        path = self.bundle_path(base)
        if not path.is_file():
            return None
        delta = make_delta(read_contents(path), new)
        if not worthwhile(len(delta), row.bytes):
            return None
        target = Target(
            delta_path(row.model, row.version, base.manifest_sha256), sha256_hex(delta), len(delta), {"base": base.version}
        )
        folder, _, name = target.path.rpartition("/")
        write_whole(self._places.tuf / "targets" / folder / f"{target.sha256}.{name}", delta)
        return target


def _row(packed: Packed, now: float) -> VersionRow:
    manifest = packed.manifest
    return VersionRow(
        model=manifest.name,
        version=manifest.version,
        manifest_sha256=manifest.digest,
        bundle_sha256=packed.sha256,
        bytes=packed.bytes,
        path=f"models/{manifest.name}/{manifest.version}.edgeml",
        signature=manifest.signature.digest,
        created_at=now,
        state="signing",
    )


def _custom(manifest: Manifest) -> dict[str, Any]:
    """What a device needs to choose, signed."""
    artifacts = [{"format": a.format, "precision": a.precision, "engine": a.requires.engine} for a in manifest.artifacts]
    return {
        "model": manifest.name,
        "version": manifest.version,
        "manifest_sha256": manifest.digest,
        "signature": manifest.signature.digest,
        "artifacts": artifacts,
    }
