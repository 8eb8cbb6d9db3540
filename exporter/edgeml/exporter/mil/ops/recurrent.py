"""LSTM, GRU and plain recurrence over (sequence, batch, features)."""

# ruff: noqa: PLR0917 - the parameters are the operation's inputs

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from edgeml.exporter.mil.registry import operation

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: Final[dict[str, Activation]] = {
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "linear": lambda x: x,
    "relu": torch.relu,
    "scaled_tanh": lambda x: 1.7159 * torch.tanh(2.0 / 3.0 * x),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@operation("lstm")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(sequence or last step, h, c); gates in the order input, forget, output, cell. Both directions join on features."""
    gate, cell, out = (_ACTIVATIONS[name.lower()] for name in (recurrent_activation, cell_activation, activation))

    def layer(h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b: Tensor | None, p: Tensor | None, *, reverse: bool) -> _Lstm:
        return _lstm_layer(x, h, c, (w_ih, w_hh, b, p), (gate, cell, out), clip, reverse=reverse)

    if direction != "bidirectional" or weight_ih_back is None or weight_hh_back is None:
        steps, h, c = layer(initial_h, initial_c, weight_ih, weight_hh, bias, peephole, reverse=direction == "reverse")
        return (steps if output_sequence else h.unsqueeze(0)), h, c
    (h_1, h_2), (c_1, c_2) = initial_h.chunk(2, 1), initial_c.chunk(2, 1)
    ahead, ha, ca = layer(h_1, c_1, weight_ih, weight_hh, bias, peephole, reverse=False)
    back, hb, cb = layer(h_2, c_2, weight_ih_back, weight_hh_back, bias_back, peephole_back, reverse=True)
    h = torch.cat([ha, hb], 1)
    return (torch.cat([ahead, back], 2) if output_sequence else h.unsqueeze(0)), h, torch.cat([ca, cb], 1)


_Lstm = tuple[Tensor, Tensor, Tensor]


def _lstm_layer(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    activations: tuple[Activation, Activation, Activation],
    clip: float | None,
    *,
    reverse: bool,
) -> _Lstm:
    """One direction; results stand in the order of the input sequence."""
    w_ih, w_hh, bias, peephole = weights
    gate, cell, out = activations
    p_i, p_f, p_o = peephole.chunk(3) if peephole is not None else (None, None, None)
    projected = x @ w_ih.T if bias is None else x @ w_ih.T + bias
    results: list[Tensor] = []
    for step in reversed(projected.unbind(0)) if reverse else projected.unbind(0):
        i, f, o, z = (step + h @ w_hh.T).chunk(4, 1)
        z = cell(z if clip is None else z.clamp(-clip, clip))
        i, f = gate(i if p_i is None else i + p_i * c), gate(f if p_f is None else f + p_f * c)
        c = f * c + i * z
        h = gate(o if p_o is None else o + p_o * c) * out(c)
        results.append(h)
    return torch.stack(results[::-1] if reverse else results), h, c


@operation("gru")
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(sequence or last step, h); gates in the order reset, output, update.

    r = s(W_ir x + b_r + W_hr h), z alike, and h = (1 - z) * o + z * h, where o = a(W_io x + W_ho (r * h) + b_o) or, with
    `reset_after`, a(W_io x + b_io + r * (W_ho h + b_o)).
    """
    gate, out = _ACTIVATIONS[recurrent_activation.lower()], _ACTIVATIONS[activation.lower()]
    size = weight_hh.shape[1]
    bias = bias if bias is not None else x.new_zeros(3 * size)
    projected = x @ weight_ih.T if input_bias is None else x @ weight_ih.T + input_bias
    b_r, b_o, b_z = bias.chunk(3)
    w_r, w_o, w_z = weight_hh.chunk(3)
    h = initial_h
    results: list[Tensor] = []
    for step in reversed(projected.unbind(0)) if direction == "reverse" else projected.unbind(0):
        x_r, x_o, x_z = step.chunk(3, 1)
        r, z = gate(x_r + h @ w_r.T + b_r), gate(x_z + h @ w_z.T + b_z)
        o = out(x_o + r * (h @ w_o.T + b_o)) if reset_after else out(x_o + (r * h) @ w_o.T + b_o)
        h = (1 - z) * o + z * h
        results.append(h)
    return _sequence(results, output_sequence, direction), h


@operation("rnn")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """(sequence or last step, h) of h = a(W_ih x + W_hh h + b)."""
    out = _ACTIVATIONS[activation.lower()]
    projected = x @ weight_ih.T if bias is None else x @ weight_ih.T + bias
    h = initial_h
    results: list[Tensor] = []
    for step in reversed(projected.unbind(0)) if direction == "reverse" else projected.unbind(0):
        h = out(step + h @ weight_hh.T)
        results.append(h)
    return _sequence(results, output_sequence, direction), h


def _sequence(results: list[Tensor], whole: bool, direction: str) -> Tensor:
    """All steps in the order of the input, or the last one computed, as a sequence of one."""
    if not whole:
        return results[-1].unsqueeze(0)
    return torch.stack(results[::-1] if direction == "reverse" else results)
