"""Watches every float tensor of an ONNX model: the model with each inner value as an output, run by plain kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import onnx

from edgeml.exporter.calibrate.feeds import Feeds, one_by_one
from edgeml.exporter.calibrate.statistics import Pass
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx

PLAIN: Final = EngineOptions(kernels="reference")


def _numbers(node: Any) -> list[str]:
    """Outputs of a node, without those of classical models that may be text: a classifier's label, and what is made of it."""
    if node.domain != "ai.onnx.ml":
        return list(node.output)
    if node.op_type in {"LabelEncoder", "ArrayFeatureExtractor", "ZipMap"}:
        return []
    return list(node.output[1:] if node.op_type.endswith("Classifier") else node.output)


def watch_onnx(proto: Any, feeds: Feeds) -> Pass:
    """A pass over `feeds` that shows the inputs and every value of the main graph; `proto` stays as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    outputs = {output.name for output in copy.graph.output}
    inner = [name for node in copy.graph.node for name in _numbers(node) if name and name not in outputs]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    backend = open_onnx(copy.SerializeToString(), PLAIN)

    def run() -> Iterator[Mapping[str, Array]]:
        for tensors in one_by_one(backend.inputs, feeds):
            values = [*zip(backend.inputs, tensors, strict=True), *zip(backend.outputs, backend.run(tensors), strict=True)]
            yield {tensor.name: value for tensor, value in values if value.dtype == np.float32}

    return run
