"""Values of a running program that are not tensors: lists and states."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Cell:
    """A state: one tensor that outlives a call."""

    value: Tensor


@dataclass(frozen=True, slots=True)
class TensorList:
    """A list as MIL has it: a value, not a place; writing gives a new one. `None` marks an element never written."""

    items: tuple[Tensor | None, ...]
    element_shape: tuple[int, ...]
    grows: bool
