"""Publishing: what is taken, what is refused, and what a kill in the middle leaves."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from pathlib import Path

import msgspec
import pytest

from edgeml.fleet.config import Places
from edgeml.fleet.packed import check_packed
from edgeml.fleet.registry import Registry
from edgeml.fleet.store import Store, events, versions
from edgeml.fleet.store.ledger import StoreLedger
from edgeml.fleet.trust import Target, Trust, create
from edgeml.runtime import packing
from edgeml.wire.canonical import ZipEntry, directory, local_header
from edgeml.wire.errors import BundleError, ServiceError
from edgeml.wire.manifest import Deferral, Promise
from tests.unit.fleet_bundles import make_bundle, make_manifest

NOW = 1_800_000_000.0


class Desk:
    """A registry with a store and keys of its own."""

    def __init__(self, folder: Path) -> None:
        self.places = Places(folder / "fleet")
        create(self.places, NOW)
        self.store = Store(self.places.database)
        self.trust = Trust(self.places)
        self.registry = Registry(self.store, self.trust, self.places)

    def publish(self, bundle: Path) -> tuple[versions.VersionRow, bool]:
        staged = self.registry.staging()
        shutil.copyfile(bundle, staged)
        return self.registry.publish(staged, NOW, "test")

    def published(self) -> list[str]:
        with self.store.read() as connection:
            return [f"{row.model}@{row.version} {row.state}" for row in versions.listed(connection)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_bundle_is_kept_under_its_digest_and_signed(desk: Desk, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    sha256 = hashlib.sha256(bundle.read_bytes()).hexdigest()
    row, is_new = desk.publish(bundle)
    assert is_new
    assert (row.path, row.bundle_sha256, row.bytes) == ("models/kws/1.0.0.edgeml", sha256, bundle.stat().st_size)
    kept = desk.places.tuf / "targets" / "models" / "kws" / f"{sha256}.1.0.0.edgeml"
    assert kept.read_bytes() == bundle.read_bytes()
    assert desk.trust.targets() == {row.path: sha256}
    assert desk.published() == ["kws@1.0.0 published"]


def test_the_same_bytes_again_change_nothing(desk: Desk, tmp_path: Path) -> None:
    first, _ = desk.publish(make_bundle(tmp_path))
    again, is_new = desk.publish(make_bundle(tmp_path / "copy"))
    assert (again, is_new) == (first, False)
    with desk.store.read() as connection:
        assert [event.kind for event in events.listed(connection)] == ["published"]


def test_a_version_cannot_be_published_again_with_other_bytes(desk: Desk, tmp_path: Path) -> None:
    desk.publish(make_bundle(tmp_path))
    before = desk.trust.targets()
    with pytest.raises(ServiceError, match=r"other bytes.*new version") as caught:
        desk.publish(make_bundle(tmp_path, model=b"retrained"))
    assert caught.value.status == 409
    assert desk.trust.targets() == before
    assert len(list((desk.places.tuf / "targets").rglob("*.edgeml"))) == 1


def test_any_changed_byte_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    data = bundle.read_bytes()
    damaged = tmp_path / "damaged.edgeml"
    for position in range(len(data)):
        damaged.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(BundleError):
            check_packed(damaged)


@pytest.mark.parametrize("keep", [0, 1, 29, 30, 100, -1, -22])
def test_a_truncated_bundle_is_refused(tmp_path: Path, keep: int) -> None:
    bundle = make_bundle(tmp_path)
    bundle.write_bytes(bundle.read_bytes()[:keep])
    with pytest.raises(BundleError):
        check_packed(bundle)


def test_a_manifest_that_contradicts_itself_is_refused(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_manifest(b"model bytes", "kws", "1.0.0")
    artifact = msgspec.structs.replace(manifest.artifacts[0], outputs=())
    monkeypatch.setattr(packing, "check_manifest", lambda _: None)  # as somebody else's packer would
    lying = tmp_path / "lying.edgeml"
    packing.write_bundle(msgspec.structs.replace(manifest, artifacts=(artifact,)), {artifact.sha256: b"model bytes"}, lying)
    with pytest.raises(BundleError, match="artifact onnx:fp32: outputs do not bind the signature: expected y, got none"):
        desk.publish(lying)
    assert desk.published() == []


def test_what_export_promised_is_known_to_the_gate(desk: Desk, tmp_path: Path) -> None:
    manifest = make_manifest(b"model bytes", "kws", "1.0.0")
    deferring = msgspec.structs.replace(manifest.artifacts[0], deferral=Deferral(promise=Promise(0.97, 0.12, 0.95, 0.01, 500)))
    (tmp_path / "made").mkdir()
    path = tmp_path / "made" / "kws.edgeml"
    packing.write_bundle(msgspec.structs.replace(manifest, artifacts=(deferring,)), {deferring.sha256: b"model bytes"}, path)
    desk.publish(path)
    facts = StoreLedger(desk.store, lambda *_: None).version("kws", "1.0.0")
    assert facts is not None
    assert facts.offload == 0.12


def test_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    bundle.write_bytes(bundle.read_bytes() + b"\x00")
    with pytest.raises(BundleError, match="size"):
        check_packed(bundle)


def test_a_manifest_that_claims_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.edgeml"
    path.write_bytes(local_header(ZipEntry("manifest.json", 0xF000_0000, 0)))
    with pytest.raises(BundleError, match="too large"):
        check_packed(path)


def test_a_zip_with_a_path_outside_is_no_bundle(tmp_path: Path) -> None:
    data = b"#!/bin/sh"
    entry = ZipEntry("../../etc/cron.d/x", len(data), zlib.crc32(data))
    path = tmp_path / "evil.edgeml"
    path.write_bytes(local_header(entry) + data + directory([entry]))
    with pytest.raises(BundleError):
        check_packed(path)


def test_what_is_refused_leaves_nothing_behind(desk: Desk, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    bundle.write_bytes(b"PK\x03\x04 not a bundle")
    with pytest.raises(BundleError):
        desk.publish(bundle)
    assert desk.published() == []
    assert list(desk.places.incoming.iterdir()) == []
    assert not (desk.places.tuf / "targets").exists()


def test_a_kill_before_the_signature_is_finished_at_the_next_start(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def die(_target: Target, _now: float) -> None:
        raise KilledError

    monkeypatch.setattr(desk.trust, "sign_target", die)
    with pytest.raises(KilledError):
        desk.publish(make_bundle(tmp_path))
    assert desk.published() == ["kws@1.0.0 signing"]
    assert desk.trust.targets() == {}

    restarted = Registry(desk.store, Trust(desk.places), desk.places)
    assert [row.version for row in restarted.recover(NOW)] == ["1.0.0"]
    assert desk.published() == ["kws@1.0.0 published"]
    assert list(Trust(desk.places).targets()) == ["models/kws/1.0.0.edgeml"]


def test_uploads_left_by_a_killed_service_are_swept(desk: Desk) -> None:
    left = desk.registry.staging()
    left.write_bytes(b"half")
    desk.registry.recover(NOW)
    assert not left.exists()
