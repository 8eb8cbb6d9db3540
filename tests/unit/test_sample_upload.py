"""What a device keeps of inputs it was not sure of, what its owner's hook lets out, and what a day may cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.runtime import load
from edgeml.runtime.backends import Array
from edgeml.runtime.config import SamplesTable
from edgeml.runtime.errands import Budget, Errands
from edgeml.runtime.forget import Wish
from edgeml.runtime.model import Model
from edgeml.runtime.samples import QUEUE, Redact, SampleFolder, Sampler, sample_hook
from edgeml.runtime.spool import Spool
from edgeml.wire.errors import ConfigError, EnvironmentProblem, LinkError, ServiceError
from edgeml.wire.samples import decode_sample
from tests.unit.bundles import make_bundle, samples

X = samples(1)[0]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with load(make_bundle(tmp_path)) as loaded:
        yield loaded


@pytest.fixture
def folder(tmp_path: Path) -> SampleFolder:
    return SampleFolder(tmp_path / "samples", cap_bytes=100_000)


def offered(model: Model, folder: SampleFolder, *, score: float = 0.4, redact: Redact | None = None, **rest: Any) -> Sampler:
    """A sampler for scores below 0.5 that was offered one answer."""
    sampler = Sampler(SamplesTable(below=0.5), folder, redact, chance=lambda: 0.5, now=lambda: 7.0)
    result = replace(model.run({"x": X}), score=score, **rest)
    sampler.offer(model, {"x": X}, result)
    sampler.drain()
    sampler.close()
    return sampler


def test_an_input_with_a_low_score_is_kept_as_it_was_fed(model: Model, folder: SampleFolder) -> None:
    sampler = offered(model, folder, request_id="r-1", label="low")
    found = folder.oldest()
    assert found is not None
    header, [content] = decode_sample(found[1])
    np.testing.assert_array_equal(np.frombuffer(content, "<f4"), X)
    assert (header.id, header.request_id, header.score, header.label, header.at) == (found[0], "r-1", 0.4, "low", 7.0)
    assert (header.model, header.version, header.manifest_sha256) == ("toy", "1.0.0", model.digest)
    assert sampler.counts == {"taken": 1}


def test_a_long_label_and_request_id_are_cut_to_what_the_fleet_takes(model: Model, folder: SampleFolder) -> None:
    offered(model, folder, request_id="r" * 200, label="l" * 200)
    found = folder.oldest()
    assert found is not None
    header, _ = decode_sample(found[1])
    assert (len(header.request_id), len(header.label or "")) == (128, 128)


@pytest.mark.parametrize(("score", "fallback", "kept"), [(0.5, None, 0), (0.99, "low_confidence", 1), (None, None, 0)])
def test_only_inputs_that_the_device_was_not_sure_of_are_kept(
    model: Model, folder: SampleFolder, score: float | None, fallback: str | None, kept: int
) -> None:
    sampler = Sampler(SamplesTable(below=0.5), folder, None)
    sampler.offer(model, {"x": X}, replace(model.run({"x": X}), score=score, fallback=fallback))
    sampler.close()
    assert len(folder) == kept


def test_a_share_of_them_can_be_asked_for(model: Model, folder: SampleFolder) -> None:
    dice = iter([0.05, 0.15, 0.09])
    sampler = Sampler(SamplesTable(below=0.5, share=0.1), folder, None, chance=lambda: next(dice))
    for _ in range(3):
        sampler.offer(model, {"x": X}, replace(model.run({"x": X}), score=0.1))
        sampler.drain()
    sampler.close()
    assert len(folder) == 2


def without_the_second(inputs: dict[str, Array]) -> dict[str, Array]:
    inputs["x"][1] = 0.0
    return inputs


def test_the_hook_gets_a_copy_and_only_what_it_gives_is_kept(model: Model, folder: SampleFolder) -> None:
    before = X.copy()
    offered(model, folder, redact=without_the_second)
    found = folder.oldest()
    assert found is not None
    np.testing.assert_array_equal(np.frombuffer(decode_sample(found[1])[1][0], "<f4"), [X[0], 0.0, X[2], X[3]])
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize(
    ("hook", "word"),
    [
        (lambda _: None, "withheld"),
        (lambda _: {}, "withheld"),
        (lambda inputs: inputs["y"], "redaction"),
        (lambda _: {"x": np.array([object()])}, "redaction"),
        (lambda _: {"x": "face.png"}, "redaction"),
        (lambda _: {"x": np.random.default_rng(1).bytes(1) and np.zeros(40_000_000, np.uint8)}, "too_large"),
    ],
    ids=["none", "empty", "raises", "objects", "text", "too large"],
)
def test_what_the_hook_refuses_or_fails_on_is_dropped_and_counted(
    model: Model, folder: SampleFolder, hook: Redact, word: str
) -> None:
    sampler = offered(model, folder, redact=hook)
    assert sampler.counts == {word: 1}
    assert len(folder) == 0


def test_a_hook_that_hangs_holds_up_no_call(model: Model, folder: SampleFolder) -> None:
    go_on = threading.Event()

    def hangs(inputs: dict[str, Array]) -> dict[str, Array]:
        assert go_on.wait(20)
        return inputs

    sampler = Sampler(SamplesTable(below=0.5), folder, hangs)
    result = replace(model.run({"x": X}), score=0.1)
    for _ in range(QUEUE + 10):
        sampler.offer(model, {"x": X}, result)
    assert sampler.counts["busy"] >= 9  # one is in the hook, QUEUE wait, the rest was let go
    go_on.set()
    sampler.close()
    assert len(folder) == sampler.counts["taken"] <= QUEUE + 1


def test_the_folder_drops_the_oldest_and_is_found_again_after_a_restart(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path / "s", cap_bytes=250)
    for number in range(4):
        assert folder.add(f"id-{number}", bytes(100), 0)
    assert (len(folder), folder.dropped) == (2, 2)
    assert not folder.add("large", bytes(251), 0)
    again = SampleFolder(tmp_path / "s", cap_bytes=250)
    assert again.oldest() == ("id-2", bytes(100))


def test_a_sample_that_was_on_its_way_when_the_folder_was_emptied_is_not_kept(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path / "s", cap_bytes=1000)
    epoch = folder.epoch
    folder.clear()
    assert not folder.add("late", b"data", epoch)
    assert list((tmp_path).glob("s/*")) == []


def test_a_day_has_its_bytes_over_restarts_and_the_next_day_anew(tmp_path: Path) -> None:
    now = [1_000_000.0]
    path = tmp_path / "sent.json"
    assert [Budget(path, 250, lambda: now[0]).spend(100) for _ in range(3)] == [True, True, False]
    now[0] += 86_400.0
    assert Budget(path, 250, lambda: now[0]).spend(250)
    path.write_bytes(b"torn")
    assert Budget(path, 250, lambda: now[0]).spend(250)


def test_what_the_disk_cannot_count_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    budget = Budget(tmp_path / "file" / "sent.json", 250)
    for _ in range(2):
        with pytest.raises(EnvironmentProblem, match="the disk does not take the count"):
            budget.spend(100)


class Poller:
    """A service that answers as told."""

    def __init__(self) -> None:
        self.brought: list[bytes] = []
        self.forgotten: list[int] = []
        self.fails: Exception | None = None

    def bring(self, sample: bytes) -> None:
        if self.fails is not None:
            raise self.fails
        self.brought.append(sample)

    def forget(self, before_seq: int) -> None:
        if self.fails is not None:
            raise self.fails
        self.forgotten.append(before_seq)


class Bench:
    def __init__(self, tmp_path: Path, daily_bytes: int = 10_000) -> None:
        self.now = 0.0
        self.poller = Poller()
        self.spool = Spool(tmp_path / "spool.sqlite")
        self.wish = Wish(tmp_path, lambda: self.now)
        self.folder = SampleFolder(tmp_path / "samples", cap_bytes=10_000)
        self.errands = Errands(
            self.poller,  # type: ignore[arg-type]  # bring and forget are all that is used
            self.spool, self.wish, self.folder, Budget(tmp_path / "sent.json", daily_bytes, lambda: self.now),
            ask=lambda job: job(), clock=lambda: self.now, jitter=lambda: 1.0,
        )  # fmt: skip

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1.0
            self.errands.tick()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.spool.close()


def test_samples_wait_until_every_message_is_gone(bench: Bench) -> None:
    bench.folder.add("a", b"one", 0)
    bench.spool.put(1, "report", b"{}")
    bench.wait(10)
    assert bench.poller.brought == []
    bench.spool.ack([1])
    bench.wait(10)
    assert bench.poller.brought == [b"one"]
    assert (len(bench.folder), bench.errands.sent) == (0, 1)


def test_a_service_out_of_reach_is_asked_again_with_growing_pauses(bench: Bench) -> None:
    bench.folder.add("a", b"one", 0)
    bench.poller.fails = LinkError("no route")
    tries: list[float] = []
    bring: Callable[[bytes], None] = bench.poller.bring

    def noted(sample: bytes) -> None:
        tries.append(bench.now)
        bring(sample)

    bench.poller.bring = noted  # type: ignore[method-assign]
    bench.wait(40)
    assert tries == [1.0, 6.0, 16.0, 36.0]
    assert (len(bench.folder), bench.errands.problem) == (1, "no route")
    bench.poller.fails = None
    bench.wait(60)
    assert (len(bench.folder), bench.errands.problem) == (0, None)


def test_a_sample_that_the_service_will_never_take_does_not_hold_up_the_rest(bench: Bench) -> None:
    bench.folder.add("a", b"one", 0)
    bench.poller.fails = ServiceError("not a sample", status=400)
    bench.wait(2)
    assert (len(bench.folder), bench.errands.refused) == (0, 1)


def test_over_the_days_bytes_a_sample_waits_for_tomorrow(tmp_path: Path) -> None:
    bench = Bench(tmp_path, daily_bytes=5)
    for name in ("a", "b"):
        bench.folder.add(name, b"four", 0)
    bench.wait(3600)
    assert len(bench.poller.brought) == 1
    bench.now = 86_400.0
    bench.wait(3600)
    assert len(bench.poller.brought) == 2
    bench.spool.close()


def test_a_wish_to_be_forgotten_goes_before_samples_and_until_it_gets_through(bench: Bench) -> None:
    bench.folder.add("a", b"one", 0)
    bench.wish.ask()
    assert bench.wish.is_new()
    bench.wish.erased(77)
    bench.poller.fails = LinkError("no route")
    bench.wait(100)
    assert bench.wish.is_there
    bench.poller.fails = None
    bench.wait(3600)
    assert (bench.poller.forgotten, bench.wish.is_there) == ([77], False)
    assert bench.poller.brought == [b"one"]


def test_a_wish_outlives_a_power_cut_at_each_of_its_steps(tmp_path: Path) -> None:
    Wish(tmp_path).ask()
    assert Wish(tmp_path).is_new()
    Wish(tmp_path).erased(5)
    later = Wish(tmp_path)
    assert not later.is_new()
    assert later.before_seq == 5
    (tmp_path / "forget.json").write_bytes(b"{to")
    assert Wish(tmp_path).is_new()  # a torn file is a wish all the same


def test_a_hook_is_found_beside_the_settings_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "edgeml_test_privacy.py").write_text("def blur(inputs):\n    return None\n")
    hook = sample_hook(SamplesTable(redact="edgeml_test_privacy:blur"), tmp_path)
    assert hook is not None
    assert hook({}) is None
    with pytest.raises(ConfigError, match=r"\[samples\] redact = 'edgeml_test_privacy:blurr'"):
        sample_hook(SamplesTable(redact="edgeml_test_privacy:blurr"), tmp_path)
    assert sample_hook(SamplesTable(), tmp_path) is None


def test_a_spool_that_was_erased_holds_no_bytes_of_its_messages_and_goes_on_counting(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite")
    seq = spool.next_seq()
    spool.put(seq, "telemetry", b"a secret of this house" * 50)
    spool.erase()
    assert (len(spool), spool.next_seq() > seq) == (0, True)
    spool.close()
    for file in tmp_path.iterdir():
        assert b"secret" not in file.read_bytes()
