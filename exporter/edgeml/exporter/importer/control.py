"""If, Loop and Scan: run as Python control flow, so what a trace records is the path its example took.

A condition or trip count that depends on data is refused while a converter looks on: a trace would keep one path alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgeml.exporter.importer.registry import Node, Value, operator, refuse_data


def _as_tensors(values: list[Value]) -> list[Tensor]:
    from edgeml.exporter.importer.graph import as_tensor

    return [as_tensor(value) for value in values]


@operator("If", static=(0,), subgraphs=True)
def if_(node: Node, condition: Value) -> tuple[Tensor, ...]:
    branch = node.get("then_branch") if bool(condition.reshape(-1)[0]) else node.get("else_branch")
    return tuple(_as_tensors(branch.run({**branch.constants, **node.scope}, {})))


@operator("Loop", static=(0, 1), subgraphs=True)
def loop(node: Node, trips: Value | None, condition: Value | None, *carried: Tensor) -> tuple[Tensor, ...]:
    body = node.get("body")
    limit = None if trips is None else int(trips.reshape(-1)[0])
    alive = True if condition is None else bool(condition.reshape(-1)[0])
    state, scanned, turn = list(carried), [], 0
    while alive and (limit is None or turn < limit):
        given = dict(zip(body.inputs, [np.asarray(turn), np.asarray(alive), *state], strict=True))
        found = body.run({**body.constants, **node.scope, **given}, {})
        if isinstance(found[0], Tensor):
            refuse_data(node, "whether to go on")
        results = _as_tensors(found)
        alive, state = bool(results[0]), results[1 : 1 + len(carried)]
        scanned.append(results[1 + len(carried) :])
        turn += 1
    columns = zip(*scanned, strict=True) if scanned else iter(())
    return *state, *(torch.stack(list(column)) for column in columns)


@operator("Scan", subgraphs=True)
def scan(node: Node, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    if node.opset < 9:
        raise node.refuse("opset 8's batched form")
    body, count = node.get("body"), node.get("num_scan_inputs")
    given = [tensor for tensor in inputs if tensor is not None]
    state, streams = given[: len(given) - count], given[len(given) - count :]
    axes = node.ints("scan_input_axes") or [0] * count
    backwards = node.ints("scan_input_directions") or [0] * count
    length = streams[0].shape[axes[0]]
    collected: list[list[Tensor]] = []
    for turn in range(length):
        now = [
            stream.select(axis, length - 1 - turn if reverse else turn)
            for stream, axis, reverse in zip(streams, axes, backwards, strict=True)
        ]
        values = {**body.constants, **node.scope, **dict(zip(body.inputs, [*state, *now], strict=True))}
        results = _as_tensors(body.run(values, {}))
        state = results[: len(state)]
        collected.append(results[len(state) :])
    columns = [list(column) for column in zip(*collected, strict=True)]
    out_axes = node.ints("scan_output_axes") or [0] * len(columns)
    flips = node.ints("scan_output_directions") or [0] * len(columns)
    return *state, *(
        torch.stack(list(reversed(column)) if flip else column, dim=axis)
        for column, axis, flip in zip(columns, out_axes, flips, strict=True)
    )
