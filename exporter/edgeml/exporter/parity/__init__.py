"""Agreement of an artifact with its source: bindings, comparison, metrics, the accuracy budget."""

from edgeml.exporter.parity.answers import answers, detect_task, post_processing
from edgeml.exporter.parity.bind import bind
from edgeml.exporter.parity.budget import score
from edgeml.exporter.parity.compare import FLOAT_LIMIT, UNMEASURED, Outputs, TaskKind, compare
from edgeml.exporter.parity.metrics import class_output

__all__ = [
    "FLOAT_LIMIT",
    "UNMEASURED",
    "Outputs",
    "TaskKind",
    "answers",
    "bind",
    "class_output",
    "compare",
    "detect_task",
    "post_processing",
    "score",
]
