"""A rollout as an operator asks for it, turned into the specification that is carried out."""

from __future__ import annotations

import secrets
from itertools import pairwise
from typing import Annotated

import msgspec

from edgeml.fleet.rollout import RolloutSpec, Wave
from edgeml.fleet.store.versions import VersionRow
from edgeml.wire.errors import UsageError
from edgeml.wire.structs import learn

Share = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=366 * 86_400.0)]


class NewRollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `edgeml fleet rollout create` asks for. Shares are of the eligible fleet; what is `None` has the gate's own default.

    `canary` is the first wave, `waves` follow; what is beyond 1 - `hold_back` waits until the rollout is done.
    """

    model: str
    version: str
    canary: Share = 0.05
    waves: tuple[Share, ...] = (0.25, 0.5, 1.0)
    hold_back: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.1
    soak_s: Seconds = 3600.0
    longest_s: Seconds | None = None
    least_devices: Annotated[int, msgspec.Meta(ge=1)] = 1
    limit: Share | None = None
    margin: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    alpha: Share | None = None
    ceiling: Share | None = None
    tolerance: Annotated[float, msgspec.Meta(ge=1.0)] | None = None
    silence_s: Seconds | None = None
    least_answers: Annotated[int, msgspec.Meta(ge=0)] | None = None
    guards: tuple[str, ...] | None = None
    where: dict[str, str] = {}
    strata: tuple[str, ...] | None = None
    auto_rollback: bool = True
    confirm_small: bool = True


def specify(asked: NewRollout, version: VersionRow, now: float, by: str) -> RolloutSpec:
    """The specification, with an id and salt of its own.

    Raises:
        UsageError: waves that do not grow, or a gate setting out of its range.
    """
    plain = {
        "id": f"{asked.model}-{asked.version}-{secrets.token_hex(3)}",
        "model": asked.model,
        "version": asked.version,
        "manifest_sha256": version.manifest_sha256,
        "path": version.path,
        "salt": secrets.token_hex(8),
        "waves": [msgspec.to_builtins(wave) for wave in _waves(asked)],
        "hold_back": asked.hold_back,
        "where": asked.where,
        "gate": _given(asked, ("limit", "margin", "alpha", "ceiling", "tolerance", "silence_s", "least_answers", "guards")),
        "auto_rollback": asked.auto_rollback,
        "confirm_small": asked.confirm_small,
        "created_at": now,
        "created_by": by,
        **_given(asked, ("strata",)),
    }
    try:
        return msgspec.convert(plain, RolloutSpec)
    except msgspec.ValidationError as error:
        raise UsageError(f"a rollout cannot be like that: {error}") from error


def _waves(asked: NewRollout) -> list[Wave]:
    shares = [asked.canary, *asked.waves]
    if any(late <= early for early, late in pairwise(shares)):
        raise UsageError("shares of the waves", expected="growing ones", got=", ".join(f"{share:.0%}" for share in shares))
    most = 1.0 - asked.hold_back
    kept = [share for share in shares if share < most] + [most]
    longest = {} if asked.longest_s is None else {"longest_s": asked.longest_s}
    return [Wave(share, soak_s=asked.soak_s, least_devices=asked.least_devices, **longest) for share in kept]


def _given(asked: NewRollout, names: tuple[str, ...]) -> dict[str, object]:
    """The settings that were asked for; `None` leaves the default to whom it belongs."""
    return {name: value for name in names if (value := getattr(asked, name)) is not None}


learn(__name__)
