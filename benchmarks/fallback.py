"""Whether deferrals keep what export promised, and whether answers come in time whatever the cloud does.

    python -m benchmarks.fallback [--json] [--models FOLDER]

promise   Models are exported with --defer. Their artifacts answer samples that export never saw, on the device's own session,
          with the bundle's own temperature and threshold: accuracy with the cloud, offload and calibration error, against the
          promise. Some hundreds of samples differ from some hundreds of others by more than a point by chance alone, so the
          same is done for 40 other ways to deal all samples out, through the exporter's own function: `bias` is the mean
          difference, `sd` its spread, `chance` the spread that two samples of these sizes have anyway.
deadline  A device that is never sure asks about every answer: a real `edgeml serve`, the same one killed, a server that takes a
          second, one that answers noise. The breaker is off but for the killed one, so that every call meets the others.

The digits come with scikit-learn; keyword spotting and CIFAR need the published models (scripts/models).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgeml.exporter.parity.answers import probabilities
from edgeml.exporter.parity.confidence import calibration_error, fit_temperature
from edgeml.exporter.parity.deferral import defer
from edgeml.exporter.pipeline import export
from edgeml.exporter.plan import DeferGoal, make_plan
from edgeml.runtime.backends import Array
from edgeml.runtime.cloud import CloudClient
from edgeml.runtime.cloud_gate import CloudGate
from edgeml.runtime.fallback import Policy
from edgeml.runtime.hybrid import Hybrid
from edgeml.runtime.model import Model, load
from edgeml.wire.manifest import Deferral
from examples.digits.data import GREY_LEVELS, through_the_housing

ROOT: Final = Path(__file__).resolve().parent.parent
Speak = Callable[[socket.socket], None]

DEALS: Final = 40
HOUSINGS: Final = 4
CALLS: Final = 200  # of each kind of cloud
DEADLINE_S: Final = 0.25
SLOW_S: Final = 1.0
NEVER: Final = 10**9  # failures until the breaker opens, where it is to stay closed


@dataclass(frozen=True, slots=True)
class Case:
    """A model with samples: `calibrate` for export's ranges, `rest` dealt out between export and field, a group to one side."""

    name: str
    source: str
    calibrate: Array
    rest: Array
    labels: Array
    groups: Array
    goal: DeferGoal

    def deal(self, generator: np.random.Generator) -> Array:
        """Which samples export gets: half of the groups."""
        count = int(self.groups.max()) + 1
        return np.asarray((generator.permutation(count) < count // 2)[self.groups])


@dataclass(frozen=True, slots=True)
class Kept:
    """One artifact's promise and what the field showed, as shares; `bias`, `sd` and `chance` are percentage points.

    `ece_of_all` is of all samples, each by the temperature of a half that it is not in, in the mean of all deals; `perfect`
    what so many answers show that are right exactly as often as they are sure.
    """

    model: str
    artifact: str
    status: str
    n: int
    promised_accuracy: float
    accuracy: float
    promised_offload: float
    offload: float
    alone: float
    promised_ece: float
    ece: float
    ece_before: float
    ece_of_all: float
    perfect: float
    accuracy_bias: float
    accuracy_sd: float
    accuracy_chance: float
    offload_bias: float
    offload_sd: float
    offload_chance: float


@dataclass(frozen=True, slots=True)
class Timed:
    """How a device fared with one kind of cloud."""

    cloud: str
    calls: int
    in_deadline: int
    from_cloud: int
    slowest_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    parser.add_argument("--models", type=Path, default=os.environ.get("EDGEML_MODELS"), help="the published models")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = [one for case in cases(asked.models) for one in promises(case, folder)]
        timed = deadlines(folder)
    show(kept, timed)
    if asked.json:
        record = {
            "worst_accuracy_bias": max(abs(one.accuracy_bias) for one in kept),
            "worst_offload_bias": max(abs(one.offload_bias) for one in kept),
            "worst_ece": max(one.ece_of_all for one in kept),
            "in_deadline_share": min(one.in_deadline / one.calls for one in timed),
            "kept": [asdict(one) for one in kept],
            "timed": [asdict(one) for one in timed],
        }
        print(json.dumps(record))


def cases(models: Path | None) -> Iterator[Case]:
    yield digits()
    if models is None:
        print("keyword spotting and CIFAR are left out: set EDGEML_MODELS (scripts/models)")
        return
    tiny, data = models / "mlperf-tiny", models.parent / "data"
    for name, file, samples, goal in (
        ("kws", "kws_dscnn_savedmodel", "kws01.npz", DeferGoal(0.93, 0.25, 0.97)),
        ("resnet8", "ic_resnet8.h5", "cifar10_jpeg1000.npz", DeferGoal(0.84, 0.5, 0.92)),
    ):
        with np.load(data / samples, allow_pickle=False) as held:
            x, y = held["x"].astype(np.float32), held["y"]
        fifth = np.arange(len(x)) % 5 == 0
        yield Case(name, str(tiny / file), x[fifth], x[~fifth], y[~fifth], np.arange((~fifth).sum()), goal)


def digits() -> Case:
    """The meter-reading camera: images that no training saw, each through four housings, which stay on one side."""
    from sklearn.datasets import load_digits

    from examples.digits.data import CALIBRATE, SPLIT_SEED, TRAIN

    bundled = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(bundled.images))[TRAIN:]
    clean, labels = (bundled.images[order] / GREY_LEVELS).astype(np.float32)[:, None], bundled.target[order].astype(np.int64)
    groups = np.repeat(np.arange(len(order) - CALIBRATE), HOUSINGS)
    luck = np.random.default_rng(9)
    calibrate, rest = through_the_housing(clean[:CALIBRATE], luck), through_the_housing(clean[CALIBRATE:][groups], luck)
    source = f"{ROOT / 'examples/digits/model.py'}:v1_0_0"
    return Case("digits", source, calibrate, rest, labels[CALIBRATE:][groups], groups, DeferGoal(0.985, 0.15, 0.995))


def promises(case: Case, folder: Path) -> Iterator[Kept]:
    half = case.deal(np.random.default_rng(3))
    write_samples(folder / "calib.npz", {"x": case.calibrate})
    write_samples(folder / "eval.npz", {"x": case.rest[half], "y": case.labels[half]})
    plan = make_plan(
        case.source, to="onnx,tflite", precision="fp32,int8", calib=folder / "calib.npz", evaluation=folder / "eval.npz",
        max_drop=None, defer=case.goal.text, name=case.name, out=folder,
    )  # fmt: skip
    exported = export(plan)
    assert exported.bundle is not None, exported.report.summary
    status = {(one.format, one.precision): one.status for one in exported.report.artifacts}
    for artifact in exported.report.artifacts:
        with load(exported.bundle, format=artifact.format, precision=artifact.precision) as model:
            yield held(case, model, half, status[artifact.format, artifact.precision])


def write_samples(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def held(case: Case, model: Model, half: Array, status: str) -> Kept:
    """What one artifact gives in the field, and over other ways to deal the samples out."""
    post, own = model.manifest.post, model.artifact.deferral
    assert post is not None
    assert own is not None
    assert own.promise is not None
    name = model.manifest.signature.inputs[0].name
    answers = [model.run({name: x}) for x in case.rest]
    rows = np.stack([one.outputs[post.output] for one in answers])
    confidence = np.asarray([one.score for one in answers])
    right = np.asarray([one.class_index for one in answers]) == case.labels
    cloud = case.goal.cloud or 0.0
    asked = confidence < (own.defer_below or 0.0)
    field = ~half
    raw = probabilities(msgspec.structs.replace(post, temperature=1.0), {post.output: rows}).max(axis=1)
    accuracy, offload, ece = redealt(case, model, rows)
    return Kept(
        model=case.name,
        artifact=f"{model.artifact.format} {model.artifact.precision}",
        status=status,
        n=int(field.sum()),
        promised_accuracy=own.promise.accuracy,
        accuracy=float(np.where(asked, cloud, right)[field].mean()),
        promised_offload=own.promise.offload,
        offload=float(asked[field].mean()),
        alone=float(right[field].mean()),
        promised_ece=own.promise.ece,
        ece=calibration_error(confidence[field], right[field]),
        ece_before=calibration_error(raw[field], right[field]),
        ece_of_all=float(ece.mean()),
        perfect=perfect(confidence),
        accuracy_bias=float(accuracy.mean()),
        accuracy_sd=float(accuracy.std()),
        accuracy_chance=chance(np.where(asked, cloud, right), case, half),
        offload_bias=float(offload.mean()),
        offload_sd=float(offload.std()),
        offload_chance=chance(asked, case, half),
    )


def redealt(case: Case, model: Model, rows: Array) -> tuple[Array, Array, Array]:
    """Field less promise for other ways to deal the samples out: (accuracy, offload) in points, and the calibration error."""
    generator = np.random.default_rng(4)
    accuracy, offload, ece = [], [], []
    for _ in range(DEALS):
        here = case.deal(generator)
        confidence, right = np.zeros(len(rows)), np.zeros(len(rows), np.bool_)
        confidence[here], right[here] = answers_at(fit(case, model, rows, ~here), case, model, rows, here)
        own, confidence[~here], right[~here] = deferred(case, model, rows, here)
        assert own.promise is not None
        asked = confidence[~here] < (own.defer_below or 0.0)
        together = float(np.where(asked, case.goal.cloud or 0.0, right[~here]).mean())
        accuracy.append(100 * (together - own.promise.accuracy))
        offload.append(100 * (float(asked.mean()) - own.promise.offload))
        ece.append(calibration_error(confidence, right))
    return np.asarray(accuracy), np.asarray(offload), np.asarray(ece)


def deferred(case: Case, model: Model, rows: Array, here: Array) -> tuple[Deferral, Array, Array]:
    """What export makes of the samples `here`, and confidence and hits of the others."""
    post = model.manifest.post
    assert post is not None
    part = {post.output: rows[here]}
    own = defer(post, part, part, case.labels[here], case.goal).deferral
    return own, *answers_at(own.temperature, case, model, rows, ~here)


def fit(case: Case, model: Model, rows: Array, here: Array) -> float:
    post = model.manifest.post
    assert post is not None
    return fit_temperature(post, {post.output: rows[here]}, case.labels[here])


def answers_at(temperature: float, case: Case, model: Model, rows: Array, here: Array) -> tuple[Array, Array]:
    """Confidence and hits of the samples `here`."""
    post = model.manifest.post
    assert post is not None
    shares = probabilities(msgspec.structs.replace(post, temperature=temperature), {post.output: rows[here]})
    return shares.max(axis=1), np.asarray(shares.argmax(axis=1) == case.labels[here])


def chance(values: Array, case: Case, half: Array) -> float:
    """The standard deviation, in points, of the difference of two means over so many groups."""
    sizes = np.bincount(case.groups)
    means = np.bincount(case.groups, weights=values.astype(np.float64)) / sizes
    here = len(np.unique(case.groups[half]))
    return 100 * float(means.std()) * float(np.sqrt(1 / here + 1 / (len(sizes) - here)))


def perfect(confidence: Array) -> float:
    """The calibration error that so many answers show where each is right exactly as often as it is sure."""
    generator = np.random.default_rng(5)
    return float(np.mean([calibration_error(confidence, generator.random(len(confidence)) < confidence) for _ in range(100)]))


def deadlines(folder: Path) -> list[Timed]:
    bundle = folder / "digits-0.1.0.edgeml"
    images = digits().rest
    with load(bundle) as model:
        with serving(bundle) as (url, process):
            alive = timed("edgeml serve", model, url, images, failures=NEVER)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)
            dead = timed("killed", model, url, images, failures=3)
        with standing(slow) as url:
            late = timed(f"takes {SLOW_S:g} s", model, url, images, failures=NEVER)
        with standing(noise) as url:
            lying = timed("answers noise", model, url, images, failures=NEVER)
    return [alive, dead, late, lying]


def timed(name: str, model: Model, url: str, images: Array, *, failures: int) -> Timed:
    policy = Policy(deadline_s=DEADLINE_S, least_score=1.1, failures_to_open=failures)
    took, sources = [], []
    with Hybrid(model, CloudClient(url, model.name, model.manifest.signature), CloudGate(policy)) as hybrid:
        for number in range(CALLS):
            began = time.perf_counter()
            sources.append(hybrid.run({"image": images[number]}).source)
            took.append(time.perf_counter() - began)
    in_time = sum(seconds <= DEADLINE_S for seconds in took)
    return Timed(name, CALLS, in_time, sources.count("cloud"), round(1e3 * max(took), 1))


@contextlib.contextmanager
def serving(bundle: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "edgeml.cli", "serve", str(bundle), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process
    finally:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def standing(speak: Speak) -> Iterator[str]:
    """A server on a thread for each connection, which says what it likes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=speak, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        stop.set()
        thread.join()


def slow(connection: socket.socket) -> None:
    """Reads, waits, and says that all is well."""
    with connection, contextlib.suppress(OSError):
        connection.recv(1 << 16)
        time.sleep(SLOW_S)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def noise(connection: socket.socket) -> None:
    """Answers at once: noise, JSON of something else, NaN, or half a promise."""
    luck = random.Random()
    body = luck.choice(
        [
            luck.randbytes(200),
            b'{"model_name":"digits","outputs":[{"name":"scores","datatype":"FP32","shape":[1,10],"data":[NaN]}]}',
            b'{"outputs":[]}',
            b"[" * 5000,
        ]
    )
    length = luck.choice([len(body), 10 * len(body)])
    with connection, contextlib.suppress(OSError):
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + body)


def show(kept: list[Kept], timed_: list[Timed]) -> None:
    print("promise → field; in brackets bias ± sd (chance) of other ways to deal the samples out, in points")
    for one in kept:
        print(f"{one.model} {one.artifact}, {one.status}: {one.n} samples, the device alone {one.alone:.2%}")
        for name, promised, got, bias, sd, by_chance in (
            ("accuracy", one.promised_accuracy, one.accuracy, one.accuracy_bias, one.accuracy_sd, one.accuracy_chance),
            ("offload", one.promised_offload, one.offload, one.offload_bias, one.offload_sd, one.offload_chance),
        ):
            print(f"    {name:10} {promised:7.2%} → {got:7.2%}  [{bias:+.2f} ± {sd:.2f} ({by_chance:.2f})]")
        others = f"(at temperature 1 {one.ece_before:.2%}) [all deals {one.ece_of_all:.2%}, perfect {one.perfect:.2%}]"
        print(f"    ECE        {one.promised_ece:7.2%} → {one.ece:7.2%}  {others}")
    within = f"within {1e3 * DEADLINE_S:.0f} ms"
    print(f"{'cloud':14} {'calls':>6} {within:>16} {'from the cloud':>15} {'slowest, ms':>12}")
    for row in timed_:
        print(f"{row.cloud:14} {row.calls:6d} {row.in_deadline / row.calls:16.1%} {row.from_cloud:15d} {row.slowest_ms:12.1f}")


if __name__ == "__main__":
    main()
