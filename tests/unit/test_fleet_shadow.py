"""What the service keeps of a version that ran beside another: sums, each window once, forgotten with the device."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from starlette.testclient import TestClient

from edgeml.fleet import show
from edgeml.fleet.api.app import build_app
from edgeml.fleet.config import Config
from edgeml.fleet.service import Fleet
from edgeml.fleet.store import Store, devices, forgotten, messages
from edgeml.fleet.store.devices import NewDevice
from edgeml.fleet.store.messages import ShadowSum
from edgeml.wire.messages import ShadowCounts, Telemetry
from tests.unit.fleet_bundles import make_bundle

OLD, NEW = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "fleet.db")
    with made.write() as connection:
        devices.add(connection, [NewDevice(one, f"hash of {one}", "$7$", {}) for one in ("d1", "d2")], 1.0)
    return made


def compared(seq: int, device: str = "d1", *, errors: int = 0, manifest: str = NEW) -> Telemetry:
    """A window in which a version ran on 10 inputs beside the one that answered, and gave 9 times the same answer."""
    counts = ShadowCounts("1.1.0", manifest, 10, 9, errors, served_s=0.5, shadow_s=0.75)
    return Telemetry(device, 1, seq, "kws", "1.0.0", OLD, 60.0 * seq, 60.0, 10, shadow=counts)


def take(store: Store, *windows: Telemetry) -> list[bool]:
    with store.write() as connection:
        return [messages.add_telemetry(connection, window, 7.0) for window in windows]


def sums(store: Store, manifest: str = NEW) -> ShadowSum | None:
    with store.read() as connection:
        return messages.shadow_of(connection, manifest)


def test_windows_of_all_devices_add_up(store: Store) -> None:
    take(store, compared(1), compared(2, errors=3), compared(1, "d2"))
    assert sums(store) == ShadowSum(devices=2, runs=30, agreed=27, errors=3, served_s=1.5, shadow_s=2.25)


def test_a_window_that_comes_again_counts_once(store: Store) -> None:
    assert take(store, compared(1), compared(1)) == [True, False]
    assert sums(store) == ShadowSum(1, 10, 9, 0, 0.5, 0.75)


def test_a_version_that_never_ran_beside_another_has_no_sum(store: Store) -> None:
    take(store, compared(1, manifest="c" * 64), Telemetry("d1", 1, 2, "kws", "1.1.0", NEW, 1.0, 60.0, 5))
    assert sums(store) is None


def test_a_device_that_is_forgotten_is_out_of_the_sum(store: Store) -> None:
    take(store, compared(1), compared(5), compared(1, "d2"))
    with store.write() as connection:
        forgotten.forget(connection, "d1", 4, 9.0)
    assert sums(store) == ShadowSum(1, 10, 9, 0, 0.5, 0.75)


def test_the_terminal_says_it_in_a_sentence() -> None:
    one = msgspec.to_builtins(ShadowSum(1, 200, 198, 0, 2.0, 2.08))
    assert show.shadow(one) == "beside the old version on 1 device: 198 of 200 answers as its, 1.04 times its time, 0 errors"


def test_prometheus_reads_how_its_calls_ended(tmp_path: Path) -> None:
    counts = ShadowCounts("1.0.0", "", 10, 9, 2, served_s=0.5, shadow_s=0.75)
    with (
        Fleet(Config(tmp_path / "fleet", broker="none", tick_s=3600)) as fleet,
        TestClient(build_app(fleet)) as client,
    ):
        operator = {"Authorization": f"Bearer {fleet.operator_key}"}
        digest = client.post("/v1/models", headers=operator, content=make_bundle(tmp_path).read_bytes()).json()[
            "manifest_sha256"
        ]
        asked = {"model": "kws", "version": "1.0.0", "canary": 1.0, "waves": [], "hold_back": 0.0}
        rollout = client.post("/v1/rollouts", headers=operator, json=asked).json()["id"]
        fleet.inventory.enrol(["d1"], {}, 1.0, "operator")
        window = Telemetry(
            "d1", 1, 1, "kws", "0.9.0", OLD, 1.0, 60.0, 12, shadow=msgspec.structs.replace(counts, manifest_sha256=digest)
        )
        with fleet.store.write() as connection:
            messages.add_telemetry(connection, window, 7.0)
        lines = client.get("/metrics").text.splitlines()
    for ended, calls in (("agreed", 9), ("differed", 1), ("error", 2)):
        assert f'edgeml_rollout_shadow_calls{{ended="{ended}",rollout="{rollout}"}} {calls}.0' in lines
