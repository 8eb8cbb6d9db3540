"""What a benchmark found out: `edgeml bench --json` prints it, and reads it from a board behind ssh."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgeml.wire.manifest import Count, Format, Precision
from edgeml.wire.structs import learn

Seconds = Annotated[float, msgspec.Meta(ge=0)]
State = Literal["measured", "fail", "not run"]
Verdict = Literal["slower", "faster", "no difference shown"]


class Interval(msgspec.Struct, frozen=True):
    """An estimate between the ends of its 95 % interval."""

    value: Seconds
    low: Seconds
    high: Seconds

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError("an interval holds its value")


class Timing(msgspec.Struct, frozen=True):
    """One artifact: `detail` names the engine of one that was measured, or says why it was not.

    `load` and `first` are over processes, one a round: the engine loading the file, and its first call after that. `calls` are
    warm. `p99` is `None` under 1,000 of them. `peak_bytes` is what engine, model and calls take beyond Python and numpy.
    """

    format: Format
    precision: Precision
    state: State
    detail: str
    bytes: Count = 0
    calls: Count = 0
    rounds: Count = 0
    load: Interval | None = None
    first: Interval | None = None
    p50: Interval | None = None
    p90: Interval | None = None
    p99: Interval | None = None
    peak_bytes: Count | None = None

    @property
    def label(self) -> str:
        return f"{self.format}:{self.precision}"


class Comparison(msgspec.Struct, frozen=True):
    """Median of a precision over that of fp32 in the same format."""

    format: Format
    precision: Precision
    ratio: Interval
    verdict: Verdict

    @property
    def sentence(self) -> str:
        ratio = f"x{self.ratio.value:.2f}, 95 % {self.ratio.low:.2f} to {self.ratio.high:.2f}"
        if self.verdict == "slower":
            return f"{self.precision} is slower here ({ratio}): take fp32 on this board"
        if self.verdict == "faster":
            return f"{self.precision} is faster here ({ratio})"
        return f"no difference shown between {self.precision} and fp32 ({ratio})"


class Heat(msgspec.Struct, frozen=True):
    """The hottest sensor before and after.

    `throttled` names what the firmware held back in any round, `None` where it does not say.
    """

    before_celsius: float | None = None
    after_celsius: float | None = None
    throttled: tuple[str, ...] | None = None


class Machine(msgspec.Struct, frozen=True):
    """Where it ran. `model` is the board's own name, empty where it has none."""

    arch: str
    cores: Count
    model: str = ""
    edgeml: str = ""


class Bench(msgspec.Struct, frozen=True):
    """A bundle on a machine."""

    name: str
    version: str
    digest: str
    machine: Machine
    threads: Count
    artifacts: tuple[Timing, ...]
    comparisons: tuple[Comparison, ...] = ()
    heat: Heat = Heat()
    notes: tuple[str, ...] = ()


learn(__name__)
