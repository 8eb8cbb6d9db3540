"""TorchScript files, which `torch.export` does not take as they are, become ONNX and TFLite all the same."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeml.exporter.source import locate
from edgeml.exporter.source.torch import load
from edgeml.exporter.source.torchscript import as_operators
from edgeml.runtime.backends import Array, EngineOptions, opener

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, at every step of this way; workers run with PYTHONWARNINGS=ignore


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A traced network with weights of every kind, and samples for it."""
    folder = tmp_path_factory.mktemp("script")
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten()
    net = torch.nn.Sequential(*layers, torch.nn.Linear(4 * 6 * 6, 3)).eval()
    torch.jit.trace(net, torch.zeros(1, 1, 8, 8)).save(str(folder / "net.pt"))
    np.savez(folder / "samples.npz", x=np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32))
    return folder / "net.pt", folder / "samples.npz"


def test_torchscript_as_operators_takes_any_batch_and_answers_the_same(script: tuple[Path, Path]) -> None:
    model = load(locate(str(script[0]), trust=True, example=str(script[1])))
    x = torch.from_numpy(samples(script))
    with torch.no_grad():
        expected = model.module(x)[0].numpy()
        program = torch.export.export(as_operators(model), (x[:2],), dynamic_shapes=(({0: torch.export.Dim("n", min=1)},),))
        assert np.allclose(program.module()(x)[0].numpy(), expected, atol=1e-6)


@pytest.mark.slow
def test_torchscript_becomes_onnx_and_tflite(script: tuple[Path, Path], tmp_path: Path) -> None:
    from edgeml.exporter.convert import onnx, tflite

    ref = locate(str(script[0]), trust=True, example=str(script[1]))
    x = samples(script)
    expected = load(ref).module(torch.from_numpy(x))[0].detach().numpy()
    onnx.from_torch(msgspec.to_builtins(ref), str(tmp_path / "onnx"))
    tflite.from_torch(msgspec.to_builtins(ref), str(tmp_path / "tflite"))
    whole = opener("onnx")((tmp_path / "onnx").read_bytes(), EngineOptions()).run([x])[0]
    first = opener("tflite")((tmp_path / "tflite").read_bytes(), EngineOptions()).run([x[:1]])[0]
    assert np.allclose(whole, expected, atol=1e-5)
    assert np.allclose(first, expected[:1], atol=1e-5)


def samples(script: tuple[Path, Path]) -> Array:
    with np.load(script[1], allow_pickle=False) as file:
        return np.asarray(file["x"])
