"""The complex Fourier transform in real tensor code: mixed radix, decimation in frequency, in the tensor's own precision.

Steps and their order are those of pocketfft, which numpy and onnx's reference use, so that float32 results round alike (M.
Frigo and S. Johnson call the scheme Stockham's; P. Swarztrauber, "Vectorizing the FFTs", 1982).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inverse_fourier(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """sum over j of x_j exp(2 pi i j k / n) / n over the last axis, of size n: real and imaginary part."""
    size = real.shape[-1]
    shape, done, left = real.shape, 1, size
    for radix in _factors(size):
        left //= radix
        parts = [part.reshape(*shape[:-1], done, radix, left).unbind(-2) for part in (real, imaginary)]
        turned = _butterflies(list(zip(*parts, strict=True)))
        for index in range(1, radix):
            turned[index] = _turn(turned[index], [index * done * i / size for i in range(left)])
        real, imaginary = (torch.stack(one, -3).reshape(shape) for one in zip(*turned, strict=True))
        done *= radix
    scale = torch.tensor(1 / size, dtype=real.dtype)
    return real * scale, imaginary * scale


def _factors(size: int) -> list[int]:
    """Primes that make `size`, the smallest first."""
    found, divisor = [], 2
    while size > 1:
        while size % divisor == 0:
            found.append(divisor)
            size //= divisor
        divisor += 1
    return found


def _butterflies(parts: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The transform over a prime number of parts: sums and differences of parts j and p - j, each used twice."""
    prime = len(parts)
    first = parts[0]
    if prime == 2:
        (a, b), (c, d) = parts
        return [(a + c, b + d), (a - c, b - d)]
    pairs = [(parts[j], parts[prime - j]) for j in range(1, prime // 2 + 1)]
    sums = [(a[0] + b[0], a[1] + b[1]) for a, b in pairs]
    gaps = [(a[0] - b[0], a[1] - b[1]) for a, b in pairs]
    found = [first] * prime
    for real, imaginary in sums:
        found[0] = (found[0][0] + real, found[0][1] + imaginary)
    for k in range(1, prime // 2 + 1):
        even, odd = first, (torch.zeros_like(first[0]), torch.zeros_like(first[1]))
        for j, (total, gap) in enumerate(zip(sums, gaps, strict=True), 1):
            cosine, sine = _wave(first[0], j * k / prime)
            even = (even[0] + cosine * total[0], even[1] + cosine * total[1])
            odd = (odd[0] + sine * gap[1], odd[1] + sine * gap[0])
        found[k] = (even[0] - odd[0], even[1] + odd[1])
        found[prime - k] = (even[0] + odd[0], even[1] - odd[1])
    return found


def _wave(like: Tensor, turns: float) -> tuple[Tensor, Tensor]:
    angle = 2 * math.pi * (turns % 1)
    return torch.tensor(math.cos(angle), dtype=like.dtype), torch.tensor(math.sin(angle), dtype=like.dtype)


def _turn(part: tuple[Tensor, Tensor], turns: list[float]) -> tuple[Tensor, Tensor]:
    """Each element turned by its share of a full turn."""
    angles = [2 * math.pi * turn for turn in turns]
    cosine = torch.tensor([math.cos(angle) for angle in angles], dtype=part[0].dtype)
    sine = torch.tensor([math.sin(angle) for angle in angles], dtype=part[0].dtype)
    return part[0] * cosine - part[1] * sine, part[0] * sine + part[1] * cosine
