"""TorchScript as `torch.export` takes it: its parameters are no `torch.nn.Parameter`, and its code hides free sizes."""

from __future__ import annotations

from typing import Any

from edgeml.exporter.source.torch import TorchModel, flatten


def as_operators(model: TorchModel) -> Any:
    """The graph of a TorchScript source as a module of plain operators, for converters that go by `torch.export`.

    Raises what torch raises for code that it cannot follow.
    """
    import torch
    from torch._export.converter import TS2EPConverter

    examples = model.example(2 if model.any_batch else 1)  # of one sample the batch would be taken for a constant
    program = TS2EPConverter(model.module.inner, examples).convert()
    return flatten(torch, program.module(), examples)[0]
