"""torch to Core ML in three precisions, run by the interpreter; and the miscompile of coremltools that we leave out."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeml.exporter.convert.coreml import MISCOMPILING_PASSES, packed, passes, torch_to_coreml
from edgeml.exporter.mil.backend import count_elements, count_operations, open_mil
from edgeml.exporter.quantize.coreml import smaller_coreml, to_fp16_coreml
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.wire.errors import UnsupportedError
from edgeml.wire.manifest import Signature, TensorSpec
from tests.unit.mil_builder import convert, coremltools, forgotten_folders, pack, run

RNG = np.random.default_rng(5)


class Recurrent(nn.Module):
    """A recurrent layer and a classifier on its last step."""

    def __init__(self, layer: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.layer = layer(8, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, _ = self.layer(x)
        out: torch.Tensor = self.head(steps[:, -1])
        return out


class Attention(nn.Module):
    """One pre-norm transformer layer with scaled dot product attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, steps, _ = x.shape
        q, k, v = (part.reshape(n, steps, 4, 4).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, steps, 16)
        x = x + self.out(mixed)
        out: torch.Tensor = (x + self.mlp(x)).mean(1)
        return out


def _cnn() -> nn.Module:
    """Depthwise-separable, with hardswish and a squeeze to a class score."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6(),
        nn.Conv2d(8, 32, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "cnn": (_cnn, (1, 3, 16, 16)),
    "dense": (lambda: nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 20)), (1, 20)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 16, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2)), (1, 4, 32)),
    "upsampling": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3, 2, 1, 1), nn.Upsample(scale_factor=2, mode="bilinear")),
                   (1, 3, 6, 6)),
    "lstm": (lambda: Recurrent(nn.LSTM), (1, 12, 8)),
    "gru": (lambda: Recurrent(nn.GRU), (1, 12, 8)),
    "attention": (Attention, (1, 12, 16)),
}  # fmt: skip


SMALL_OR_LOOPING = {"upsampling", "gru"}  # whose weights coremltools leaves as they are


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Converters warn about their own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coremltools()
        with forgotten_folders():
            yield


def _made(kind: str) -> tuple[nn.Module, tuple[int, ...], bytes]:
    build, shape = MODELS[kind]
    torch.manual_seed(0)
    module = build().eval()
    return module, shape, packed(torch_to_coreml(module, (torch.zeros(shape),)))


def _both(module: nn.Module, model: bytes, shape: tuple[int, ...], count: int = 4) -> tuple[Array, Array]:
    """Outputs of the module and of the interpreter over some samples."""
    samples = RNG.normal(size=(count, *shape)).astype(np.float32)
    backend = open_mil(model, EngineOptions())
    with torch.no_grad():
        want = np.stack([module(torch.from_numpy(sample)).numpy() for sample in samples])
    return want, np.stack([backend.run([sample])[0] for sample in samples])


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_torch_model_computes_the_same_in_core_ml(kind: str) -> None:
    module, shape, model = _made(kind)
    want, got = _both(module, model, shape)
    assert np.abs(want - got).max() <= 1e-5 * np.ptp(want)
    want, half = _both(module, to_fp16_coreml(model), shape)
    assert np.abs(want - half).max() <= 1e-2 * np.ptp(want)
    if kind in SMALL_OR_LOOPING:
        with pytest.raises(UnsupportedError, match="no weight tensor of this model has 256 elements outside of loops"):
            smaller_coreml(model, "int8", None)
        return
    want, small = _both(module, smaller_coreml(model, "int8", None).model, shape)
    assert np.abs(want - small).max() <= 0.1 * np.ptp(want)


def test_float16_halves_the_weights_and_keeps_float32_inputs() -> None:
    _, _, model = _made("dense")
    half = to_fp16_coreml(model)
    backend = open_mil(half, EngineOptions())
    assert len(model) - len(half) > 2 * 64 * 20 * 0.9
    assert {raw.dtype for raw in (*backend.inputs, *backend.outputs)} == {np.dtype(np.float32)}
    assert {raw.name for raw in backend.inputs} == {raw.name for raw in open_mil(model, EngineOptions()).inputs}


def test_constant_beyond_float16_stays_float32() -> None:
    x = np.array([0.5, -0.25, 3.0], np.float32)
    model = pack(convert(lambda mb, a: mb.sub(x=mb.add(x=a, y=1.0e5), y=1.0e5), [x]))
    assert run(to_fp16_coreml(model), x)[0].tolist() == x.tolist()


def test_int8_says_how_many_weights_and_what_computes() -> None:
    _, _, model = _made("dense")
    quantized = smaller_coreml(model, "int8", None)
    said = "2 weight tensors are int8, symmetric, a scale per channel; computing in float16; rounded to the nearest"
    assert quantized.notes == (said,)
    assert count_operations(quantized.model)["constexpr_affine_dequantize"] == 2
    assert count_elements(quantized.model)["int8"] == 2 * 64 * 20 + 64 + 20  # and a zero point per output channel
    assert len(model) - len(quantized.model) > 2 * 64 * 20 * 2  # three bytes of four go, scales and operations come


def test_inputs_and_outputs_bear_the_names_of_the_signature() -> None:
    module, shape, _ = _made("dense")
    signature = Signature((TensorSpec("audio:0", "float32", shape),), (TensorSpec("state", "float32", shape),))
    backend = open_mil(packed(torch_to_coreml(module, (torch.zeros(shape),)), signature), EngineOptions())
    assert [raw.name for raw in backend.inputs] == ["audio_0"]
    assert [raw.name for raw in backend.outputs] == ["state_"]  # a word of the language itself


def test_operator_nobody_converts_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = torch.special.airy_ai(x)
            return out

    with pytest.raises(UnsupportedError, match="airy_ai"):
        torch_to_coreml(Odd(), (torch.zeros(1, 3),))


def _requantizing(mb: Any, a: Any) -> Any:
    """x -> steps of 0.1 -> reshape -> steps of 0.5: what a quantized model does where ranges change."""
    fine = mb.dequantize(input=mb.quantize(input=a, scale=0.1, output_dtype="int8"), scale=0.1)
    return mb.dequantize(input=mb.quantize(input=mb.reshape(x=fine, shape=[4]), scale=0.5, output_dtype="int8"), scale=0.5)


X = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)


def test_default_passes_of_coremltools_change_what_a_quantized_model_computes() -> None:
    """coremltools 9.0: the integers are reshaped as they are, so 1.0 = 10 steps of 0.1 is read as 10 steps of 0.5."""
    assert "common::int_op_canonicalization" in MISCOMPILING_PASSES
    broken = pack(convert(_requantizing, [X], passes=coremltools().PassPipeline.DEFAULT))
    assert run(broken, X)[0].tolist() == pytest.approx([5, 10, 15, -20])


def test_our_passes_keep_what_a_quantized_model_computes() -> None:
    assert run(pack(convert(_requantizing, [X], passes=passes())), X)[0].tolist() == pytest.approx([1, 2, 3, -4])


TWICE = """
import sys; sys.modules["tensorflow"] = None
import hashlib, torch
from edgeml.exporter.convert.coreml import packed, torch_to_coreml
from edgeml.exporter.quantize.coreml import smaller_coreml, to_fp16_coreml
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1152, 5)).eval()
if sys.argv[1] == "later":
    torch_to_coreml(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), (torch.zeros(1, 4),))
model = packed(torch_to_coreml(module, (torch.zeros(1, 3, 8, 8),)))
print([hashlib.sha256(m).hexdigest() for m in (model, to_fp16_coreml(model), smaller_coreml(model, "int8", None).model)])
"""


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(tmp_path: Path) -> None:
    """Other hash seeds, other folders, other work before."""
    told = []
    for seed, when in (("1", "first"), ("2", "later")):
        folder = tmp_path / seed
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", TWICE, when], cwd=folder, env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        told.append(done.stdout.splitlines()[-1])
    assert told[0] == told[1]
