"""The keep-float search on a model that int8 really spoils: what it takes, when it gives up, how it goes on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import onnx
import pytest

from edgeml.exporter.artifact import Trial
from edgeml.exporter.cache import Cache
from edgeml.exporter.parity.intervals import drop_upper, quantile_of
from edgeml.exporter.progress import Silent
from edgeml.exporter.repair import CHANCES, Found, Search
from edgeml.exporter.repair_jobs import Quantizing
from edgeml.exporter.report.structs import Stage
from edgeml.exporter.source.model import write_arrays
from edgeml.exporter.step import Step
from edgeml.exporter.worker import Worker
from edgeml.wire.manifest import Binding, Signature, Status, TensorSpec
from tests.unit import bad_layer

DEPENDS = {"model": "bad"}


class Here:
    """A worker's jobs in this process, written down."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def call(self, job: str, /, **arguments: object) -> Any:
        module, _, function = job.partition(":")
        self.asked.append(function)
        return getattr(importlib.import_module(module), function)(**arguments)


class Table:
    """A desk of one worker and a cache; `stop_at` interrupts before that many pieces of work were done."""

    def __init__(self, cache: Path, stop_at: int | None = None) -> None:
        self.worker, self.cache, self.stop_at, self.stages = Here(), Cache(cache), stop_at, list[Stage]()

    def step(self, name: str, /) -> Step:
        return Step(name, Silent(), self.stages)

    def ask(
        self, job: str, depends: Mapping[str, object], /, *, out: Path | None = None, **arguments: object
    ) -> tuple[Any, bool]:
        if len(self.worker.asked) == self.stop_at:
            raise KeyboardInterrupt
        return self.cache.call(cast("Worker", self.worker), f"edgeml.exporter.{job}", depends, out=out, **arguments)


@pytest.fixture(scope="module")
def quantizing(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Quantizing]:
    folder = tmp_path_factory.mktemp("repair")
    (folder / "bad.onnx").write_bytes(bad_layer.model())
    calibration, (x, labels) = bad_layer.samples(64, 1)[0], bad_layer.samples(1000, 2)
    write_arrays(folder / "calibration.npz", [calibration])
    write_arrays(folder / "judging.npz", [x])
    write_arrays(folder / "reference.npz", [bad_layer.weights()(x).astype(np.float32)])
    np.save(folder / "labels.npy", labels)

    def make(budget: float) -> Quantizing:
        signature = Signature(
            (TensorSpec("x", "float32", ("batch", bad_layer.INPUTS)),),
            (TensorSpec("y", "float32", ("batch", bad_layer.CLASSES)),),
        )
        trial = Trial(
            signature=signature, samples=str(folder / "judging.npz"), reference=str(folder / "reference.npz"),
            labels=str(folder / "labels.npy"), data="eval", task="classify", scores="y", golden=(0,), budget=budget,
            calibration=str(folder / "calibration.npz"),
        )  # fmt: skip
        bindings = (Binding("x", "x", 0, "float32", ("batch", bad_layer.INPUTS)),)
        return Quantizing(trial, "onnx", "int8", str(folder / "bad.onnx"), bindings)

    return make


