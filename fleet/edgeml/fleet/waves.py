"""Who is in which wave: a place in [0, 1) for every device, from a hash, spread evenly inside each stratum.

`bucket` is the hash itself. Inside a stratum (a site and a hardware class) devices stand in the order of their buckets, at
(rank + offset) / size, where the offset is the stratum's own hash. A share then takes its share of every stratum, rounded up or
down by that offset: a hundred sites of three devices give a 5 % canary 15 devices, neither none nor a hundred. The hold-back is
what stands at the top of the range.

Ranks move when devices join late, so stickiness does not rest on them: whoever was told stays told (the ledger's assignments),
and only devices not yet told are placed anew. A late joiner takes its place by hash and is told when the share reaches it, in
the wave that runs then; a canary that is over takes nobody. Where a share is so small that nobody stands below it, the device
with the lowest place is taken: a canary has at least one device if there is any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

Stratum = tuple[str, ...]
_SPAN: Final = 2**64


@lru_cache(maxsize=1 << 17)
def bucket(salt: str, device: str) -> float:
    """A place in [0, 1) that depends on nothing else: first 8 bytes of sha256(salt, NUL, device), big-endian, over 2**64."""
    digest = hashlib.sha256(f"{salt}\0{device}".encode()).digest()
    # the division may round up to 1.0 for the last 2**10 values of 2**64
    return min(int.from_bytes(digest[:8], "big") / _SPAN, 1 - 2**-53)


def stratum(tags: Mapping[str, str], names: Iterable[str]) -> Stratum:
    """The stratum a device belongs to; a tag it lacks is empty."""
    return tuple(tags.get(name, "") for name in names)


def places(salt: str, strata: Mapping[str, Stratum]) -> dict[str, float]:
    """Device -> place in [0, 1), given device -> stratum."""
    members: dict[Stratum, list[str]] = {}
    for device, name in strata.items():
        members.setdefault(name, []).append(device)
    found: dict[str, float] = {}
    for name, devices in members.items():
        offset = bucket(salt, "stratum\0" + "\0".join(name))
        devices.sort(key=lambda device: (bucket(salt, device), device))
        for rank, device in enumerate(devices):
            found[device] = (rank + offset) / len(devices)
    return found


def due(salt: str, strata: Mapping[str, Stratum], share: float, told: Collection[str]) -> Sequence[str]:
    """Devices to tell now, lowest place first, so that `share` of every stratum has been told.

    `strata` gives every eligible device, told or not, and its stratum; those in `told` are never due again.
    """
    if not strata or share <= 0:
        return ()
    standing = sorted(places(salt, strata).items(), key=lambda item: (item[1], item[0]))
    below = [device for device, place in standing if place < share]
    if not below and not any(device in strata for device in told):
        below = [standing[0][0]]
    known = frozenset(told)
    return [device for device in below if device not in known]
