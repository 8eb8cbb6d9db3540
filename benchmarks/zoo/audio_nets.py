"""Networks for spoken digits, in PyTorch. Each class is built without arguments, and `example` is one sample for it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


class WaveNet1d(nn.Module):
    """1-D convolutions on the raw wave (batch, 1, 8000)."""

    def __init__(self) -> None:
        super().__init__()
        widths, steps = (1, 32, 48, 64, 96), ((31, 8), (9, 4), (5, 2), (5, 2))
        layers: list[nn.Module] = []
        for (taken, given), (kernel, stride) in zip(itertools.pairwise(widths), steps, strict=True):
            layers += [nn.Conv1d(taken, given, kernel, stride, kernel // 2, bias=False), nn.BatchNorm1d(given), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv1d(96, 96, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.head = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 1, 8000),)


class TcResNet(nn.Module):
    """Temporal convolutions with the MFCC as channels (batch, 10, 49), after TC-ResNet8 (Choi et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.BatchNorm1d(10)
        self.first = nn.Conv1d(10, 24, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(_Temporal(24, 32), _Temporal(32, 48), _Temporal(48, 64))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.first(self.scale(x))).mean(dim=2))

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 10, 49),)


class _Temporal(nn.Module):
    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv1d(taken, given, 9, 2, 4, bias=False), nn.BatchNorm1d(given), nn.ReLU())
        self.two = nn.Sequential(nn.Conv1d(given, given, 9, padding=4, bias=False), nn.BatchNorm1d(given))
        self.side = nn.Sequential(nn.Conv1d(taken, given, 1, 2, bias=False), nn.BatchNorm1d(given), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.two(self.one(x)) + self.side(x))


class Gru(nn.Module):
    """A GRU over 49 log-mel frames (batch, 49, 32); its last state decides."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(32, 96, batch_first=True)
        self.head = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows, _ = self.gru(x)
        return self.head(rows[:, -1])

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 49, 32),)


class Lstm(nn.Module):
    """Two LSTM layers over 49 log-mel frames; the mean of their states decides."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows, _ = self.lstm(x)
        return self.head(rows.mean(dim=1))

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 49, 32),)


class Crnn(nn.Module):
    """Two convolutions over the spectrum (batch, 1, 49, 32), then a GRU over its 13 remaining frames."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        )  # fmt: skip
        self.gru = nn.GRU(24 * 8, 64, batch_first=True)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows, _ = self.gru(self.body(x).permute(0, 2, 1, 3).flatten(2))
        return self.head(rows[:, -1])

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 1, 49, 32),)


class Transformer(nn.Module):
    """A pre-norm encoder of three layers over 49 log-mel frames (batch, 49, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(32, 64)
        self.place = nn.Parameter(torch.randn(49, 64) * 0.02)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.enter(x) + self.place)).mean(dim=1))

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 49, 32),)


class Embedding(nn.Module):
    """A direction (batch, 64) of length 1 for a spectrum (batch, 1, 49, 32): the same digit, the same direction.

    `classes` are the directions it is trained against; an export does not hold them.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 48, 64)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.PReLU(b))
                for a, b in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(64 * 4 * 2, 64)
        self.classes = nn.Parameter(torch.randn(CLASSES, 64))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.head(self.body(x).flatten(1)), dim=1)

    def logits(self, x: Tensor) -> Tensor:
        """Cosine to each class over a temperature."""
        return 12 * self.forward(x) @ functional.normalize(self.classes, dim=1).T

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 1, 49, 32),)


class TwoInputs(nn.Module):
    """A stretched spectrum (batch, 1, 32, 32) and three facts (batch, 3) about the word it was."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 48)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU())
                for a, b in itertools.pairwise(widths)
            )
        )
        self.facts = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(48 + 16, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, spectrum: Tensor, facts: Tensor) -> Tensor:
        seen = self.body(spectrum).mean(dim=(2, 3))
        return torch.softmax(self.head(torch.cat([seen, self.facts(facts)], dim=1)), dim=1)

    def logits(self, spectrum: Tensor, facts: Tensor) -> Tensor:
        return torch.log(self.forward(spectrum, facts) + 1e-9)

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 1, 32, 32), torch.zeros(1, 3))
