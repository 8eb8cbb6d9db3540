"""Arithmetic with constants right at a model's inputs: scaling and shifting of features, a scaler's or a normalization's.

It brings columns of unlike units to one scale. Rounded before it, all columns would share one step; behind it, each has what it
needs. It takes a few operations per input, so it stays float, and what it gives is rounded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from edgeml.exporter.quantize.joins import Operation


def scaled_inputs(
    operations: Sequence[Operation], inputs: Iterable[str], constants: Collection[str], arithmetic: Collection[str]
) -> frozenset[str]:
    """The outputs of `arithmetic` operations that read, beside constants, an input or the output of another such operation."""
    reached, found = set(inputs) - set(constants), set()
    for operation in operations:
        values = [name for name in operation.inputs if name not in constants]
        if operation.kind in arithmetic and len(values) == 1 and values[0] in reached:
            reached.add(operation.output)
            found.add(operation.output)
    return frozenset(found)
