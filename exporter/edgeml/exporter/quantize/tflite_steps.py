"""Unrolled recurrent layers in a TFLite graph: the same weights, applied again to what was computed from them before.

A state that is rounded to 8 bits at every step gathers the errors of all. So these products round their input when they run and
give float, as those inside loops do, and the few additions and multiplications of a step stay float.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

PRODUCT: Final = "FULLY_CONNECTED"
HEAVY: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL"})


class Done(NamedTuple):
    """An operator by the names of its tensors."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Steps(NamedTuple):
    """First outputs: of products that share weights from step to step, and of what else is computed from those."""

    products: frozenset[str]
    others: frozenset[str]


def recurrent_steps(operators: Sequence[Done], constants: Collection[str]) -> Steps:
    """The steps of unrolled recurrent layers; what has convolutions between two uses of the same weights is none."""
    shared: dict[str, set[str]] = {}
    for one in operators:
        if one.kind == PRODUCT and one.inputs[1] in constants:
            shared.setdefault(one.inputs[1], set()).add(one.outputs[0])
    groups = [group for group in shared.values() if len(group) > 1]
    members = {name for group in groups for name in group}
    products, others = set[str](), set[str]()
    for group in groups:
        reached, between, again, heavy = set[str](), set[str](), False, False
        for one in operators:
            touched = not reached.isdisjoint(one.inputs)
            if one.outputs[0] in members:
                again = again or (touched and one.outputs[0] in group)
                reached |= set(one.outputs) if touched or one.outputs[0] in group else set()
            elif touched and one.kind in HEAVY | {PRODUCT} and one.inputs[1] in constants:
                continue  # another layer
            elif touched:
                heavy = heavy or one.kind in HEAVY
                reached |= set(one.outputs)
                between.add(one.outputs[0])
        if again and not heavy:
            products |= group
            others |= between
    return Steps(frozenset(products), frozenset(others))
