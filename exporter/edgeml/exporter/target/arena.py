"""The least arena a model runs in, by trying: what TensorFlow Lite Micro reports can be short of what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FIRST_BYTES: Final = 4096
STEP_BYTES: Final = 16  # its alignment
MARGIN: Final = 0.1  # kernels made for a board (CMSIS-NN) ask for scratch memory of their own


def least(fits: Callable[[int], bool], most: int) -> int:
    """The least number of bytes, in steps of 16, that `fits`; `most` is known to. Larger is never worse."""
    high = FIRST_BYTES
    while high < most and not fits(high):
        high *= 2
    low = high // 2 if high > FIRST_BYTES else 0
    high = min(high, most)
    while high - low > STEP_BYTES:
        middle = (low + high) // 2 // STEP_BYTES * STEP_BYTES
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


def with_margin(arena_bytes: int) -> int:
    """What a program should set aside, in steps of 16."""
    return -(-int(arena_bytes * (1 + MARGIN)) // STEP_BYTES) * STEP_BYTES
