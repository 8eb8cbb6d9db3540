"""The meter camera's reader: a depthwise-separable CNN, 8 x 8 grey image to ten digits.

`edgeml export examples/digits/model.py:v1_0_0 …` calls one of the factories at the end; each loads trained weights that
`train.py` made and whose hash `weights.json` holds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
CHANNELS = 32


def _separable(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


class MeterReader(nn.Module):
    """`image` (batch, 1, 8, 8) float32 in 0..1 -> `logits` (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, 1, 1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
            _separable(CHANNELS, CHANNELS, 1),
            _separable(CHANNELS, 2 * CHANNELS, 2),
            _separable(2 * CHANNELS, 2 * CHANNELS, 1),
        )
        self.classify = nn.Linear(2 * CHANNELS, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.features(image)
        logits: torch.Tensor = self.classify(features.mean(dim=(2, 3)))
        return logits


def trained(version: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model with the weights of `version`, and an example input by name.

    Raises:
        ValueError: the weight file is not the one `weights.json` names.
    """
    path = HERE / f"weights-{version}.npz"
    expected = json.loads((HERE / "weights.json").read_text())[version]["sha256"]
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise ValueError(f"{path.name} is not the file that weights.json names; run examples/digits/train.py {version}")
    with np.load(path, allow_pickle=False) as stored:
        weights = {name: torch.from_numpy(stored[name]) for name in stored.files}
    model = MeterReader()
    model.load_state_dict(weights)
    return model.eval(), {"image": torch.zeros(1, 1, 8, 8)}


def v1_0_0() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return trained("1.0.0")


def v1_1_0() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return trained("1.1.0")


def v1_2_0() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return trained("1.2.0")
