"""Operators whose TFLite form must not overflow inside."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgeml.exporter.convert.tflite import from_torch
from edgeml.exporter.convert.tflite_operators import bounded_elu
from edgeml.exporter.source.model import SourceRef

LARGE = torch.tensor([[-300.0, -2.0, -0.0, 0.0, 1.5, 300.0]])  # exp(300) is infinite
FACTORY = """
import torch


def make():
    return torch.nn.Sequential(torch.nn.ELU(0.7), torch.nn.SELU(), torch.nn.CELU(1.3)), (torch.zeros(1, 6),)
"""


@pytest.mark.parametrize("layer", [nn.ELU(), nn.ELU(0.7), nn.SELU(), nn.CELU(1.3)], ids=repr)
def test_an_elu_without_overflow_is_the_same_function(layer: nn.Module) -> None:
    told = {
        nn.ELU: (getattr(layer, "alpha", 1.0), 1.0, 1.0),
        nn.SELU: (1.6732632423543772, 1.0507009873554805, 1.0),
        nn.CELU: (getattr(layer, "alpha", 1.0), 1.0, 1 / getattr(layer, "alpha", 1.0)),
    }[type(layer)]
    assert torch.allclose(bounded_elu(LARGE, *told), layer(LARGE), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*preserve_all_tensors:UserWarning")
def test_no_inner_value_of_an_elu_in_tflite_overflows(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    (tmp_path / "net.py").write_text(FACTORY)
    from_torch(msgspec.to_builtins(SourceRef(str(tmp_path / "net.py"), "torch", "make")), str(tmp_path / "net.tflite"))
    interpreter = Interpreter(str(tmp_path / "net.tflite"), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], LARGE.numpy())
    interpreter.invoke()
    values = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_tensor_details()]
    assert all(np.isfinite(value).all() for value in values)
    with torch.no_grad():
        wanted = nn.Sequential(nn.ELU(0.7), nn.SELU(), nn.CELU(1.3))(LARGE)
    np.testing.assert_allclose(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), wanted, rtol=1e-5)
