"""Numbers as people read them; the same words in the page and in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from edgeml.exporter.parity.compare import UNMEASURED
from edgeml.exporter.report.structs import ArtifactReport
from edgeml.wire.manifest import Deferral, Parity, Task

NOTHING: Final = "\N{EN DASH}"  # a cell without a value
MINUS: Final = "\N{MINUS SIGN}"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
FORMATS: Final = {"onnx": "ONNX", "tflite": "TFLite", "coreml": "Core ML"}
METRICS: Final = {
    "top1_accuracy": "top-1 accuracy",
    "top1_agreement": "top-1 agreement with the source",
    "r2": "R²",
    "r2_to_source": "R² to the source",
    "auc": "area under the ROC curve",
    "f1": "F1",
    "mse": "mean squared error",
    "mae": "mean absolute error",
}
SIGNIFICANT: Final = 0.05
ERRORS: Final = frozenset({"mse", "mae"})  # in the output's units, the less the better


def size(count: int) -> str:
    """`98.5 kB`; powers of ten, as disks and downloads are counted."""
    if count < 1000:
        return f"{count} B"
    value, unit = (count / 1000, "kB") if count < 1_000_000 else (count / 1_000_000, "MB")
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def share(value: float | None, digits: int = 2) -> str:
    """`99.25 %`; never 100 when it is less."""
    if value is None:
        return NOTHING
    text = f"{100 * value:.{digits}f}"
    if value < 1 and float(text) >= 100:
        text = f"{100 - 10**-digits:.{digits}f}"
    return f"{text} %"


def metric_value(metric: str, value: float | None) -> str:
    """A share as percent, an error in its own units."""
    return f"{value:.4g}" if metric in ERRORS and value is not None else share(value)


def error(value: float) -> str:
    if value >= UNMEASURED:
        return NOTHING
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-3 else f"{value:#.3g}"


def points(value: float) -> str:
    """`+0.25`: percentage points with a sign; a real minus."""
    if abs(value) >= UNMEASURED:
        return NOTHING
    return f"{value:+.2f}".replace("-", MINUS) if round(value, 2) else "0.00"


def seconds(value: float) -> str:
    return f"{value * 1e6:.0f} µs" if value < 1e-3 else f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.1f} s"


def between(low: float, high: float) -> str:
    """The ends of an interval of seconds: `29 to 31 µs`."""
    number, _, unit = seconds(low).partition(" ")
    return f"{number if seconds(high).endswith(f' {unit}') else seconds(low)} to {seconds(high)}"


def ratio(whole: int, part: int) -> str:
    """How many times smaller."""
    return f"{whole / part:.1f}{TIMES} smaller" if part and whole / part >= 1.05 else ""


def drop(task: Task | None) -> str:
    """`+0.25, at most +0.51`: estimate and upper bound."""
    return NOTHING if task is None else f"{points(task.drop)}, at most {points(task.upper95)}"


def top1(parity: Parity | None) -> str:
    return share(parity.top1_agreement) if parity is not None else NOTHING


def where(artifact: ArtifactReport) -> str:
    return artifact.parity.where if artifact.parity is not None else "not run"


def repaired(artifact: ArtifactReport) -> str | None:
    """What came of a search for layers to leave float, unless the error says it already."""
    return artifact.repair.sentence if artifact.repair is not None and artifact.error is None else None


def decibels(error_share: float) -> str:
    """Signal to noise of an error in standard deviations: `38 dB`."""
    if error_share <= 0 or error_share >= UNMEASURED:
        return NOTHING
    return f"{round(-20 * math.log10(error_share))} dB".replace("-", MINUS)


def class_name(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else f"class {index}"


def worst_classes(artifact: ArtifactReport, labels: Sequence[str]) -> str | None:
    """Classes that lose more than the budget, if chance alone does not explain it; `None` if there is none."""
    budget = artifact.task.budget if artifact.task is not None else None
    if artifact.by_class is None or budget is None:
        return None
    found = [one for one in artifact.by_class.drops if one.drop > budget and one.p_holm <= SIGNIFICANT]
    listed = [f"{class_name(labels, one.index)} {points(one.drop)} on {one.n:,} samples" for one in found[:3]]
    return f"drops most for {', '.join(listed)}" if listed else None


def reason(artifact: ArtifactReport) -> str | None:
    """Why it did not pass, in one sentence; `None` if it did."""
    if artifact.error:
        return artifact.error
    if artifact.parity is not None and artifact.parity.status == "fail":
        return artifact.parity.reason
    reasons = [found for found in (_of_task(artifact.task), artifact.deferral_reason) if found]
    return "; ".join(reasons) or None


def with_cloud(deferral: Deferral | None) -> str | None:
    """What the artifact and the cloud were measured to reach together; `None` where nothing was."""
    if deferral is None or deferral.promise is None:
        return None
    promise = deferral.promise
    asked = f"asked for {share(promise.offload)}{interval(promise.offload_within)}, below a confidence of {below(deferral)}"
    return f"with the cloud {share(promise.accuracy)}{interval(promise.accuracy_within)}, {asked}"


def interval(within: tuple[float, float] | None) -> str:
    """` (93.2 to 96.1)`, in percent."""
    return "" if within is None else f" ({100 * within[0]:.1f} to {100 * within[1]:.1f})"


def below(deferral: Deferral) -> str:
    return NOTHING if deferral.defer_below is None else f"{deferral.defer_below:.3g}"


def _of_task(task: Task | None) -> str | None:
    if task is None or task.status == "pass" or task.budget is None:
        return None
    if task.status == "fail":
        return f"drops {points(task.drop)} points, budget {task.budget:g}"
    wanted = (
        f"{task.needed_n:,} samples at these rates would decide"
        if task.needed_n
        else "more samples at these rates would not decide"
    )
    return f"the bound {points(task.upper95)} is over the budget {task.budget:g} with {task.n:,} samples; {wanted}"
