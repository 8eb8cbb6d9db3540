"""LSTM, GRU and RNN. The plain LSTM goes to torch's fused operator, which converters keep whole; the rest is unrolled.

Unrolled, the products with the inputs of all steps are one: only those with the state are made step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from edgeml.exporter.importer.registry import Node, Static, ints, operator

Activation = Callable[[Tensor], Tensor]
LSTM_FUNCTIONS: Final = ("sigmoid", "tanh", "tanh")


def _activation(node: Node, name: str, alpha: float | None, beta: float | None) -> Activation:
    known: dict[str, Activation] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softsign": torch.nn.functional.softsign,
        "softplus": torch.nn.functional.softplus,
        "leakyrelu": lambda x: torch.nn.functional.leaky_relu(x, 0.01 if alpha is None else alpha),
        "elu": lambda x: torch.nn.functional.elu(x, 1.0 if alpha is None else alpha),
        "affine": lambda x: (1.0 if alpha is None else alpha) * x + (0.0 if beta is None else beta),
        "hardsigmoid": lambda x: torch.clamp((0.2 if alpha is None else alpha) * x + (0.5 if beta is None else beta), 0, 1),
    }
    if name.lower() not in known:
        raise node.refuse(f"activation {name!r}")
    return known[name.lower()]


def _names(node: Node, default: Sequence[str], directions: int) -> list[str]:
    return [n.decode() if isinstance(n, bytes) else n for n in node.get("activations") or [*default] * directions]


def _activations(node: Node, default: Sequence[str], directions: int) -> list[Activation]:
    names = _names(node, default, directions)
    alphas, betas = list(node.get("activation_alpha") or []), list(node.get("activation_beta") or [])
    return [
        _activation(node, name, alphas[i] if i < len(alphas) else None, betas[i] if i < len(betas) else None)
        for i, name in enumerate(names)
    ]


def _unrolled(
    node: Node, given: Sequence[Tensor], lengths: list[int] | None,
    step: Callable[[int, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]], starts: Sequence[tuple[Tensor, ...]],
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:  # fmt: skip
    """Runs `step(direction, given_t, state) -> state` over time; gives (time, directions, batch, hidden) and the last states.

    `given` holds for each direction what comes of the inputs alone, (time, batch, gates).
    """
    direction = node.get("direction", "forward")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    time, outputs, lasts = given[0].shape[0], [], []
    for number, backwards in enumerate(ways):
        state, seen = starts[number], [torch.zeros_like(starts[number][0])] * time
        rows = given[number].unbind(0)
        for t in reversed(range(time)) if backwards else range(time):
            new = step(number, rows[t], state)
            if lengths is not None:
                alive = torch.tensor([t < n for n in lengths])[:, None]
                new = tuple(torch.where(alive, a, b) for a, b in zip(new, state, strict=True))
                seen[t] = torch.where(alive, new[0], torch.zeros_like(new[0]))
            else:
                seen[t] = new[0]
            state = new
        outputs.append(torch.stack(seen))
        lasts.append(state)
    return torch.stack(outputs, dim=1), lasts


def _clip(node: Node, x: Tensor) -> Tensor:
    limit = node.get("clip")
    return x if limit is None else torch.clamp(x, -limit, limit)


def _layout(node: Node, y: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
    """`layout=1` puts the batch first."""
    if not node.get("layout", 0):
        return y, *states
    return y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in states)


def _initial(node: Node, given: Tensor | None, directions: int, batch: int, hidden: int, like: Tensor) -> Tensor:
    if given is None:
        return torch.zeros(directions, batch, hidden, dtype=like.dtype)
    return given.transpose(0, 1) if node.get("layout", 0) else given


@operator("RNN", static=(4,))
def rnn(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Static | None = None,
    h0: Tensor | None = None,
) -> tuple[Tensor, ...]:
    x = x.transpose(0, 1) if node.get("layout", 0) else x
    directions, hidden = w.shape[0], r.shape[2]
    functions = _activations(node, ("Tanh",), directions)
    bias = torch.zeros(directions, 2 * hidden) if b is None else b
    start = _initial(node, h0, directions, x.shape[1], hidden, x)
    given = [x @ w[d].T + (bias[d, :hidden] + bias[d, hidden:]) for d in range(directions)]

    def step(d: int, now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (functions[d](_clip(node, now + state[0] @ r[d].T)),)

    y, lasts = _unrolled(
        node, given, None if lengths is None else ints(lengths), step, [(start[d],) for d in range(directions)]
    )
    return _layout(node, y, torch.stack([state[0] for state in lasts]))


@operator("GRU", static=(4,))
def gru(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Static | None = None,
    h0: Tensor | None = None,
) -> tuple[Tensor, ...]:
    x = x.transpose(0, 1) if node.get("layout", 0) else x
    directions, hidden = w.shape[0], r.shape[2]
    functions = _activations(node, ("Sigmoid", "Tanh"), directions)
    bias = torch.zeros(directions, 6 * hidden) if b is None else b
    start = _initial(node, h0, directions, x.shape[1], hidden, x)
    reset_after = bool(node.get("linear_before_reset", 0))

    given = [x @ w[d].T + bias[d, : 3 * hidden] for d in range(directions)]

    def step(d: int, now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        xz, xr, xh = now.chunk(3, -1)
        rb = bias[d, 3 * hidden :]
        if reset_after:
            hz, hr, carried = (h @ r[d].T + rb).chunk(3, -1)
        else:
            hz, hr = (h @ r[d, : 2 * hidden].T + rb[: 2 * hidden]).chunk(2, -1)
        update = functions[2 * d](_clip(node, xz + hz))
        reset = functions[2 * d](_clip(node, xr + hr))
        carried = reset * carried if reset_after else (reset * h) @ r[d, 2 * hidden :].T + rb[2 * hidden :]
        candidate = functions[2 * d + 1](_clip(node, xh + carried))
        return ((1 - update) * candidate + update * h,)

    y, lasts = _unrolled(
        node, given, None if lengths is None else ints(lengths), step, [(start[d],) for d in range(directions)]
    )
    return _layout(node, y, torch.stack([state[0] for state in lasts]))


@operator("LSTM", static=(4,))
def lstm(
    node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Static | None = None,
    h0: Tensor | None = None, c0: Tensor | None = None, p: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    x = x.transpose(0, 1) if node.get("layout", 0) else x
    directions, hidden = int(w.shape[0]), int(r.shape[2])  # a trace gives tensors
    bias = torch.zeros(directions, 8 * hidden, dtype=x.dtype) if b is None else b
    h_start = _initial(node, h0, directions, x.shape[1], hidden, x)
    c_start = _initial(node, c0, directions, x.shape[1], hidden, x)
    usual = [name.lower() for name in _names(node, LSTM_FUNCTIONS, directions)] == [*LSTM_FUNCTIONS] * directions
    plain = usual and not (node.get("clip") or node.get("input_forget")) and p is None
    if plain and (lengths is None or set(ints(lengths)) == {x.shape[0]}):
        backwards = node.get("direction", "forward") == "reverse"
        y, *states = _fused(x.flip(0) if backwards else x, w, r, bias, h_start, c_start)
        return _layout(node, y.flip(0) if backwards else y, *states)
    functions = _activations(node, LSTM_FUNCTIONS, directions)
    peep = torch.zeros(directions, 3 * hidden, dtype=x.dtype) if p is None else p

    given = [x @ w[d].T + (bias[d, : 4 * hidden] + bias[d, 4 * hidden :]) for d in range(directions)]

    def step(d: int, now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        gates = now + h @ r[d].T
        i, o, f, g = gates.chunk(4, -1)
        p_i, p_o, p_f = peep[d].chunk(3)
        i = functions[3 * d](_clip(node, i + p_i * c))
        f = 1 - i if node.get("input_forget", 0) else functions[3 * d](_clip(node, f + p_f * c))
        c_new = f * c + i * functions[3 * d + 1](_clip(node, g))
        o = functions[3 * d](_clip(node, o + p_o * c_new))
        return o * functions[3 * d + 2](c_new), c_new

    begin = [(h_start[d], c_start[d]) for d in range(directions)]
    y, lasts = _unrolled(node, given, None if lengths is None else ints(lengths), step, begin)
    return _layout(node, y, torch.stack([s[0] for s in lasts]), torch.stack([s[1] for s in lasts]))


def _fused(x: Tensor, w: Tensor, r: Tensor, bias: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """torch orders the gates i f g o; ONNX orders them i o f c."""
    hidden = int(r.shape[2])

    def reorder(t: Tensor) -> Tensor:
        i, o, f, g = t.chunk(4, 0)
        return torch.cat([i, f, g, o], 0)

    parameters: list[Tensor] = []
    for d in range(int(w.shape[0])):
        parameters += [reorder(w[d]), reorder(r[d]), reorder(bias[d, : 4 * hidden]), reorder(bias[d, 4 * hidden :])]
    flat, h, c = torch.lstm(x, (h0, c0), parameters, True, 1, 0.0, False, len(parameters) == 8, False)
    time, batch = x.shape[:2]
    return flat.reshape(time, batch, int(w.shape[0]), hidden).permute(0, 2, 1, 3), h, c
