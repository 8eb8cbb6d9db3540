"""LSTM, GRU and RNN. The plain LSTM goes to torch's fused operator, which converters keep whole; the rest is unrolled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgeml.exporter.importer.registry import Node, Static, ints, operator

Activation = Callable[[Tensor], Tensor]


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


def _activations(node: Node, default: list[str], directions: int) -> list[Activation]:
    names = [n.decode() if isinstance(n, bytes) else n for n in node.get("activations") or default * directions]
    alphas, betas = list(node.get("activation_alpha") or []), list(node.get("activation_beta") or [])
    return [
        _activation(node, name, alphas[i] if i < len(alphas) else None, betas[i] if i < len(betas) else None)
        for i, name in enumerate(names)
    ]


def _unrolled(
    node: Node, x: Tensor, lengths: list[int] | None, step: Callable[[int, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    starts: Sequence[tuple[Tensor, ...]],
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:  # fmt: skip
    """Runs `step(direction, x_t, state) -> state` over time; gives (time, directions, batch, hidden) and the last states."""
    direction = node.get("direction", "forward")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    time, outputs, lasts = x.shape[0], [], []
    for number, backwards in enumerate(ways):
        state, seen = starts[number], [torch.zeros_like(starts[number][0])] * time
        for t in reversed(range(time)) if backwards else range(time):
            new = step(number, x[t], state)
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
    functions = _activations(node, ["Tanh"], directions)
    bias = torch.zeros(directions, 2 * hidden) if b is None else b
    start = _initial(node, h0, directions, x.shape[1], hidden, x)

    def step(d: int, now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        total = now @ w[d].T + state[0] @ r[d].T + bias[d, :hidden] + bias[d, hidden:]
        return (functions[d](_clip(node, total)),)

    y, lasts = _unrolled(node, x, None if lengths is None else ints(lengths), step, [(start[d],) for d in range(directions)])
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
    functions = _activations(node, ["Sigmoid", "Tanh"], directions)
    bias = torch.zeros(directions, 6 * hidden) if b is None else b
    start = _initial(node, h0, directions, x.shape[1], hidden, x)
    reset_after = bool(node.get("linear_before_reset", 0))

    def step(d: int, now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        wb, rb = bias[d, : 3 * hidden], bias[d, 3 * hidden :]
        xz, xr, xh = (now @ w[d].T + wb).chunk(3, -1)
        weights = r[d].chunk(3, 0)
        biases = rb.chunk(3)
        update = functions[2 * d](_clip(node, xz + h @ weights[0].T + biases[0]))
        reset = functions[2 * d](_clip(node, xr + h @ weights[1].T + biases[1]))
        carried = reset * (h @ weights[2].T + biases[2]) if reset_after else (reset * h) @ weights[2].T + biases[2]
        candidate = functions[2 * d + 1](_clip(node, xh + carried))
        return ((1 - update) * candidate + update * h,)

    y, lasts = _unrolled(node, x, None if lengths is None else ints(lengths), step, [(start[d],) for d in range(directions)])
    return _layout(node, y, torch.stack([state[0] for state in lasts]))


@operator("LSTM", static=(4,))
def lstm(
    node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Static | None = None,
    h0: Tensor | None = None, c0: Tensor | None = None, p: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    x = x.transpose(0, 1) if node.get("layout", 0) else x
    directions, hidden = w.shape[0], r.shape[2]
    bias = torch.zeros(directions, 8 * hidden, dtype=x.dtype) if b is None else b
    h_start = _initial(node, h0, directions, x.shape[1], hidden, x)
    c_start = _initial(node, c0, directions, x.shape[1], hidden, x)
    plain = not (node.get("activations") or node.get("clip") or node.get("input_forget")) and p is None
    plain = plain and (lengths is None or set(ints(lengths)) == {x.shape[0]}) and node.get("direction", "forward") != "reverse"
    if plain:
        return _layout(node, *_fused(x, w, r, bias, h_start, c_start))
    functions = _activations(node, ["Sigmoid", "Tanh", "Tanh"], directions)
    peep = torch.zeros(directions, 3 * hidden, dtype=x.dtype) if p is None else p

    def step(d: int, now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        gates = now @ w[d].T + h @ r[d].T + bias[d, : 4 * hidden] + bias[d, 4 * hidden :]
        i, o, f, g = gates.chunk(4, -1)
        p_i, p_o, p_f = peep[d].chunk(3)
        i = functions[3 * d](_clip(node, i + p_i * c))
        f = 1 - i if node.get("input_forget", 0) else functions[3 * d](_clip(node, f + p_f * c))
        c_new = f * c + i * functions[3 * d + 1](_clip(node, g))
        o = functions[3 * d](_clip(node, o + p_o * c_new))
        return o * functions[3 * d + 2](c_new), c_new

    begin = [(h_start[d], c_start[d]) for d in range(directions)]
    y, lasts = _unrolled(node, x, None if lengths is None else ints(lengths), step, begin)
    return _layout(node, y, torch.stack([s[0] for s in lasts]), torch.stack([s[1] for s in lasts]))


def _fused(x: Tensor, w: Tensor, r: Tensor, bias: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """torch orders the gates i f g o; ONNX orders them i o f c."""
    hidden = r.shape[2]

    def reorder(t: Tensor) -> Tensor:
        i, o, f, g = t.chunk(4, 0)
        return torch.cat([i, f, g, o], 0)

    parameters: list[Tensor] = []
    for d in range(w.shape[0]):
        parameters += [reorder(w[d]), reorder(r[d]), reorder(bias[d, : 4 * hidden]), reorder(bias[d, 4 * hidden :])]
    flat, h, c = torch.lstm(x, (h0, c0), parameters, True, 1, 0.0, False, w.shape[0] == 2, False)
    time, batch = x.shape[:2]
    return flat.reshape(time, batch, w.shape[0], hidden).permute(0, 2, 1, 3), h, c
