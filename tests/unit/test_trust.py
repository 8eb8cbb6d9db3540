"""The TUF client: what signed metadata allows, and the attacks it stops."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import urllib3

from edgeml.runtime.trust import Trust
from edgeml.wire.errors import ConfigError, UpdateError
from tests.system.standin import Repository, Service

PATH = "models/kws/1.0.0.edgeml"
CUSTOM = {"model": "kws", "version": "1.0.0", "manifest_sha256": "a" * 64}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as started:
        started.repository.add(PATH, b"bundle bytes", CUSTOM)
        yield started


@pytest.fixture
def pool() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False) as made:
        yield made


class Clock:
    def __init__(self) -> None:
        self.offset_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset_s


def client(service: Service, folder: Path, pool: urllib3.PoolManager, now: Clock | None = None) -> Trust:
    return Trust(folder / "trust", service.url, service.root.read_bytes(), pool=pool, now=now or Clock())


def test_a_listed_bundle_comes_with_length_hash_and_address(
    service: Service, tmp_path: Path, pool: urllib3.PoolManager
) -> None:
    found = client(service, tmp_path, pool).find(PATH)
    digest = hashlib.sha256(b"bundle bytes").hexdigest()
    assert found.remote.length_bytes == len(b"bundle bytes")
    assert found.remote.digest == digest
    assert found.remote.url == f"{service.url}/tuf/targets/models/kws/{digest}.1.0.0.edgeml"
    assert (found.custom.model, found.custom.version) == ("kws", "1.0.0")


def test_a_bundle_that_is_not_listed_is_refused(service: Service, tmp_path: Path, pool: urllib3.PoolManager) -> None:
    with pytest.raises(UpdateError) as caught:
        client(service, tmp_path, pool).find("models/kws/9.9.9.edgeml")
    assert (caught.value.code, caught.value.retryable) == ("unlisted", False)


def test_a_service_that_is_down_is_waited_for(service: Service, tmp_path: Path, pool: urllib3.PoolManager) -> None:
    trust = client(service, tmp_path, pool)
    service.stop()
    with pytest.raises(UpdateError) as caught:
        trust.find(PATH)
    assert caught.value.code == "unreachable"


def test_expired_metadata_blocks_installing(service: Service, tmp_path: Path, pool: urllib3.PoolManager) -> None:
    service.repository.sign(expires=datetime.now(UTC) - timedelta(seconds=5))
    with pytest.raises(UpdateError) as caught:
        client(service, tmp_path, pool).find(PATH)
    assert (caught.value.code, caught.value.retryable) == ("metadata_expired", True)


def test_a_clock_that_fell_back_does_not_make_old_metadata_fresh(
    service: Service, tmp_path: Path, pool: urllib3.PoolManager
) -> None:
    now = Clock()
    trust = client(service, tmp_path, pool, now)
    trust.find(PATH)
    floor = trust.floor()
    service.repository.sign(expires=datetime.now(UTC) + timedelta(seconds=3600))
    (tmp_path / "trust" / "floor").write_text(repr(floor + 7200))  # this device has lived through two hours more
    with pytest.raises(UpdateError) as caught:
        trust.find(PATH)
    assert caught.value.code == "metadata_expired"
    assert trust.floor() == floor + 7200


def test_the_floor_only_rises(service: Service, tmp_path: Path, pool: urllib3.PoolManager) -> None:
    now = Clock()
    trust = client(service, tmp_path, pool, now)
    trust.find(PATH)
    floor = trust.floor()
    now.offset_s = -3600.0
    trust.find(PATH)
    assert trust.floor() == floor


def test_metadata_of_another_key_is_refused(service: Service, tmp_path: Path, pool: urllib3.PoolManager) -> None:
    stranger = Repository()
    stranger.add(PATH, b"evil bytes", CUSTOM)
    service.repository = stranger
    with pytest.raises(UpdateError) as caught:
        client(service, tmp_path, pool).find(PATH)
    assert (caught.value.code, caught.value.retryable) == ("untrusted", False)


def test_older_metadata_than_seen_before_is_refused(service: Service, tmp_path: Path, pool: urllib3.PoolManager) -> None:
    trust = client(service, tmp_path, pool)
    old = service.repository.files["timestamp.json"]
    service.repository.sign()
    trust.find(PATH)
    service.repository.files["timestamp.json"] = old
    with pytest.raises(UpdateError) as caught:
        trust.find(PATH)
    assert caught.value.code == "untrusted"


def test_an_endless_timestamp_is_cut(service: Service, tmp_path: Path, pool: urllib3.PoolManager) -> None:
    service.repository.files["timestamp.json"] = b"{" * 1_000_000
    with pytest.raises(UpdateError) as caught:
        client(service, tmp_path, pool).find(PATH)
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize(
    "custom",
    [{}, {"model": "kws"}, {**CUSTOM, "manifest_sha256": "zz"}, {**CUSTOM, "version": "latest"}, {**CUSTOM, "model": "../x"}],
    ids=["none", "half", "digest", "version", "model"],
)
def test_a_bundle_signed_without_what_a_device_needs_is_refused(
    service: Service, tmp_path: Path, pool: urllib3.PoolManager, custom: dict[str, str]
) -> None:
    service.repository.add(PATH, b"bundle bytes", custom)
    with pytest.raises(UpdateError) as caught:
        client(service, tmp_path, pool).find(PATH)
    assert caught.value.code == "untrusted"


def test_a_root_that_is_no_root_is_a_setting_to_mend(service: Service, tmp_path: Path, pool: urllib3.PoolManager) -> None:
    trust = Trust(tmp_path / "trust", service.url, b"{}", pool=pool)
    with pytest.raises(ConfigError, match=r"root\.json"):
        trust.find(PATH)
