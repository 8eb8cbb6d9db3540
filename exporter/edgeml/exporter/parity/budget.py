"""The accuracy budget: is the drop small enough, and do these samples prove it?

Source and artifact answer the same samples, so the drop is bounded by *paired* statistics, one-sided at 95 %
(`edgeml.exporter.parity.intervals`):

- accuracy and agreement: Tango's score interval for paired proportions (`drop_upper`);
- R2, and a function that gives a value a sample: the studentized bootstrap of the mean paired difference (`mean_upper`);
- AUC, F1, MSE, MAE, and a function that gives one number: the paired bootstrap (`resampled_upper`).

Every resampling has a fixed seed. Upper bound <= budget passes; point estimate > budget fails; between the two these samples
cannot tell, and `needed_n` says how many of the same kind would.
"""

from __future__ import annotations

from typing import Literal

from edgeml.exporter.metric import AUTO, Metric
from edgeml.exporter.parity.compare import Outputs, TaskKind
from edgeml.exporter.parity.intervals import TAIL, Drop, Limit
from edgeml.exporter.parity.measured import Pair, called, classified, regressed
from edgeml.exporter.parity.metrics import class_output
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import Status, Task


def score(
    reference: Outputs,
    got: Outputs,
    labels: Array | None,
    *,
    task: TaskKind,
    budget: float | None,
    data: Literal["eval", "calibration"] = "eval",
    scores: str | None = None,
    metric: Metric = AUTO,
    chances: int = 1,
) -> Task:
    """The task metric of source and artifact on the same samples, and the verdict.

    | metric | labels | value |
    |---|---|---|
    | `top1_accuracy` | class numbers | share of samples whose top-1 class is the label |
    | `top1_agreement` | none | share of samples whose top-1 class is the source's; source_value 1 |
    | `top<k>_accuracy` | class numbers | share of samples whose label is among the k best classes |
    | `auc`, `f1` | class numbers | area under the ROC curve, F1; of more than two classes the mean over classes |
    | `r2` | targets of the output's shape | 1 - mean (got - y)^2 / var(y) |
    | `r2_to_source` | none | 1 - mean (got - source)^2 / var(source), the share of the source's variance kept; source_value 1 |
    | `mse`, `mae` | targets | mean squared, mean absolute difference; the drop is its growth in percent |
    | a function's name | whatever it takes | what the function returns |

    Args:
        reference: the source's outputs (n, ...), finite.
        got: the artifact's outputs, of the same contract.
        labels: as `Samples.labels`; targets that fit no output are not used.
        task: which metrics to choose from.
        budget: the accepted drop in percentage points; `None` passes any.
        data: which samples these are.
        scores: the output that is judged; found if not given.
        metric: what was asked for.
        chances: among how many tries the error of 5 % is shared: the second after a first that failed is bounded at 97.5 %.

    Raises:
        PlanError: labels that the metric needs are missing or outside the output's classes.
    """
    found = scores or class_output(reference) if task == "classify" else scores
    pair, limit = Pair(reference, got, labels, found), Limit(budget, TAIL / chances)
    if metric.kind == "call":
        measured = called(pair, metric, limit)
    elif task == "classify" and found is not None:
        measured = classified(pair, metric, limit)
    else:
        measured = regressed(pair, metric, limit)
    drop = measured.drop
    status = verdict(drop, budget)
    return Task(
        metric=measured.metric,
        value=measured.value,
        source_value=measured.source_value,
        drop=drop.points,
        upper95=drop.upper,
        n=len(pair),
        status=status,
        budget=budget,
        needed_n=drop.needed_n if status == "inconclusive" else None,
        data=data,
    )


def verdict(drop: Drop, budget: float | None) -> Status:
    if budget is None or drop.upper <= budget:
        return "pass"
    return "fail" if drop.points > budget else "inconclusive"
