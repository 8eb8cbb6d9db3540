"""Which layers to leave float when int8 misses its budget: rank them by what each costs, then keep the fewest that do.

ranked = rank(open_onnx_network, model, feeds)
found = keep_until(ranked, lambda kept: to_int8_onnx(model, feeds, keep_float=kept).model, passes)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeml.exporter.calibrate.choose import output_error
from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.quantize.layers import Network
from edgeml.exporter.quantize.static import PLAIN, Bench

OpenNetwork = Callable[[bytes, frozenset[str]], Network]
"""A model's network with the named outputs of layers kept float."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What leaving one layer float is worth: `error` (in standard deviations) is what remains, `extra_bytes` what it costs."""

    layer: str
    error: float
    extra_bytes: int


def rank(open_network: OpenNetwork, model: bytes, feeds: Feeds) -> tuple[Sensitivity, ...]:
    """Every int8 layer by the output it gives, the one that helps most first; judged on all of `feeds`."""
    whole = Bench(open_network(model, frozenset()), feeds)
    wanted = whole.run(model, feeds)
    size = len(whole.quantize(PLAIN))
    found = []
    for layer in whole.network.layers:
        bench = Bench(open_network(model, frozenset({layer.output})), feeds)
        quantized = bench.quantize(PLAIN)
        error = output_error(wanted, bench.run(quantized, feeds))
        found.append(Sensitivity(layer.output, error, len(quantized) - size))
    return tuple(sorted(found, key=lambda one: (one.error, one.extra_bytes, one.layer)))


def keep_until(
    ranked: Sequence[Sensitivity], quantize: Callable[[frozenset[str]], bytes], passes: Callable[[bytes], bool]
) -> frozenset[str] | None:
    """The first so many layers of a ranking that make the int8 model pass, less those it passes without.

    `None`: it does not pass even with all of them float.
    """
    names = [one.layer for one in ranked]
    enough = next((n for n in range(len(names) + 1) if passes(quantize(frozenset(names[:n])))), None)
    if enough is None:
        return None
    kept = frozenset(names[:enough])
    for name in reversed(names[: max(enough - 1, 0)]):
        if passes(quantize(kept - {name})):
            kept -= {name}
    return kept
