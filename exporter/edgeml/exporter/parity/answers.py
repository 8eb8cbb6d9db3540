"""What a model answers to the samples, and what kind of task the answers are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgeml.exporter.parity.compare import Outputs, TaskKind
from edgeml.exporter.parity.metrics import Floats, are_probabilities, class_output, class_scores
from edgeml.exporter.samples import Samples
from edgeml.runtime.backends import Array
from edgeml.wire.errors import ModelError
from edgeml.wire.manifest import PostProcessing, Signature

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def answers(run: Run, samples: Samples, signature: Signature) -> dict[str, Array]:
    """`run` (a session's, say) on every sample by itself, as a device calls it: outputs (n, ...) without batch axes of 1.

    Where samples are sequences, states are those that `run` itself gave the step before.

    Raises:
        ModelError: the model has no outputs.
    """
    rows: dict[str, list[Array]] = {spec.name: [] for spec in signature.outputs}
    if not rows:
        raise ModelError("the model has no outputs")
    got: Mapping[str, Array] = {}
    for index, feed in enumerate(samples.feeds(signature)):
        if index % samples.steps:
            feed.update({given: got[made] for given, made in signature.states.items()})
        got = run(feed)
        for spec in signature.outputs:
            rows[spec.name].append(got[spec.name][0] if spec.has_batch else got[spec.name])
    return {name: np.stack(values) for name, values in rows.items()}


def detect_task(samples: Samples, outputs: Outputs) -> TaskKind:
    """Whether the model classifies.

    It does if an output holds probabilities over two or more classes; or class scores, with class numbers as labels that fit
    them. A model that gives back its input's shape (an autoencoder) does not, whatever its labels say.
    """
    name = class_output(outputs)
    if name is None:
        return "regress"
    scores = outputs[name]
    if are_probabilities(scores):
        return "classify"
    if any(values.shape == scores.shape for values in samples.inputs.values()):
        return "regress"
    labels = samples.labels
    if labels is None or labels.dtype.kind != "i" or labels.ndim > 1:
        return "regress"
    found = class_scores(scores)
    return "classify" if found is not None and labels.min() >= 0 and labels.max() < found.shape[1] else "regress"


def post_processing(outputs: Outputs, task: TaskKind) -> PostProcessing | None:
    """How the source's outputs become a label and a score; `None` unless it classifies."""
    name = class_output(outputs) if task == "classify" else None
    if name is None:
        return None
    scores = class_scores(outputs[name])
    assert scores is not None, "class_output gives outputs with class scores"
    if are_probabilities(outputs[name]):
        return PostProcessing(name)
    return PostProcessing(name, "softmax" if scores.shape[1] > 1 else "sigmoid")


def probabilities(post: PostProcessing, outputs: Outputs) -> Floats:
    """Probabilities (n, classes) by `post`: a single score p becomes the pair 1 - p, p.

    A temperature T divides scores before a softmax or a sigmoid. Probabilities p it makes p^(1/T) / sum(p^(1/T)): the same
    thing, as ln p is the scores less a constant.
    """
    scores = class_scores(outputs[post.output])
    if scores is None:
        raise ValueError(f"output {post.output!r} has no axis of classes")
    if post.activation == "softmax":
        scaled = scores / post.temperature
        scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))
    if post.activation == "sigmoid":
        scores = 0.5 * (1 + np.tanh(scores / post.temperature / 2))
    pair = np.hstack([1 - scores, scores]) if scores.shape[1] == 1 else scores
    if post.activation == "sigmoid" or post.temperature == 1.0:
        return pair
    powers = np.maximum(pair, 0.0) ** (1 / post.temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
