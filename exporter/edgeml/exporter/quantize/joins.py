"""Concatenations of large and small numbers: one scale for both would leave the small ones a few steps, or none.

Boxes of 0 … 640 beside scores of 0 … 1 are the usual case: at eight bits a step is 2.5, and every score is 0. Such a joined
tensor, and what computes from it, stays float; its parts keep scales of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from edgeml.exporter.calibrate.feeds import Feeds, at_most
from edgeml.exporter.calibrate.observers import LEVELS, Range

if TYPE_CHECKING:
    from edgeml.exporter.quantize.layers import Network

AnyNetwork = TypeVar("AnyNetwork", bound="Network")
LEAST_LEVELS: Final = 8  # of 256: three bits for the smallest part
LOOKED_AT: Final = 64  # samples that show how far apart the parts are


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator of a graph as joins see it, by the names of the tensors it reads and of the first it gives."""

    kind: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class Join:
    """A concatenation. `readers`: outputs of the operators that compute from it, be it through what only moves values."""

    parts: tuple[str, ...]
    output: str
    readers: tuple[str, ...]


def find_joins(operations: Sequence[Operation], kind: str, moving: Collection[str]) -> tuple[Join, ...]:
    """The concatenations among a graph's operations, `moving` being the kinds that only move values."""
    readers: dict[str, list[Operation]] = {}
    for operation in operations:
        for name in operation.inputs:
            readers.setdefault(name, []).append(operation)

    def behind(name: str) -> Iterable[str]:
        for reader in readers.get(name, ()):
            if reader.kind in moving:
                yield from behind(reader.output)
            else:
                yield reader.output

    return tuple(
        Join(operation.inputs, operation.output, tuple(dict.fromkeys(behind(operation.output))))
        for operation in operations
        if operation.kind == kind
    )


def apart(network: AnyNetwork, feeds: Feeds) -> tuple[AnyNetwork, tuple[str, ...]]:
    """The network with concatenations of unequal ranges float, and a sentence about each."""
    if not network.joins:
        return network, ()
    ranges = _ranges(network, at_most(feeds, LOOKED_AT))
    kept: set[str] = set()
    sentences = []
    for join in network.joins:
        known = {part: ranges[part] for part in join.parts if part in ranges and width(ranges[part]) > 0}
        if not known:
            continue
        small, large = (best(known, key=lambda name: width(known[name])) for best in (min, max))
        levels = LEVELS * width(known[small]) / width(Range(*_union(known.values())))
        if levels >= LEAST_LEVELS:
            continue
        kept |= {join.output, *join.readers}
        stays = "and what reads it stay" if join.readers else "stays"
        sentences.append(
            f"{join.output!r} joins {large!r} ({_text(known[large])}) with {small!r} ({_text(known[small])}); one scale would "
            f"leave the latter {levels:.2g} of {LEVELS} steps, so the joined tensor {stays} float: bring the parts to one "
            "range, or make them two outputs"
        )
    return (network.keeping(frozenset(kept)) if kept else network), tuple(sentences)


def width(range_: Range) -> float:
    return range_.high - range_.low


def _ranges(network: Network, feeds: Feeds) -> dict[str, Range]:
    """What each part of a join spans over the samples, zero among it."""
    wanted = {part for join in network.joins for part in join.parts}
    found: dict[str, Range] = {}
    for tensors in network.watch(feeds)():
        for name in wanted & tensors.keys():
            values = tensors[name]
            if values.size:
                seen = Range(min(0.0, float(values.min())), max(0.0, float(values.max())))
                found[name] = Range(*_union((found.get(name, seen), seen)))
    return found


def _union(ranges: Iterable[Range]) -> tuple[float, float]:
    lows, highs = zip(*ranges, strict=True)
    return min(lows), max(highs)


def _text(range_: Range) -> str:
    return f"{range_.low:.3g} … {range_.high:.3g}"
