"""Audio front ends: Fourier transforms, windows and mel weights."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from edgeml.exporter.importer.fourier import inverse_fourier
from edgeml.exporter.importer.registry import Node, Static, operator, torch_dtype


@operator("DFT", static=(1, 2))
def dft(node: Node, x: Tensor, length: Static | None = None, axis: Static | None = None) -> Tensor:
    """Last axis holds 1 (real) or 2 (complex) parts, in and out."""
    over = int(axis.reshape(-1)[0]) if axis is not None else node.get("axis", 1 if node.opset < 20 else -2)
    over = over % x.ndim if over >= 0 else over + x.ndim
    n = x.shape[over] if length is None else int(length.reshape(-1)[0])
    one_sided, inverse = bool(node.get("onesided", 0)), bool(node.get("inverse", 0))
    if inverse and not one_sided:
        return _inverse(x, n, over)
    wide = x.to(torch.float64)  # what cancels must cancel exactly
    signal = torch.view_as_complex(wide.contiguous()) if x.shape[-1] == 2 else wide[..., 0]
    if inverse and one_sided:
        real: Tensor = torch.fft.irfft(signal, n=n if length is not None else 2 * (x.shape[over] - 1), dim=over)
        return real.unsqueeze(-1).to(x.dtype)
    if one_sided:
        return torch.view_as_real(torch.fft.rfft(signal, n=n, dim=over)).to(x.dtype)
    return torch.view_as_real(torch.fft.fft(signal, n=n, dim=over)).to(x.dtype)


def _inverse(x: Tensor, n: int, over: int) -> Tensor:
    """The two-sided inverse transform of `n` elements; what is missing is zero."""
    given = x.transpose(over, -2) if over != x.ndim - 2 else x
    given = torch.nn.functional.pad(given, (0, 0, 0, max(n - given.shape[-2], 0)))[..., :n, :]
    imaginary = given[..., 1] if given.shape[-1] == 2 else torch.zeros_like(given[..., 0])
    found = torch.stack(inverse_fourier(given[..., 0], imaginary), -1)
    return found.transpose(over, -2) if over != x.ndim - 2 else found


@operator("STFT", static=(1, 3))
def stft(node: Node, x: Tensor, step: Static, window: Tensor | None = None, length: Static | None = None) -> Tensor:
    size = int(length.reshape(-1)[0]) if length is not None else int(window.shape[0]) if window is not None else 0
    hop = int(step.reshape(-1)[0])
    frames = x[..., 0].unfold(1, size, hop) if x.ndim == 3 else x.unfold(1, size, hop)
    frames = frames if window is None else frames * window
    spectrum = torch.fft.rfft(frames) if node.get("onesided", 1) else torch.fft.fft(frames)
    return torch.view_as_real(spectrum)


def _cosines(node: Node, size: Static, terms: list[float]) -> Tensor:
    """sum of (-1)^k a_k cos(2 pi k n / N); symmetric windows divide by N - 1."""
    n = int(size.reshape(-1)[0])
    period = n if node.get("periodic", 1) else n - 1
    angle = 2 * math.pi * np.arange(n) / max(period, 1)
    window = sum((-1) ** k * a * np.cos(k * angle) for k, a in enumerate(terms))
    return torch.from_numpy(np.asarray(window)).to(torch_dtype(node, node.get("output_datatype", 1)))


@operator("HannWindow", static=(0,))
def hann_window(node: Node, size: Static) -> Tensor:
    return _cosines(node, size, [0.5, 0.5])


@operator("HammingWindow", static=(0,))
def hamming_window(node: Node, size: Static) -> Tensor:
    return _cosines(node, size, [25 / 46, 21 / 46])


@operator("BlackmanWindow", static=(0,))
def blackman_window(node: Node, size: Static) -> Tensor:
    return _cosines(node, size, [0.42, 0.5, 0.08])


@operator("MelWeightMatrix", static=(0, 1, 2, 3, 4))
def mel_weight_matrix(node: Node, bins: Static, length: Static, rate: Static, low: Static, high: Static) -> Tensor:
    """Triangles between mel points (HTK scale), as the operator's definition rounds them to bins."""
    count, size = int(bins.item()), int(length.item())
    mel_low, mel_high = (2595 * math.log10(1 + float(f.item()) / 700) for f in (low, high))
    points = np.arange(count + 2) * ((mel_high - mel_low) / (count + 2)) + mel_low
    edges = ((size + 1) * (700 * (10 ** (points / 2595) - 1)) // int(rate.item())).astype(np.int64)
    matrix = np.zeros((size // 2 + 1, count))
    for i in range(count):
        left, center, right = edges[i], edges[i + 1], edges[i + 2]
        if center == left:
            matrix[center, i] = 1
        for j in range(left, center + 1):
            matrix[j, i] = (j - left) / (center - left) if center != left else 1
        for j in range(center, right):
            matrix[j, i] = (right - j) / (right - center)
    return torch.from_numpy(matrix).to(torch_dtype(node, node.get("output_datatype", 1)))
