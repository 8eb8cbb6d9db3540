"""What a TFLite file computes inside loops and branches: the graphs after the first.

No engine shows what happens in there, so nothing has a range. Products with constant weights get int8 weights and round their
input whenever they run; everything else stays float.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from edgeml.wire.errors import UnsupportedError

CONTROL: Final = frozenset({"WHILE", "IF", "CALL_ONCE"})  # the operators that run another graph
PRODUCTS: Final = frozenset({"FULLY_CONNECTED", "CONV_2D"})  # have kernels that round their input
UNKNOWN: Final = re.compile(r"for tensor: (\S+)\. Error: TFLOperationName\.(\w+)\(")


class Inner(NamedTuple):
    """Names of what operators of inner graphs give: `products` of constant weights, and the others."""

    products: frozenset[str]
    others: frozenset[str]


def inner_operators(root: Any, kinds: dict[int, str]) -> Inner:
    """What stands in the graphs after the first of a parsed file; `kinds` are the operators' names by code."""
    products, others = set[str](), set[str]()
    for graph in (root.Subgraphs(i) for i in range(1, root.SubgraphsLength())):
        for op in (graph.Operators(i) for i in range(graph.OperatorsLength())):
            if not op.OutputsLength():
                continue
            code = root.OperatorCodes(op.OpcodeIndex())
            kind = kinds.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "")
            name = graph.Tensors(op.Outputs(0)).Name().decode()
            is_product = kind in PRODUCTS and root.Buffers(graph.Tensors(op.Inputs(1)).Buffer()).DataLength() > 0
            (products if is_product else others).add(name)
    return Inner(frozenset(products), frozenset(others))


def refuse_whole(inner: Inner) -> None:
    """Raises:
    UnsupportedError: integers alone are wanted, and a loop has products that could only round their input when they run.
    """
    if inner.products:
        raise UnsupportedError(
            f"{len(inner.products)} layers in a loop of this model ('WHILE') cannot compute on integers alone",
            hint="build recurrent layers with unroll=True",
        )


def quantizer_failure(error: Exception, model: bytes) -> UnsupportedError:
    """ai-edge-quantizer's refusal in plain words: which operator, in which graph, and what to do."""
    found = UNKNOWN.search(str(error))
    if found is None:
        return UnsupportedError(f"ai-edge-quantizer cannot quantize the model: {error}")
    tensor, kind = found.groups()
    place = next((number for number, names in enumerate(_tensors(model)) if tensor in names), 0)
    where = f"sub-graph {place}, which a loop or branch runs" if place else "the main graph"
    return UnsupportedError(
        f"ai-edge-quantizer knows no range for {tensor!r}, which {kind} takes or gives in {where}",
        hint="ask for int8-dynamic or int8-weights, which need no ranges",
    )


def _tensors(model: bytes) -> Iterator[set[str]]:
    from edgeml.exporter.source.tflite_graphs import parse_model

    for graph in parse_model(model).subgraphs:
        yield {tensor.name.decode() for tensor in graph.tensors}
