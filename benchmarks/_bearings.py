"""A gearbox's sensor, simulated: four states of a bearing by 64 ms of vibration, and a small network that tells them apart.

Signals are independent and as many as wanted, which no recorded data set gives. A shaft turns at 24 to 30 Hz; a fault strikes
at a multiple of that (with slip), and each blow rings a resonance for a few milliseconds, often hardly above the noise.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Signals = npt.NDArray[np.float32]
RATE: Final = 4000
LENGTH: Final = 256
STATES: Final = ("healthy", "outer race", "inner race", "ball")
BLOWS: Final = (0.0, 3.6, 5.4, 2.3)  # a turn of the shaft, by state
SLIP: Final = 0.02
RING: Final = 48  # samples until it has died away
EPOCHS: Final = 5
TRAIN: Final = 8000


def signals(count: int, seed: int) -> tuple[Signals, npt.NDArray[np.int64]]:
    """x (count, 1, LENGTH) and state (count,)."""
    luck = np.random.default_rng(seed)
    state = luck.integers(len(STATES), size=count)
    turns = luck.uniform(24, 30, count)
    t = np.arange(LENGTH) / RATE
    shaft = sum(np.sin(2 * np.pi * (k * turns[:, None] * t + luck.random((count, 1)))) / k for k in (1, 2, 3))
    x = 0.5 * shaft + luck.normal(0, 1, (count, LENGTH))
    blows = np.zeros((count, LENGTH + RING))
    spacing = RATE / np.maximum(1e-9, turns * np.asarray(BLOWS)[state])
    at = luck.random(count) * np.minimum(spacing, LENGTH)
    strength = np.exp(luck.normal(0.9, 0.45, count)) * (state > 0)
    rows = np.arange(count)
    for _ in range(int(LENGTH * 30 * max(BLOWS) / RATE) + 2):
        there = at < LENGTH
        blows[rows[there], at[there].astype(int)] += (strength * np.exp(luck.normal(0, 0.3, count)))[there]
        at += spacing * (1 + SLIP * luck.normal(size=count))
    ring = np.exp(-np.arange(RING) / 10) * np.sin(2 * np.pi * 1100 / RATE * np.arange(RING))
    for delay, share in enumerate(ring):
        x[:, delay:] += share * blows[:, : LENGTH - delay]
    return x[:, None].astype(np.float32), state


class Listener(nn.Module):
    """`x` (batch, 1, LENGTH) float32 -> (batch, 4) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 16, 16, 4), nn.ReLU(), nn.Conv1d(16, 32, 9, 2), nn.ReLU(), nn.Conv1d(32, 32, 9, 2), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, len(STATES)),
        )  # fmt: skip

    @staticmethod
    def example() -> tuple[Any, ...]:
        return (torch.zeros(1, 1, LENGTH),)

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def build() -> tuple[nn.Module, tuple[Any, ...]]:
    """What `edgeml export` calls: the network with the weights beside this file."""
    net = Listener()
    net.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
    return net.eval(), Listener.example()


def train(folder: Path) -> str:
    """Train in seconds; the source, as `edgeml export` is given it."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    net = Listener()
    signal, state = signals(TRAIN, 1)
    x, y = torch.from_numpy(signal), torch.from_numpy(state)
    steps = EPOCHS * (TRAIN // 64)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        at = torch.randint(TRAIN, (64,))
        loss = nn.functional.cross_entropy(net(x[at]), y[at])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    torch.save(net.state_dict(), folder / "weights.pt")
    shutil.copy(__file__, folder / "bearings.py")
    return f"{folder / 'bearings.py'}:build"
