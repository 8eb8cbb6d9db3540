"""One order and one set of names for the inside of an ONNX graph, from its structure alone.

tf2onnx merges equal constants and equal nodes, and which of two names survives depends on addresses in memory. What follows
from the graph's outputs does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def settle(graph: Any) -> None:
    """Put nodes in the order in which the outputs need them, and constants in the order of their use; drop what nothing needs.

    Graphs within nodes are put in order too.
    """
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    nodes = [graph.node[index] for index in _needed(graph, maker)]
    for node in nodes:
        for inner in inner_graphs(node):
            settle(inner)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    used = dict.fromkeys(name for node in nodes for name in uses(node))
    kept = dict.fromkeys([*used, *(value.name for value in graph.output)])
    _replace(graph.node, nodes)
    _replace(graph.initializer, [constants[name] for name in kept if name in constants])


def uses(node: Any) -> Iterator[str]:
    """Names that a node needs, those that its inner graphs take from outside included."""
    yield from node.input
    for inner in inner_graphs(node):
        own = {value.name for value in (*inner.input, *inner.initializer)} | {o for one in inner.node for o in one.output}
        yield from (name for one in inner.node for name in uses(one) if name not in own)
        yield from (value.name for value in inner.output if value.name not in own)


def inner_graphs(node: Any) -> list[Any]:
    """The graphs in a node's attributes."""
    return [graph for attribute in node.attribute for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)]


def by_position(graph: Any) -> Iterator[tuple[str, str]]:
    """(name, what it should be called) of each inner value of a settled graph, in order; names may repeat."""
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        yield from ((name, f"{node.op_type}_constant") for name in node.input if name in constants)
        for inner in inner_graphs(node):
            yield from ((value.name, f"{node.op_type}_input") for value in inner.input)
            yield from by_position(inner)
        yield from ((name, node.op_type) for name in node.output if name)
    yield from ((tensor.name, "constant") for tensor in graph.initializer)


def _needed(graph: Any, maker: dict[str, int]) -> list[int]:
    """Indices of nodes, each after those it needs, depth first from the outputs."""
    done: dict[int, None] = {}
    waiting = [maker[value.name] for value in reversed(graph.output) if value.name in maker]
    while waiting:
        index = waiting[-1]
        first = [maker[name] for name in uses(graph.node[index]) if name in maker and maker[name] not in done]
        if index in done or not first:
            done[waiting.pop()] = None
        else:
            waiting.extend(reversed(first))
    return list(done)


def _replace(field: Any, messages: list[Any]) -> None:
    copies = [type(message).FromString(message.SerializeToString()) for message in messages]
    del field[:]
    field.extend(copies)