def test_of_small_weights_those_of_one_operator_stay_float(tmp_path: Path) -> None:
    (tmp_path / "outlying.onnx").write_bytes(bad_layer.model(bad_layer.outlying()))
    x = np.random.default_rng(3).normal(size=(500, bad_layer.INPUTS)).astype(np.float32)
    scores = bad_layer.outlying()(x).astype(np.float32)
    write_arrays(tmp_path / "x.npz", [x])
    write_arrays(tmp_path / "y.npz", [scores])
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", bad_layer.INPUTS)),), (TensorSpec("y", "float32", ("batch", bad_layer.CLASSES)),)
    )
    trial = Trial(
        signature=signature, samples=str(tmp_path / "x.npz"), reference=str(tmp_path / "y.npz"), labels=None, data="eval",
        task="classify", scores="y", golden=(0,), budget=5.0, calibration=str(tmp_path / "x.npz"),
    )  # fmt: skip
    bindings = (Binding("x", "x", 0, "float32", ("batch", bad_layer.INPUTS)),)
    asked = Quantizing(trial, "onnx", "int8-weights", str(tmp_path / "outlying.onnx"), bindings)

    found = search(Table(tmp_path / "cache"), asked, tmp_path / "work")

    assert [one.name for one in found.kept] == [bad_layer.SPOILED_WEIGHTS]
    assert found.record.ranked[0].error > 10 * found.record.ranked[1].error
    assert found.model is not None
    kept = [tensor for tensor in onnx.load(found.model).graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert any(list(tensor.dims) == [bad_layer.WIDTH, bad_layer.WIDTH] for tensor in kept)


def search(
    table: Table,
    what: Quantizing,
    folder: Path,
    *,
    missed: Status = "fail",
    limit_s: float = 60.0,
    clock: Iterator[float] | None = None,
) -> Found:
    folder.mkdir(exist_ok=True)
    ticks = clock if clock is not None else iter(lambda: 0.0, None)
    return Search(table, what, DEPENDS, missed, folder, limit_s, now=lambda: next(ticks)).run()


def test_the_spoiled_layer_alone_is_left_float(quantizing: Callable[[float], Quantizing], tmp_path: Path) -> None:
    found = search(Table(tmp_path / "cache"), quantizing(3.0), tmp_path / "work")

    assert [one.name for one in found.kept] == [bad_layer.SPOILED]
    assert found.model is not None
    assert found.record.tried[-1].bytes == found.model.stat().st_size
    assert (found.record.kept, found.record.ended, found.record.tried[-1].status) == (1, True, "pass")
    assert len(found.record.ranked) == 4
    assert f"left float: '{bad_layer.SPOILED}' (Gemm)" in found.notes[-2]
    assert "97.5 %, since this artifact had 2 chances" in found.notes[-1]


def test_an_interrupted_search_goes_on_where_it_was_and_ends_the_same(
    quantizing: Callable[[float], Quantizing], tmp_path: Path
) -> None:
    first = Table(tmp_path / "cache", stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        search(first, quantizing(3.0), tmp_path / "first")
    assert first.worker.asked == ["operators", "alone", "alone"]

    second = Table(tmp_path / "cache")
    resumed = search(second, quantizing(3.0), tmp_path / "second")
    afresh = search(Table(tmp_path / "other"), quantizing(3.0), tmp_path / "third")

    assert second.worker.asked == ["alone", "alone", "keep", "look_at"]
    assert resumed.model is not None
    assert afresh.model is not None
    assert resumed.model.read_bytes() == afresh.model.read_bytes()
    assert (resumed.record, resumed.notes) == (afresh.record, afresh.notes)


def test_out_of_time_is_a_refusal_and_the_next_run_goes_on(quantizing: Callable[[float], Quantizing], tmp_path: Path) -> None:
    ticks = iter([0.0, 1.0, 1.0, 99.0])  # of the start, and before each of three operators

    found = search(Table(tmp_path / "cache"), quantizing(3.0), tmp_path / "work", limit_s=10.0, clock=ticks)
    again = Table(tmp_path / "cache")
    ended = search(again, quantizing(3.0), tmp_path / "again")

    assert (found.model, found.record.ended, found.kept) == (None, False, ())
    assert "ran out of 10 s after 2 of 4 operators" in found.record.sentence
    assert again.worker.asked == ["alone", "alone", "keep", "look_at"]
    assert ended.model is not None


class Simulated:
    """A desk whose ten operators hurt alike. Sets of three and more drop 0.1 points, smaller ones just what is accepted."""

    def __init__(self, rng: np.random.Generator, good: tuple[float, float, float] = (0.011, 0.010, 0.979)) -> None:
        self.rng, self.good, self.stages = rng, good, list[Stage]()
        self.seen: dict[int, tuple[int, int]] = {}  # how many are lost and won with so many operators left float

    def step(self, name: str, /) -> Step:
        return Step(name, Silent(), self.stages)

    def ask(self, job: str, _: Mapping[str, object], /, *, out: Path | None = None, **arguments: object) -> tuple[Any, bool]:
        if job == "repair_jobs:operators":
            return {"operators": [{"kind": "Conv", "name": f"c{i}"} for i in range(10)], "error": 0.0, "bytes": 100}, False
        if job == "repair_jobs:alone":
            return {"error": 0.5, "bytes": 90}, False
        if out is not None:
            size = len(cast("list[str]", arguments["kept"]))
            out.write_bytes(bytes([size]))
            lost, won, _same = self.rng.multinomial(2000, self.good if size >= 3 else (0.02, 0.01, 0.97))
            self.seen[size] = int(lost), int(won)
            return [], False
        size, chances = Path(str(arguments["model"])).read_bytes()[0], cast("dict[str, Any]", arguments["trial"])["chances"]
        return {"status": self.verdict(size, chances), "task": None, "reason": None}, False

    def verdict(self, size: int, chances: int, count: int = 2000, budget: float = 0.01) -> Status:
        lost, won = self.seen[size]
        if drop_upper(lost, won, count, quantile_of(0.05 / chances)) <= budget:
            return "pass"
        return "fail" if (lost - won) / count > budget else "inconclusive"


@pytest.mark.parametrize(
    ("good", "least_right"), [((0.011, 0.010, 0.979), 0.6), ((0.014, 0.010, 0.976), 0.25)], ids=["clear", "hard to prove"]
)
def test_looking_many_times_passes_no_more_bad_sets_than_it_says(
    quantizing: Callable[[float], Quantizing], tmp_path: Path, good: tuple[float, float, float], least_right: float
) -> None:
    """Sets of one and two operators drop what is accepted, and not less: each that passes does so wrongly."""
    rng, runs, wrong, right, shared = np.random.default_rng(0), 150, 0, 0, 0
    for _ in range(runs):
        desk = Simulated(rng, good)
        found = Search(desk, quantizing(1.0), DEPENDS, "fail", tmp_path, 60.0, now=lambda: 0.0).run()
        passed = found.model is not None and desk.verdict(found.record.kept, found.chances) == "pass"
        wrong += passed and found.record.kept < 3
        right += passed and found.record.kept >= 3
        shared += passed and found.chances > CHANCES

    assert wrong / runs <= 0.05 + 2.6 * (0.05 * 0.95 / runs) ** 0.5
    assert right / runs > least_right
    assert shared  # some were proved though the first set was not


def test_of_one_operator_none_is_left_float(quantizing: Callable[[float], Quantizing], tmp_path: Path) -> None:
    class One(Simulated):
        def ask(self, job: str, depends: Mapping[str, object], /, **more: Any) -> tuple[Any, bool]:
            answer = super().ask(job, depends, **more)
            return (
                ({"operators": answer[0]["operators"][:1], "error": 0.0, "bytes": 100}, False)
                if job.endswith("operators")
                else answer
            )

    found = Search(One(np.random.default_rng(0)), quantizing(1.0), DEPENDS, "fail", tmp_path, 60.0, now=lambda: 0.0).run()

    assert found.model is None
    assert "no two operators" in found.record.sentence


def test_what_half_of_the_operators_float_does_not_repair_is_given_up(
    quantizing: Callable[[float], Quantizing], tmp_path: Path
) -> None:
    found = search(Table(tmp_path / "cache"), quantizing(0.0), tmp_path / "work")

    assert found.model is None
    assert found.record.ended
    assert found.record.sentence.startswith("leaving layers float does not repair it: 1 operator of 4 left float")


def test_what_is_not_decided_stays_if_no_set_decides_it(quantizing: Callable[[float], Quantizing], tmp_path: Path) -> None:
    """A budget between a repaired artifact's drop and its bound: with it a set is inconclusive, too."""
    probe = search(Table(tmp_path / "cache"), quantizing(3.0), tmp_path / "probe").record.tried[-1].task
    assert probe is not None
    between = (probe.drop + probe.upper95) / 2

    undecided = search(Table(tmp_path / "cache"), quantizing(between), tmp_path / "work", missed="inconclusive")
    missed = search(Table(tmp_path / "cache"), quantizing(between), tmp_path / "work", missed="fail")

    assert undecided.model is None
    assert "would not decide it" in undecided.record.sentence
    assert missed.record.tried[-1].status == "inconclusive"
    assert missed.model is not None
    assert missed.chances == CHANCES * len(missed.record.tried)


def test_where_nothing_may_be_float_the_search_speaks_of_16_bits(
    quantizing: Callable[[float], Quantizing], tmp_path: Path
) -> None:
    asked = quantizing(1.0)
    whole = msgspec.structs.replace(asked, trial=msgspec.structs.replace(asked.trial, whole=True))

    found = Search(Simulated(np.random.default_rng(0)), whole, DEPENDS, "fail", tmp_path, 60.0, now=lambda: 0.0).run()

    assert "of 10 at 16 bits: 'c0'" in found.record.sentence
    assert found.notes[0] == "at 16 bits: 'c0' (Conv), which alone costs 50 % of the outputs' deviation"
    assert {(one.bits, one.extra_bytes) for one in found.kept} == {(16, 0)}
