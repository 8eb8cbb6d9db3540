"""Who is in which wave."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.fleet.waves import bucket, due, places, stratum

SITES = st.dictionaries(st.text("abcdef", min_size=1, max_size=6), st.tuples(st.sampled_from("xyz")), max_size=40)


def test_the_bucket_is_eight_bytes_of_a_hash() -> None:
    expected = int.from_bytes(hashlib.sha256(b"salt\0meter-7").digest()[:8], "big") / 2**64
    assert bucket("salt", "meter-7") == expected


def test_a_missing_tag_is_a_stratum_of_its_own() -> None:
    assert stratum({"site": "Aachen"}, ("site", "hardware")) == ("Aachen", "")


@given(SITES, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_growing_share_keeps_whom_it_had(strata: dict[str, tuple[str, ...]], one: float, other: float) -> None:
    small, large = sorted((one, other))
    early = set(due("salt", strata, small, ()))
    assert early <= early | set(due("salt", strata, large, early))
    assert not early & set(due("salt", strata, large, early))


@given(SITES, st.floats(0.001, 1))
def test_a_canary_has_a_device_if_there_is_any(strata: dict[str, tuple[str, ...]], share: float) -> None:
    assert bool(due("salt", strata, share, ())) == bool(strata)


@given(SITES, st.floats(0.05, 1))
def test_every_stratum_gives_its_share_to_within_a_device(strata: dict[str, tuple[str, ...]], share: float) -> None:
    chosen = [device for device, place in places("salt", strata).items() if place < share]
    for site in set(strata.values()):
        size = sum(name == site for name in strata.values())
        taken = sum(strata[device] == site for device in chosen)
        assert abs(taken - share * size) < 1 + 1e-9


def test_many_small_sites_together_give_the_share() -> None:
    strata = {f"d{site}-{number}": (f"site-{site}",) for site in range(100) for number in range(3)}
    assert 5 <= len(due("salt", strata, 0.05, ())) <= 25  # 15 expected


def test_the_whole_share_takes_everybody() -> None:
    strata = {f"d{number}": ("a",) for number in range(17)}
    assert set(due("salt", strata, 1.0, ())) == set(strata)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_late_joiners_take_no_device_back_and_are_served_too(share: float) -> None:
    strata = {f"d{number}": ("a",) for number in range(50)}
    told = set(due("salt", strata, share, ()))
    for number in range(200):
        strata[f"late{number}"] = ("a",)
        told |= set(due("salt", strata, share, told))
    assert any(name.startswith("late") for name in told)
    assert len(told) == pytest.approx(share * 250, abs=0.12 * 250)


def test_another_salt_draws_other_devices() -> None:
    strata = {f"d{number}": ("a",) for number in range(100)}
    assert set(due("one", strata, 0.1, ())) != set(due("two", strata, 0.1, ()))
