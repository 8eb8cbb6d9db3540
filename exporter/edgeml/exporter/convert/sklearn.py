"""scikit-learn to ONNX by skl2onnx: what is neither linear nor neural, which goes through torch instead."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

import numpy as np

from edgeml.exporter.extras import missing
from edgeml.exporter.source.sklearn import SklearnModel
from edgeml.wire.errors import UnsupportedError

OPSETS: Final = {"": 18, "ai.onnx.ml": 3}  # what every ONNX Runtime of the last years has
INDICES: Final = frozenset({4, 5, 8, 9})  # of `add_node`'s arguments: node, feature, true child, false child


def to_onnx(model: SklearnModel) -> Any:
    """The graph of an estimator by skl2onnx, with the one output that the export reproduces.

    Raises:
        UnsupportedError: skl2onnx does not know a part of it; it is named.
    """
    import skl2onnx
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    last = model.estimator.steps[-1][1] if hasattr(model.estimator, "steps") else model.estimator
    options: dict[str, Any] = {}
    if model.method == "predict_proba":
        options = {"zipmap": False}
    elif model.classes:
        options = {"zipmap": False, "raw_scores": True}
    width = int(model.signature.inputs[0].shape[1])
    try:
        with warnings.catch_warnings(), _repaired_trees():
            warnings.simplefilter("ignore")
            proto = skl2onnx.to_onnx(
                model.estimator,
                np.zeros((1, width), np.float32),
                options={id(last): options} if options else None,
                target_opset=OPSETS,
            )
    except (MissingConverter, MissingShapeCalculator) as error:
        raise UnsupportedError(
            f"skl2onnx cannot convert {type(last).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    except Exception as error:
        raise missing(error) or UnsupportedError(
            f"skl2onnx cannot convert {type(last).__name__}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    kept = proto.graph.output[-1]  # a classifier's label comes first
    del proto.graph.output[:]
    proto.graph.output.extend([kept])
    if model.method == "decision_function" and len(model.classes) == 2:
        _last_column(proto.graph)
    return proto


def _last_column(graph: Any) -> None:
    """Of two scores (the other is the first one's negative), the one that scikit-learn gives."""
    import onnx

    scores, index = graph.output[0], "last_column"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), index))
    name = f"{scores.name}_last"
    graph.node.append(onnx.helper.make_node("Gather", [scores.name, index], [name], axis=1))
    scores.name = name


@contextmanager
def _repaired_trees() -> Iterator[None]:
    """skl2onnx 1.20 hands booleans and uint32 of histogram trees to protobuf, which refuses them, and rounds their thresholds.

    A threshold rounded up to a float32 sends the rows that hold this very number to the other side: on scikit-learn's own
    breast-cancer data that moved 89 of 569 rows. Rounded down, x <= threshold holds for the same float32 x as before.
    """
    from skl2onnx.common import tree_ensemble

    add_node = tree_ensemble.add_node

    def add(*arguments: Any, **named: Any) -> None:
        plain = [int(value) if place in INDICES else value for place, value in enumerate(arguments)]
        missing_goes_left = int(named.get("nodes_missing_value_tracks_true", 0))
        dtype = named.get("dtype") or np.float32
        add_node(*plain, adjust_threshold_for_sklearn=True, dtype=dtype, nodes_missing_value_tracks_true=missing_goes_left)

    with mock.patch.object(tree_ensemble, "add_node", add):
        yield
