"""Ranks a model's operators by the error that quantizing each of them alone makes, with few measurements for many operators.

Many operators are first measured in blocks of neighbours. Errors of operators add up as powers, so what is in blocks whose
errors together do not matter needs no measurement of its own: it gets an equal share of its block's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from edgeml.exporter.quantize.keep_float import ENOUGH, ENOUGH_SHARE, Alone, Operator, Sensitivity, ranked

BLOCK: Final = 6
FEW: Final = 18  # operators that are measured one by one: blocks would save nothing

Measure = Callable[[Sequence[Operator]], Alone]
"""Quantizes these operators and no others."""


def rank(operators: Sequence[Operator], base: Alone, measure: Measure) -> list[Sensitivity]:
    """All operators, the one that hurts most first; `base` is the model with none quantized."""
    if len(operators) <= FEW:
        return ranked([share for one in operators for share in shares([one], base, measure([one]))])
    blocks = [operators[start : start + BLOCK] for start in range(0, len(operators), BLOCK)]
    found = [(block, measure(block)) for block in blocks]
    powers = {id(block): alone.power(base) for block, alone in found}
    limit = max(ENOUGH**2, ENOUGH_SHARE * sum(powers.values()))
    measured: list[Sensitivity] = []
    closed = 0.0
    for block, alone in sorted(found, key=lambda pair: powers[id(pair[0])]):
        closed += powers[id(block)]
        if closed <= limit:
            measured += shares(block, base, alone)
        else:
            measured += [share for one in block for share in shares([one], base, measure([one]))]
    return ranked(measured)


def shares(operators: Sequence[Operator], base: Alone, alone: Alone) -> list[Sensitivity]:
    """What each of some operators that were quantized together has of their error and of the bytes they saved."""
    error = math.sqrt(alone.power(base) / len(operators))
    return [Sensitivity(one, error, (base.bytes - alone.bytes) // len(operators)) for one in operators]
