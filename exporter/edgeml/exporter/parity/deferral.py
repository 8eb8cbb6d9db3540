"""When a device should ask the cloud: temperature and threshold of one artifact, and what export promises of them.

A device asks about every answer whose confidence is below the threshold t. Over samples with labels, of n:

    offload(t)  = |{i: c_i < t}| / n
    accuracy(t) = (sum over c_i >= t of [device right] + sum over c_i < t of k_i) / n

where k_i is whether the source is right, or the accuracy that the cloud was said to have on what it is asked.

Chosen is the least offload whose bounds hold: accuracy at least A and offload at most B, each one-sided (Clopper and Pearson
1934), at 99 % if that can be had, else at 95 % or 80 %; else the threshold within B with the best bound. What judges the choice
are bounds at 95 %: one that only just holds on the samples that found it would not on others.

The promise is what the threshold gives on the samples that chose it, less what choosing flatters: for each of `FOLDS` parts a
threshold is found on the others, as it is for the whole, and its shares on those less its shares on this part are that.
It says where a field of as many samples will be: both lie in their intervals at 95 %, each at 97.5 % (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from edgeml.exporter.parity.answers import post_processing, probabilities
from edgeml.exporter.parity.bounds import MISS, field_interval, high_bound, least_share, low_bound
from edgeml.exporter.parity.compare import Outputs, TaskKind
from edgeml.exporter.parity.confidence import calibration_error, fit_temperature
from edgeml.exporter.parity.metrics import Flags, Floats
from edgeml.exporter.plan import DeferGoal
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Deferral, PostProcessing, Promise, Status

DEFER_SHARE: Final = 0.05  # of the samples, where nothing else was asked for: those the artifact is least sure of
FOLDS: Final = 5
MISSES: Final = (0.01, 0.05, 0.2)  # of the bounds that choose, the surest first


@dataclass(frozen=True, slots=True)
class Deferred:
    """A deferral and the verdict on it; `reason` says what can be reached where the goal is not, or not surely."""

    deferral: Deferral
    status: Status = "pass"
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    """Samples with labels (n,): the artifact's scores (n, ...) for them, and how right the cloud would be."""

    post: PostProcessing
    scores: Array
    labels: Array
    cloud: Floats

    def part(self, rows: Flags) -> _Case:
        return _Case(self.post, self.scores[rows], self.labels[rows], self.cloud[rows])

    def fit(self) -> float:
        return fit_temperature(self.post, {self.post.output: self.scores}, self.labels)

    def answers(self, temperature: float) -> _Answers:
        post = msgspec.structs.replace(self.post, temperature=temperature)
        rows = probabilities(post, {post.output: self.scores})
        return _Answers(rows.max(axis=1), np.asarray(rows.argmax(axis=1) == self.labels), self.cloud)


@dataclass(frozen=True, slots=True)
class _Answers:
    """How sure the device is of each sample, whether it is right, and how right the cloud would be."""

    confidence: Floats
    right: Flags
    cloud: Floats


@dataclass(frozen=True, slots=True)
class _Curve:
    """Accuracy and offload of every threshold that tells samples apart, from the one that asks about nothing upwards.

    Thresholds lie between `below`, the surest sample that is asked about, and `above`, the next one.
    """

    below: Floats
    above: Floats
    offload: Floats
    accuracy: Floats

    def threshold(self, index: int) -> float:
        """In the middle."""
        low, high = float(self.below[index]), float(self.above[index])
        if index == 0:
            return 0.0  # asks about nothing
        middle = tidy((low + high) / 2)
        return middle if low < middle <= high else high


def check_goal(labels: Array | None, *, classifies: bool) -> None:
    """Raises: PlanError: --defer has nothing to be measured on."""
    if not classifies:
        raise PlanError("--defer: the model does not classify", hint="a threshold on the confidence needs classes")
    if labels is None or labels.dtype.kind != "i":
        raise PlanError("--defer: the evaluation samples have no class numbers", hint="put them in 'y' of the --eval file")


def source_post(outputs: Outputs, task: TaskKind, labels: Array | None) -> PostProcessing | None:
    """How the source's own answers are read, for the cloud and for the reference's bins; `None` unless it classifies."""
    post = post_processing(outputs, task)
    if post is None:
        return None
    own = defer(post, outputs, outputs, labels).deferral
    return msgspec.structs.replace(post, temperature=own.temperature, defer_below=own.defer_below)


def defer(
    post: PostProcessing, reference: Outputs, got: Outputs, labels: Array | None, goal: DeferGoal | None = None
) -> Deferred:
    """Temperature, threshold and promise for an artifact with outputs `got`.

    Without a goal the threshold is the confidence that `DEFER_SHARE` of the samples stay below. Without class numbers the
    temperature is 1 and nothing is promised.

    Args:
        post: how the artifact's outputs become confidences; its temperature plays no part.
        reference: the source's outputs (n, ...).
        got: the artifact's.
        labels: class numbers (n,), or anything else, which is not used.
        goal: what was asked for.
    """
    if labels is None or not _are_classes(labels, post, got):
        confidence = probabilities(msgspec.structs.replace(post, temperature=1.0), got).max(axis=1)
        return Deferred(Deferral(defer_below=tidy(float(np.quantile(confidence, DEFER_SHARE)))))
    cloud = (probabilities(post, reference).argmax(axis=1) == labels).astype(np.float64)
    if goal is not None and goal.cloud is not None:
        cloud = np.full(len(labels), goal.cloud)
    case = _Case(post, got[post.output], labels, cloud)
    temperature = case.fit()
    answers = case.answers(temperature)
    threshold = choose(answers, goal, len(labels))
    promise = _promise(case, goal, answers, threshold)
    status, reason = ("pass", None) if goal is None else _verdict(goal, promise, answers)
    return Deferred(Deferral(temperature, threshold, promise), status, reason)


