"""Publishing a version makes the deltas that devices will ask for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edgeml.fleet.config import Places
from edgeml.fleet.registry import MOST_BASES, Registry
from edgeml.fleet.store import Store
from edgeml.fleet.trust import Trust, create
from edgeml.runtime.delta import apply_delta
from edgeml.wire.delta import delta_path
from tests.unit.fleet_bundles import make_bundle

NOW = 1_800_000_000.0
RNG = np.random.default_rng(9)


class Desk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = Places(folder / "fleet")
        create(self.places, NOW)
        self.trust = Trust(self.places)
        self.registry = Registry(Store(self.places.database), self.trust, self.places)
        self.manifests: dict[str, str] = {}

    def publish(self, version: str, weights: bytes) -> Path:
        bundle = make_bundle(self.folder / "bundles", version=version, model=weights)
        staged = self.registry.staging()
        shutil.copyfile(bundle, staged)
        row, _ = self.registry.publish(staged, NOW + len(self.manifests), "test")
        self.manifests[version] = row.manifest_sha256
        return bundle

    def deltas(self, version: str) -> dict[str, Path]:
        """Base version -> the signed delta's file."""
        found = {}
        for base, digest in self.manifests.items():
            path = delta_path("kws", version, digest)
            sha256 = self.trust.targets().get(path)
            if sha256 is not None:
                folder, _, name = path.rpartition("/")
                found[base] = self.places.tuf / "targets" / folder / f"{sha256}.{name}"
        return found


def weights(step: int) -> bytes:
    start = np.random.default_rng(1).integers(-40, 40, 20_000).astype(np.int8)
    start[:: 50 - step] += 1
    return start.tobytes()


def test_a_fine_tune_is_published_with_deltas_that_make_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    old = desk.publish("1.0.0", weights(0))
    new = desk.publish("1.1.0", weights(1))
    made = desk.deltas("1.1.0")
    assert list(made) == ["1.0.0"]
    assert made["1.0.0"].stat().st_size < 0.3 * new.stat().st_size
    result = tmp_path / "result"
    apply_delta(
        made["1.0.0"], old, result, manifest_sha256=desk.manifests["1.1.0"], result_bytes=new.stat().st_size
    )  # fmt: skip
    assert result.read_bytes() == new.read_bytes()


def test_a_model_trained_anew_is_published_without(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.publish("1.0.0", RNG.bytes(20_000))
    desk.publish("1.1.0", RNG.bytes(20_000))
    assert desk.deltas("1.1.0") == {}


def test_only_the_newest_versions_are_bases(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for step in range(MOST_BASES + 2):
        desk.publish(f"1.{step}.0", weights(step))
    assert list(desk.deltas(f"1.{MOST_BASES + 1}.0")) == [f"1.{step}.0" for step in range(1, MOST_BASES + 1)]
