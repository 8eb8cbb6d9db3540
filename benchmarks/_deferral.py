"""Models with samples, what export promises of them, and what other samples then show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from benchmarks import _bearings as bearings
from edgeml.exporter.parity.answers import probabilities
from edgeml.exporter.parity.confidence import calibration_error, fit_temperature
from edgeml.exporter.parity.deferral import defer
from edgeml.exporter.pipeline import export
from edgeml.exporter.plan import DeferGoal, make_plan
from edgeml.runtime.backends import Array
from edgeml.runtime.model import Model, load
from edgeml.wire.manifest import Deferral, PostProcessing, Promise
from examples.digits.data import GREY_LEVELS, through_the_housing

ROOT: Final = Path(__file__).resolve().parent.parent
DEALS: Final = 40
HERE_AND_THERE: Final = 20_000  # signals of a bearing for export, and as many for the field


@dataclass(frozen=True, slots=True)
class Case:
    """A model with samples: `calibrate` for export's ranges, `rest` dealt out between export and field."""

    name: str
    source: str
    calibrate: dict[str, Array]
    rest: dict[str, Array]
    labels: Array
    goal: DeferGoal

    def deal(self, generator: np.random.Generator) -> Array:
        """Which samples export gets: half of them."""
        count = len(self.labels)
        return np.asarray(generator.permutation(count) < count // 2)


@dataclass(frozen=True, slots=True)
class Kept:
    """One artifact's promise and what the field showed, as shares; `bias` and `sd` over all deals are percentage points.

    `inside` is the share of deals whose field had accuracy, offload, or both in the promised intervals. `ece_of_all` is of all
    samples, each by the temperature of a half that it is not in, in the mean of all deals; `perfect` what so many answers show
    that are right exactly as often as they are sure.
    """

    model: str
    artifact: str
    status: str
    promise: Promise
    accuracy: float
    offload: float
    alone: float
    ece: float
    ece_before: float
    ece_of_all: float
    perfect: float
    accuracy_bias: float
    accuracy_sd: float
    offload_bias: float
    offload_sd: float
    accuracy_inside: float
    offload_inside: float
    both_inside: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What one artifact gave for every sample of a case: rows of its class output, as they came."""

    case: Case
    post: PostProcessing
    rows: Array

    def of(self, here: Array) -> tuple[dict[str, Array], Array]:
        return {self.post.output: self.rows[here]}, self.case.labels[here]

    def read(self, temperature: float, here: Array) -> tuple[Array, Array]:
        """Confidence and hits of the samples `here`."""
        outputs, labels = self.of(here)
        shares = probabilities(msgspec.structs.replace(self.post, temperature=temperature), outputs)
        return shares.max(axis=1), np.asarray(shares.argmax(axis=1) == labels)

    def deferral(self, here: Array) -> Deferral:
        """What export makes of the samples `here`."""
        outputs, labels = self.of(here)
        return defer(self.post, outputs, outputs, labels, self.case.goal).deferral

    def field(self, own: Deferral, there: Array) -> tuple[float, float]:
        """Accuracy with the cloud, and offload."""
        confidence, right = self.read(own.temperature, there)
        asked = confidence < (own.defer_below or 0.0)
        return float(np.where(asked, self.case.goal.cloud or 0.0, right).mean()), float(asked.mean())


def cases(folder: Path, models: Path | None) -> Iterator[Case]:
    yield digits()
    yield gearbox(folder)
    if models is None:
        print("keyword spotting, CIFAR and spoken digits are left out: set EDGEML_MODELS (scripts/models)")
        return
    tiny, data = models / "mlperf-tiny", models.parent / "data"
    for name, file, samples, goal in (
        ("kws", "kws_dscnn_savedmodel", "kws01.npz", DeferGoal(0.93, 0.25, 0.97)),
        ("resnet8", "ic_resnet8.h5", "cifar10_jpeg1000.npz", DeferGoal(0.84, 0.5, 0.92)),
    ):
        with np.load(data / samples, allow_pickle=False) as held:
            x, y = held["x"].astype(np.float32), held["y"].astype(np.int64)
        fifth = np.arange(len(x)) % 5 == 0
        yield Case(name, str(tiny / file), {"x": x[fifth]}, {"x": x[~fifth]}, y[~fifth], goal)
    yield spoken("sound-conv1d", DeferGoal(0.97, 0.15, 0.995))
    yield spoken("sound-dscnn", DeferGoal(0.985, 0.05, 0.999))


def digits() -> Case:
    """The meter-reading camera: images that no training saw, each through one housing."""
    from sklearn.datasets import load_digits

    from examples.digits.data import CALIBRATE, SPLIT_SEED, TRAIN

    bundled = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(bundled.images))[TRAIN:]
    clean, labels = (bundled.images[order] / GREY_LEVELS).astype(np.float32)[:, None], bundled.target[order].astype(np.int64)
    seen = through_the_housing(clean, np.random.default_rng(9))
    source = f"{ROOT / 'examples/digits/model.py'}:v1_0_0"
    calibrate, rest = {"x": seen[:CALIBRATE]}, {"x": seen[CALIBRATE:]}
    return Case("digits", source, calibrate, rest, labels[CALIBRATE:], DeferGoal(0.985, 0.15, 0.995))


def gearbox(folder: Path) -> Case:
    """Enough samples that chance does not decide."""
    x, y = bearings.signals(2 * HERE_AND_THERE, 2)
    calibrate, _ = bearings.signals(200, 3)
    return Case("bearings", bearings.train(folder), {"x": calibrate}, {"x": x}, y, DeferGoal(0.94, 0.4, 0.99))


def spoken(name: str, goal: DeferGoal) -> Case:
    """A network of the zoo, and recordings that it was not trained on, of the speakers it was trained on."""
    from benchmarks.zoo.registry import ZOO
    from benchmarks.zoo.training import make

    make(ZOO[name])
    splits = ZOO[name].splits()
    assert splits.evaluate.labels is not None
    return Case(name, ZOO[name].source, splits.calibrate.inputs, splits.evaluate.inputs, splits.evaluate.labels, goal)


def promises(case: Case, folder: Path) -> Iterator[tuple[Kept, Answers]]:
    half = case.deal(np.random.default_rng(3))
    np.savez(folder / "calib.npz", **case.calibrate)  # type: ignore[arg-type]  # numpy types the keywords as its own flag
    here = {name: array[half] for name, array in case.rest.items()}
    np.savez(folder / "eval.npz", **here, y=case.labels[half])  # type: ignore[arg-type]
    plan = make_plan(
        case.source, to="onnx,tflite", precision="fp32,int8", calib=folder / "calib.npz", evaluation=folder / "eval.npz",
        max_drop=None, defer=case.goal.text, name=case.name, out=folder,
    )  # fmt: skip
    exported = export(plan)
    assert exported.bundle is not None, exported.report.summary
    for artifact in exported.report.artifacts:
        with load(exported.bundle, format=artifact.format, precision=artifact.precision) as model:
            answers = ask(case, model)
            yield held(answers, model, half, artifact.status), answers


def ask(case: Case, model: Model) -> Answers:
    """By the device's own session, sample by sample."""
    post = model.manifest.post
    assert post is not None
    names = [spec.name for spec in model.manifest.signature.inputs]
    arrays = list(case.rest.values())
    feeds = (dict(zip(names, row, strict=True)) for row in zip(*arrays, strict=True))
    return Answers(case, post, np.stack([model.run(feed).outputs[post.output] for feed in feeds]))


def held(answers: Answers, model: Model, half: Array, status: str) -> Kept:
    """What one artifact gives in the field, and over other ways to deal the samples out."""
    own = model.artifact.deferral
    assert own is not None
    assert own.promise is not None
    accuracy, offload = answers.field(own, ~half)
    confidence, right = answers.read(own.temperature, ~half)
    raw, _ = answers.read(1.0, ~half)
    deals = redealt(answers)
    everything, _ = answers.read(own.temperature, np.ones(len(half), np.bool_))
    strays, inside = 100 * deals[:, :2], deals[:, 3:]
    return Kept(
        model=answers.case.name, artifact=f"{model.artifact.format} {model.artifact.precision}", status=status,
        promise=own.promise, accuracy=accuracy, offload=offload, alone=float(right.mean()),
        ece=calibration_error(confidence, right), ece_before=calibration_error(raw, right),
        ece_of_all=float(deals[:, 2].mean()), perfect=perfect(everything),
        accuracy_bias=float(strays[:, 0].mean()), accuracy_sd=float(strays[:, 0].std()),
        offload_bias=float(strays[:, 1].mean()), offload_sd=float(strays[:, 1].std()),
        accuracy_inside=float(inside[:, 0].mean()), offload_inside=float(inside[:, 1].mean()),
        both_inside=float(inside.all(axis=1).mean()),
    )  # fmt: skip


def redealt(answers: Answers) -> Array:
    """A row for each other way to deal the samples out: field less promise (accuracy, offload), the calibration error of all
    samples, and whether accuracy and offload were in their intervals."""
    generator = np.random.default_rng(4)
    rows = []
    for _ in range(DEALS):
        here = answers.case.deal(generator)
        own = answers.deferral(here)
        promise = own.promise
        assert promise is not None
        assert promise.accuracy_within is not None
        assert promise.offload_within is not None
        accuracy, offload = answers.field(own, ~here)
        good = within(accuracy, promise.accuracy_within), within(offload, promise.offload_within)
        error = calibration_error(*crossed(answers, here, own.temperature))
        rows.append((accuracy - promise.accuracy, offload - promise.offload, error, *good))
    return np.asarray(rows, np.float64)


def within(value: float, interval: tuple[float, float]) -> bool:
    return interval[0] - 1e-6 <= value <= interval[1] + 1e-6  # the manifest has six digits


def crossed(answers: Answers, here: Array, temperature: float) -> tuple[Array, Array]:
    """Confidence and hits of all samples, each by the temperature of the half that it is not in."""
    other = fit_temperature(answers.post, *answers.of(~here))
    confidence, right = np.zeros(len(here)), np.zeros(len(here), np.bool_)
    confidence[here], right[here] = answers.read(other, here)
    confidence[~here], right[~here] = answers.read(temperature, ~here)
    return confidence, right


def perfect(confidence: Array) -> float:
    """The calibration error that so many answers show where each is right exactly as often as it is sure."""
    generator = np.random.default_rng(5)
    return float(np.mean([calibration_error(confidence, generator.random(len(confidence)) < confidence) for _ in range(100)]))
