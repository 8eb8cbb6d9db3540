"""States: tensors that outlive a call."""

from __future__ import annotations

from torch import Tensor

from edgeml.exporter.mil.registry import operation
from edgeml.exporter.mil.values import Cell


@operation("read_state")
def read_state(input: Cell) -> Tensor:  # noqa: A002 - MIL's word
    return input.value.clone()


@operation("write_state")
def write_state(input: Cell, data: Tensor) -> None:  # noqa: A002 - MIL's word
    input.value = data.clone()
