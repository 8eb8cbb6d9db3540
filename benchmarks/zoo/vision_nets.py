"""Networks for digits on photographs, in PyTorch. Each class is built without arguments, and `example` is one sample for it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
CANVAS = 640.0  # the unit of the detector's boxes: its 64 pixels are 640


class MobileNetV2(nn.Module):
    """Inverted residuals with ReLU6 (Sandler et al., 2018), narrow, for (batch, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        plan = ((16, 16, 1, 1), (16, 24, 2, 4), (24, 24, 1, 4), (24, 40, 2, 4), (40, 40, 1, 4), (40, 64, 1, 4))
        self.body = nn.Sequential(
            _conv(3, 16, 3, 2, nn.ReLU6),
            *(_Inverted(*row, act=nn.ReLU6, squeeze=False) for row in plan),
            _conv(64, 160, 1, 1, nn.ReLU6),
        )
        self.head = nn.Linear(160, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)))

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 3, 32, 32),)


class MobileNetV3(nn.Module):
    """Inverted residuals with hard swish and squeeze-and-excitation (Howard et al., 2019), narrow, for (batch, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        plan = ((16, 16, 1, 2), (16, 24, 2, 3), (24, 24, 1, 3), (24, 40, 2, 4), (40, 40, 1, 4), (40, 56, 1, 4))
        self.body = nn.Sequential(
            _conv(3, 16, 3, 2, nn.Hardswish), *(_Inverted(*row, act=nn.Hardswish, squeeze=True) for row in plan),
            _conv(56, 144, 1, 1, nn.Hardswish),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(144, 128), nn.Hardswish(), nn.Linear(128, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)))

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 3, 32, 32),)


class _Inverted(nn.Module):
    def __init__(self, taken: int, given: int, stride: int, times: int, *, act: type[nn.Module], squeeze: bool) -> None:
        super().__init__()
        inner = taken * times
        layers: list[nn.Module] = [_conv(taken, inner, 1, 1, act)] if times > 1 else []
        layers += [_conv(inner, inner, 3, stride, act, groups=inner)]
        layers += [_Squeeze(inner)] if squeeze else []
        self.body = nn.Sequential(*layers, nn.Conv2d(inner, given, 1, bias=False), nn.BatchNorm2d(given))
        self.adds = stride == 1 and taken == given

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class _Squeeze(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, max(8, width // 4), 1), nn.Conv2d(max(8, width // 4), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * functional.hardsigmoid(self.up(functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))))


def _conv(taken: int, given: int, kernel: int, stride: int, act: type[nn.Module], *, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(taken, given, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(given), act())


class ShuffleNet(nn.Module):
    """Channel split, depthwise convolution and shuffle (Ma et al., 2018), for (batch, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(3, 24, 3, 2, nn.ReLU), _conv(24, 48, 3, 2, nn.ReLU), _Shuffled(48), _Shuffled(48),
            _conv(48, 96, 3, 2, nn.ReLU), _Shuffled(96), _Shuffled(96),
        )  # fmt: skip
        self.head = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)))

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 3, 32, 32),)


class _Shuffled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(
            _conv(half, half, 1, 1, nn.ReLU),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half),
            _conv(half, half, 1, 1, nn.ReLU),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return functional.channel_shuffle(torch.cat([kept, self.body(changed)], dim=1), 2)


class TwoDigits(nn.Module):
    """One body and two heads of one shape for (batch, 3, 32, 64): what the left half shows and what the right half shows."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64)
        self.body = nn.Sequential(*(_conv(a, b, 3, 2, nn.ReLU) for a, b in itertools.pairwise(widths)))
        self.left, self.right = nn.Linear(512, CLASSES), nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.body(x).flatten(1)
        return self.left(seen), self.right(seen)

    def logits(self, x: Tensor) -> Tensor:
        """(batch, 10, 2), as a loss over both takes them."""
        return torch.stack(self(x), dim=2)

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 3, 32, 64),)


class VisionTransformer(nn.Module):
    """64 patches of 4 x 4 pixels and a class token through four encoder layers, for (batch, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Sequential(_conv(3, 24, 3, 2, nn.GELU), nn.Conv2d(24, 48, 3, 2, 1))
        self.token = nn.Parameter(torch.zeros(1, 1, 48))
        self.place = nn.Parameter(torch.randn(65, 48) * 0.02)
        layer = nn.TransformerEncoderLayer(48, 3, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.cut(x).flatten(2).transpose(1, 2)
        rows = torch.cat([self.token.expand(rows.shape[0], -1, -1), rows], dim=1) + self.place
        return self.head(self.layers(rows)[:, 0])

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 3, 32, 32),)


class UNet(nn.Module):
    """Two steps down, two up by transposed convolution and by interpolation, with skips: (batch, 3, 32, 32) to a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = _twice(3, 12), _twice(12, 24), _twice(24, 48)
        self.up = nn.ConvTranspose2d(48, 24, 2, 2)
        self.d, self.e = _twice(48, 24), _twice(36, 12)
        self.head = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.a(x)
        two = self.b(functional.max_pool2d(one, 2))
        low = self.c(functional.max_pool2d(two, 2))
        middle = self.d(torch.cat([self.up(low), two], dim=1))
        high = functional.interpolate(middle, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.head(self.e(torch.cat([high, one], dim=1))))

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 3, 32, 32),)


def _twice(taken: int, given: int) -> nn.Sequential:
    return nn.Sequential(_conv(taken, given, 3, 1, nn.ReLU), _conv(given, given, 3, 1, nn.ReLU))


class Detector(nn.Module):
    """One digit on a photograph (batch, 3, 64, 64): 64 cells of (x0, y0, x1, y1 in 0..640, ten scores in 0..1), joined.

    The join of boxes and scores is what real detection heads end in, and what one int8 scale for both cannot hold.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 24, 40)
        self.body = nn.Sequential(
            *(_conv(a, b, 3, 2, nn.ReLU) for a, b in itertools.pairwise(widths)),
            _conv(40, 64, 3, 1, nn.ReLU), _conv(64, 64, 3, 1, nn.ReLU),
        )  # fmt: skip
        self.box, self.score = nn.Conv2d(64, 4, 1), nn.Conv2d(64, CLASSES, 1)
        at = (torch.arange(8) + 0.5) * CANVAS / 8
        y, x = torch.meshgrid(at, at, indexing="ij")
        self.register_buffer("centre", torch.stack([x, y]).reshape(1, 2, 64))

    def forward(self, x: Tensor) -> Tensor:
        boxes, scores = self.parts(x)
        return torch.cat([boxes, torch.sigmoid(scores)], dim=1)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (batch, 4, 64) and logits (batch, 10, 64)."""
        seen = self.body(x)
        move = self.box(seen).flatten(2) * 80
        size = functional.softplus(move[:, 2:] / 80) * 160
        centre = self.centre + move[:, :2]
        return torch.cat([centre - size, centre + size], dim=1), self.score(seen).flatten(2)

    @staticmethod
    def example() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 3, 64, 64),)
