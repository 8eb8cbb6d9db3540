# ruff: noqa: ARG002 - the stand-in engine answers without looking
"""A device between its factory bundle and a service's next version, with nothing that runs models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import urllib3

from edgeml.fleet.deltas import read_contents
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.fetch import Fetcher
from edgeml.runtime.install import Installer, Vitals
from edgeml.runtime.slots import Slots
from edgeml.runtime.trust import Custom, Trust
from edgeml.runtime.updater import Fetched, Tally
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

    def run_beside(self, model: str, digest: str) -> None: ...

    def compared(self, model: str, digest: str) -> Tally | None:
        return None

    def stop_beside(self, model: str) -> None: ...

    def vitals(self, model: str, digest: str) -> Vitals:
        return Vitals(0, 0)

    def version(self, model: str, digest: str) -> str | None:
        return None

    def note(self, model: str, problem: str) -> None:
        self.notes.append(problem)


class Board:
    """A device that has 1.0.0 from the factory, and a service that has 1.1.0; both have `second`, if it is given."""

    def __init__(
        self,
        folder: Path,
        service: Service,
        pool: urllib3.PoolManager,
        *,
        old: bytes = OLD.tobytes(),
        new: bytes = NEW.tobytes(),
        second: bytes | None = None,
    ) -> None:
        self.old = make_bundle(folder / "old", version="1.0.0", model=old, second=second)
        self.new = make_bundle(folder / "new", version="1.1.0", model=new, second=second)
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
