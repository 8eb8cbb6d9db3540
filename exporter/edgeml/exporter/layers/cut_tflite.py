"""A piece of a TFLite file: some of its operators, from tensors in the middle to a tensor in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeml.exporter.source.tflite_graphs import pack_model


def cut_tflite(data: bytes, inputs: Sequence[int], output: int) -> bytes:
    """The operators that the tensor `output` is computed by from the tensors `inputs` (indices of the main graph).

    What they read from constants alone comes along; all other operators and buffers are left out.
    """
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    makers = {int(index): number for number, operator in enumerate(graph.operators) for index in operator.outputs}
    kept: set[int] = set()
    queue, done = [output], set(inputs)
    while queue:
        index = queue.pop()
        if index in done or index not in makers:
            continue
        done.add(index)
        kept.add(makers[index])
        queue += [int(one) for one in graph.operators[makers[index]].inputs if one >= 0]
    graph.operators = [operator for number, operator in enumerate(graph.operators) if number in kept]
    graph.inputs, graph.outputs = np.asarray(inputs, np.int32), np.asarray([output], np.int32)
    used = {int(index) for operator in graph.operators for index in (*operator.inputs, *operator.outputs) if index >= 0}
    buffers = {graph.tensors[index].buffer for index in used}
    for number, buffer in enumerate(model.buffers):
        if number not in buffers:
            buffer.data = None
    model.subgraphs, model.signatureDefs, model.metadata, model.metadataBuffer = [graph], None, None, None
    return pack_model(model)