def _are_classes(labels: Array, post: PostProcessing, outputs: Outputs) -> bool:
    """Whether these are class numbers; a metric of the user's may read anything from them."""
    if labels.dtype.kind != "i" or labels.shape != (len(outputs[post.output]),):
        return False
    return bool(labels.min() >= 0 and labels.max() < probabilities(post, outputs).shape[1])


def choose(answers: _Answers, goal: DeferGoal | None, count: int) -> float:
    """The threshold; bounds are those of `count` samples with these shares, so that folds choose as the whole does."""
    curve = _curve(answers)
    if goal is None:
        return curve.threshold(int(np.abs(curve.offload - DEFER_SHARE).argmin()))
    for miss in MISSES:
        allowed = 1 - curve.offload >= least_share(1 - goal.offload, count, miss)
        allowed[0] = True  # a device that never asks stays within any offload
        good = np.flatnonzero(allowed & (curve.accuracy >= least_share(goal.accuracy, count, miss)))
        if len(good):
            return curve.threshold(int(good[0]))
    return curve.threshold(int(np.where(allowed, curve.accuracy, -1.0).argmax()))


def tidy(threshold: float) -> float:
    return float(f"{threshold:.6g}")


def _curve(answers: _Answers) -> _Curve:
    """Samples of equal confidence are never parted."""
    order = np.argsort(answers.confidence, kind="stable")
    confidence, count = answers.confidence[order], len(order)
    gain = np.concatenate([[0.0], np.cumsum(answers.cloud[order] - answers.right[order])])
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(confidence) > 0) + 1])
    return _Curve(confidence[cuts - 1], confidence[cuts], cuts / count, (answers.right.sum() + gain[cuts]) / count)


def _promise(case: _Case, goal: DeferGoal | None, answers: _Answers, threshold: float) -> Promise:
    count = len(case.labels)
    folds = np.random.default_rng(0).permutation(count) % FOLDS
    confidence = np.zeros(count)
    chosen, kept_out = _Tally(), _Tally()
    for fold in np.unique(folds):
        here = folds == fold
        rest = case.part(~here) if count > 1 else case
        temperature = rest.fit()
        others, own = rest.answers(temperature), case.part(here).answers(temperature)
        below = choose(others, goal, count)
        confidence[here] = own.confidence
        chosen.add(others, below)
        kept_out.add(own, below)
    whole = _Tally()
    whole.add(answers, threshold)
    asks = whole.asked > 0  # a device that never asks will not
    accuracy = _within(whole.accuracy - (chosen.accuracy - kept_out.accuracy))
    offload = _within(whole.offload - (chosen.offload - kept_out.offload)) if asks else 0.0
    return Promise(
        accuracy=_tidy_share(accuracy),
        offload=_tidy_share(offload),
        alone=_tidy_share(float(answers.right.mean())),
        ece=_tidy_share(calibration_error(confidence, answers.right)),
        n=count,
        cloud=None if goal is None else goal.cloud,
        accuracy_within=_interval(accuracy, count),
        offload_within=_interval(offload, count) if asks else (0.0, 0.0),
    )


@dataclass(slots=True)
class _Tally:
    """Samples, those that are asked about, and right answers of device and cloud together."""

    count: int = 0
    asked: int = 0
    right: float = 0.0

    def add(self, answers: _Answers, threshold: float) -> None:
        asked = answers.confidence < threshold
        self.count += len(asked)
        self.asked += int(asked.sum())
        self.right += float(np.where(asked, answers.cloud, answers.right).sum())

    @property
    def accuracy(self) -> float:
        return self.right / self.count

    @property
    def offload(self) -> float:
        return self.asked / self.count


def _interval(share: float, count: int) -> tuple[float, float]:
    low, high = field_interval(share, count, MISS / 2)
    return _tidy_share(low), _tidy_share(high)


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))


def _tidy_share(value: float) -> float:
    return float(f"{value:.6f}")


def _verdict(goal: DeferGoal, promise: Promise, answers: _Answers) -> tuple[Status, str | None]:
    """As for the accuracy budget: the bounds decide what passes, the estimates what fails."""
    reached = f"device and cloud reach {_percent(promise.accuracy)} at {_percent(promise.offload)} offload"
    if promise.accuracy < goal.accuracy or promise.offload > goal.offload:
        return "fail", f"{reached}; {_reachable(goal, answers)}"
    low = float(low_bound(np.asarray(promise.accuracy), promise.n))
    high = float(high_bound(np.asarray(promise.offload), promise.n)) if promise.offload else 0.0
    if low >= goal.accuracy and high <= goal.offload:
        return "pass", None
    return "inconclusive", f"{reached}, but {promise.n:,} samples prove no more than {_percent(low)} at {_percent(high)}"


def _reachable(goal: DeferGoal, answers: _Answers) -> str:
    curve = _curve(answers)
    enough = np.flatnonzero(curve.accuracy >= goal.accuracy)
    if len(enough):
        return f"{_percent(goal.accuracy)} takes {_percent(float(curve.offload[enough[0]]))} on these samples"
    return f"no threshold reaches {_percent(goal.accuracy)}: the best is {_percent(float(curve.accuracy.max()))}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0.001 <= share <= 0.999 else f"{100 * share:.3g} %"
