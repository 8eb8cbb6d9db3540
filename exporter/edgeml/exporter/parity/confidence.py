"""How sure a model may be taken to be: the temperature that makes its confidence fit its hits, and how well it fits."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeml.exporter.parity.answers import probabilities
from edgeml.exporter.parity.compare import Outputs
from edgeml.exporter.parity.metrics import Flags, Floats
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import PostProcessing

LOWEST, HIGHEST = 0.1, 10.0  # temperatures that are looked at
PRIOR_SIGMA: Final = 1.0  # of ln T; it counts as much as one sample, and so only where hardly an answer is wrong
LEAST_PROBABILITY: Final = 1e-7  # of the label: an int8 head rounds small ones to 0
FIT_SAMPLES: Final = 2000  # at least, if there are so many; and more where there are few classes:
FIT_SCORES: Final = 500_000  # numbers in all, so that a fit takes well under a second
BINS: Final = 10


def fit_temperature(post: PostProcessing, outputs: Outputs, labels: Array) -> float:
    """The temperature T under which `labels` (n,) are likeliest, to four digits.

    Least mean of -ln p_T[label], with p_T as `probabilities` gives it (Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017, 4.2), and a normal prior on ln T that weighs as much as one sample: without a single wrong answer the likeliest
    temperature would be 0. It never changes which class is the largest.
    """
    from scipy.optimize import minimize_scalar  # takes a second to import

    most = max(FIT_SAMPLES, FIT_SCORES * len(labels) // outputs[post.output].size)
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), most)).astype(int))
    rows = {post.output: outputs[post.output][chosen]}
    truth = labels[chosen]

    def cost(log_temperature: float) -> float:
        tried = msgspec.structs.replace(post, temperature=float(np.exp(log_temperature)))
        found = probabilities(tried, rows)[np.arange(len(truth)), truth]
        prior = 0.5 * (log_temperature / PRIOR_SIGMA) ** 2 / len(truth)
        return float(-np.log(np.maximum(found, LEAST_PROBABILITY)).mean() + prior)

    bounds = (float(np.log(LOWEST)), float(np.log(HIGHEST)))
    best = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(f"{np.exp(best.x):.4g}")


def calibration_error(confidence: Floats, right: Flags) -> float:
    """Expected calibration error: sum over bins of |accuracy - mean confidence|, each by its share of the samples.

    Ten bins of equal counts (Nguyen and O'Connor, EMNLP 2015), since most answers are sure and would share one of equal width.
    Of n perfectly calibrated answers it is not 0 but some 0.25 * sqrt(10 / n) at accuracies near 90 %: bins are small samples.
    """
    order = np.argsort(confidence, kind="stable")
    return float(
        sum(len(part) * _gap(confidence, right, part) for part in np.array_split(order, BINS) if len(part)) / len(order)
    )


def _gap(confidence: Floats, right: Flags, part: NDArray[np.intp]) -> float:
    return abs(float(right[part].mean()) - float(confidence[part].mean()))
