"""What `edgeml diff` finds: for each tensor of one model how far it is off in another, and where it goes wrong first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from edgeml.exporter.layers.match import By, Pair, match
from edgeml.exporter.layers.measure import DEAF_DB, channel_gains, cosine, largest, own_signal_to_noise_db, signal_to_noise_db
from edgeml.exporter.layers.trace import Operator, Trace
from edgeml.runtime.backends import Array

WORST: Final = 5
WORTH_DB: Final = 6.0  # that taking factors out must gain
MADE_UP_DB: Final = 15.0  # what comes after may be this much noisier: it has noise of its own
LEAST_MADE_UP_DB: Final = 20.0  # but not noisier than any healthy int8 layer


class LayerDifference(msgspec.Struct, frozen=True):
    """One tensor in both models. `tensor` and `kind` are the first model's, `other` the second's name of it.

    `snr_db` is its signal to noise, `own_db` what its operator alone would leave of it (`None`: it adds no noise, or nothing
    that it reads is matched). `max_abs` is in units of the range. `rescaled`: the second model has a factor on each channel,
    which its later layers take out again and which is left out here.
    """

    tensor: str
    kind: str
    other: str
    precision: str  # of the second model's operator
    matched_by: By
    snr_db: float
    own_db: float | None
    cosine: float
    max_abs: float | None
    rescaled: bool = False


class Difference(msgspec.Struct, frozen=True):
    """`worst` names the tensors with the least signal to noise, `source` the one whose operator adds most noise.

    `kernel_max_abs` is what the second model's fast kernels on this machine add, in units of the output's range; the rest of
    the outputs' difference is in the files.
    """

    samples: int
    layers: tuple[LayerDifference, ...]
    worst: tuple[str, ...]
    source: str | None
    unmatched: tuple[str, ...]
    unmatched_other: tuple[str, ...]
    kernel_max_abs: float | None = None


def difference(a: Trace, b: Trace, kernel_max_abs: float | None = None) -> Difference:
    """Compare two traces of the same samples."""
    pairs = match(a, b)
    makers_a, makers_b = a.makers(), b.makers()
    compared = compared_pairs(a, b, pairs)
    sources = {name: operator.inputs for name, operator in makers_a.items()}
    layers = tuple(
        _layer(
            pair,
            makers_a[pair.a],
            makers_b.get(pair.b),
            [compared[name].snr_db for name in _nearest(pair.a, sources, compared)],
            compared[pair.a],
        )
        for pair in pairs
        if pair.a in makers_a
    )
    worst = sorted(layers, key=lambda layer: layer.snr_db)[:WORST]
    adding = {layer.tensor: layer.own_db for layer in layers if layer.own_db is not None}
    matched_b = {pair.b for pair in pairs}
    return Difference(
        samples=len(next(iter(a.values.values()))),
        layers=layers,
        worst=tuple(layer.tensor for layer in worst),
        source=min(adding, key=lambda name: adding[name], default=None),
        unmatched=tuple(name for name in makers_a if name not in compared),
        unmatched_other=tuple(name for name in makers_b if name not in matched_b),
        kernel_max_abs=kernel_max_abs,
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """One pair's values in the second model's order of axes, and the factors on its channels, if they are made up for."""

    reference: Array
    got: Array
    snr_db: float
    gains: Array | None = None

    @property
    def expected(self) -> Array:
        """What the second model should give: the reference in its units."""
        return self.reference if self.gains is None else (self.reference * self.gains).astype(self.reference.dtype)

    @property
    def evened(self) -> Array:
        """What it gives, in the reference's units."""
        return self.got if self.gains is None else self.got / self.gains


def compared_pairs(a: Trace, b: Trace, pairs: Sequence[Pair]) -> dict[str, Compared]:
    """By the first model's names. A factor for each channel is taken out where what reads the tensor takes it out, too.

    That is what equalizing leaves: channels nearer to each other in range, and weights that make up for it. A channel that is
    wrong is not made up for, and shows in all that comes after.
    """
    readers: dict[str, list[str]] = {}
    for operator in a.operators:
        for name in operator.inputs:
            readers.setdefault(name, []).extend(operator.outputs)
    found: dict[str, Compared] = {}
    for pair in reversed(pairs):
        reference = pair.as_b(a.values[pair.a])
        got = b.values[pair.b].reshape(reference.shape)
        plain = Compared(reference, got, signal_to_noise_db(reference, got))
        after = [found[name].snr_db for name in _nearest(pair.a, readers, found)]
        found[pair.a] = plain
        if reference.ndim < 2 or plain.snr_db <= DEAF_DB or not after:
            continue
        gains = channel_gains(reference, got, reference.ndim - 1 if b.format == "tflite" else 1)
        snr_db = signal_to_noise_db(reference, got / gains)
        if snr_db >= plain.snr_db + WORTH_DB and min(after) >= max(snr_db - MADE_UP_DB, LEAST_MADE_UP_DB):
            found[pair.a] = Compared(reference, got, snr_db, gains)
    return found


def _nearest(name: str, neighbours: Mapping[str, Sequence[str]], found: Collection[str]) -> list[str]:
    """The tensors of `found` that are met first on all ways from one, along `neighbours`."""
    nearest, queue, seen = [], list(neighbours.get(name, ())), set[str]()
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in found:
            nearest.append(current)
        else:
            queue += neighbours.get(current, ())
    return nearest


def _layer(pair: Pair, maker: Operator, other: Operator | None, read: Sequence[float], values: Compared) -> LayerDifference:
    return LayerDifference(
        tensor=pair.a,
        kind=maker.kind,
        other=pair.b,
        precision=other.precision if other is not None else "",
        matched_by=pair.by,
        snr_db=values.snr_db,
        own_db=own_signal_to_noise_db(values.snr_db, read) if read else None,
        cosine=cosine(values.reference, values.evened),
        max_abs=largest(values.reference, values.evened),
        rescaled=values.gains is not None,
    )
