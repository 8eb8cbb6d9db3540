"""Enrolment: tokens shown once, kept as hashes; ids and tags that can do no harm anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeml.fleet.devices import Inventory, password_fits, password_hash
from edgeml.fleet.store import Store, devices
from edgeml.wire.errors import ServiceError, UsageError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "fleet.db")
    yield made
    made.close()


def test_a_token_names_its_device_and_is_not_stored(store: Store, tmp_path: Path) -> None:
    first, second = Inventory(store).enrol(["cam-1", "cam-2"], {"site": "north"}, 1.0, "ann")
    assert [Inventory(store).authenticate(one.token) for one in (first, second)] == ["cam-1", "cam-2"]
    assert Inventory(store).authenticate(first.token + "x") is None
    assert Inventory(store).authenticate("") is None
    files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert first.token.encode() not in files
    assert b"cam-1" in files


def test_a_renewed_token_ends_the_old_one_and_lets_sessions_count_anew(store: Store) -> None:
    inventory = Inventory(store)
    (old,) = inventory.enrol(["cam-1"], {}, 1.0, "ann")
    new = inventory.renew("cam-1", 2.0, "ann")
    assert (inventory.authenticate(old.token), inventory.authenticate(new.token)) == (None, "cam-1")
    with pytest.raises(ServiceError, match="no device 'cam-9'"):
        inventory.renew("cam-9", 2.0, "ann")


def test_enrolling_is_all_or_nothing(store: Store) -> None:
    inventory = Inventory(store)
    inventory.enrol(["cam-2"], {}, 1.0, "ann")
    with pytest.raises(ServiceError, match="'cam-2' is enrolled already") as caught:
        inventory.enrol(["cam-1", "cam-2", "cam-3"], {}, 2.0, "ann")
    assert caught.value.status == 409
    with store.read() as connection:
        assert [row.id for row in devices.listed(connection)] == ["cam-2"]


@pytest.mark.parametrize(
    "device", ["", "-x", ".x", "a/b", "a+b", "#", "a b", "ä", "a" * 65, "a:b", "a\n", "edgeml-service", "edgeml-probe"]
)
def test_ids_that_could_mean_something_to_a_broker_or_a_file_are_refused(store: Store, device: str) -> None:
    with pytest.raises(UsageError, match="device id"):
        Inventory(store).enrol([device], {}, 1.0, "ann")


def test_an_id_given_twice_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="twice"):
        Inventory(store).enrol(["cam-1", "cam-1"], {}, 1.0, "ann")


@pytest.mark.parametrize(
    "tags", [{"": "x"}, {"a" * 200: "x"}, {"a": "x" * 200}, {"a": "b\nc"}, {str(n): "" for n in range(17)}]
)
def test_tags_out_of_bounds_are_refused(store: Store, tags: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="tag"):
        Inventory(store).enrol(["cam-1"], tags, 1.0, "ann")


def test_the_broker_is_asked_to_admit_after_every_change_of_who_may_speak(store: Store) -> None:
    seen: list[list[str]] = []

    def note() -> None:
        with store.read() as connection:
            seen.append(list(devices.passwords(connection)))

    inventory = Inventory(store, note)
    inventory.enrol(["cam-1", "cam-2"], {}, 1.0, "ann")
    inventory.renew("cam-1", 2.0, "ann")
    inventory.remove("cam-1", 3.0, "ann")
    inventory.set_tags("cam-2", {"site": "south"}, 4.0, "ann")
    assert seen == [["cam-1", "cam-2"], ["cam-1", "cam-2"], ["cam-2"]]


def test_a_password_hash_is_pbkdf2_with_sha512() -> None:
    stored = password_hash("secret")
    empty, kind, rounds, salt, digest = stored.split("$")
    expected = hashlib.pbkdf2_hmac("sha512", b"secret", base64.b64decode(salt), int(rounds), dklen=64)
    assert (empty, kind, base64.b64decode(digest)) == ("", "7", expected)
    assert password_hash("secret") != stored
    assert password_fits("secret", stored)
    assert not password_fits("secreT", stored)
