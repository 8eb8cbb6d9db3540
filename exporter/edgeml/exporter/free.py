"""`--free`: axes that every format is to keep free, from which size to which.

--free batch --free frames=4..64        # or batch,frames=4..64
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import BATCH, Signature

ROOM: Final = 16  # times the samples' size, where no upper end was given: Core ML wants one
_FORM: Final = re.compile(r"(?P<name>[^=]+?)(?:=(?P<least>\d+)\.\.(?P<most>\d+))?")


class FreeAxis(msgspec.Struct, frozen=True):
    """An axis of the signature and the sizes that it may have; `most` is `None` until the samples' size is known."""

    name: str
    least: int = 1
    most: int | None = None

    @property
    def text(self) -> str:
        return self.name if self.most is None else f"{self.name}={self.least}..{self.most}"


def parse_free(told: Sequence[str]) -> tuple[FreeAxis, ...]:
    """Read what was typed.

    Raises:
        PlanError: not of the form NAME or NAME=MIN..MAX, or an axis twice.
    """
    axes = tuple(_axis(part.strip()) for text in told for part in text.split(","))
    if len({axis.name for axis in axes}) < len(axes):
        raise PlanError("--free names an axis twice", got=repr(",".join(told)))
    return axes


def _axis(text: str) -> FreeAxis:
    found = _FORM.fullmatch(text)
    if found is None:
        raise PlanError("--free", expected="NAME or NAME=MIN..MAX", got=repr(text), hint="for example --free batch=1..8")
    if found["least"] is None:
        return FreeAxis(found["name"])
    least, most = int(found["least"]), int(found["most"])
    if not 1 <= least < most:
        raise PlanError(f"--free {found['name']}", expected="MIN from 1 on, and MAX above it", got=f"{least}..{most}")
    return FreeAxis(found["name"], least, most)


def settle_free(asked: Sequence[FreeAxis], signature: Signature, sizes: Mapping[str, int]) -> tuple[FreeAxis, ...]:
    """The axes with both ends; `sizes` are the named axes' in the samples.

    Raises:
        PlanError: the source has no such axis, or the samples' size is not within the ends.
    """
    known = {axis: sizes.get(axis, 1) for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)}
    return tuple(_settled(axis, known) for axis in asked)


def _settled(axis: FreeAxis, known: Mapping[str, int]) -> FreeAxis:
    if axis.name not in known:
        raise PlanError(
            f"--free {axis.name}: the source has no free axis of that name",
            expected=" or ".join(map(repr, known)) or "no --free, as all its axes are fixed", got=repr(axis.name),
            hint="docs/sources.md says how a source names its axes",
        )  # fmt: skip
    size = known[axis.name]
    most = ROOM * size if axis.most is None else axis.most
    if not axis.least <= size <= most:
        samples = "one sample a call" if axis.name == BATCH else "the samples' size"
        raise PlanError(f"--free {axis.name}", expected=f"ends around {samples}, {size}", got=f"{axis.least}..{most}")
    return FreeAxis(axis.name, axis.least, most)
