"""A version that runs beside the one that answers: what it counts, what it may cost, and that it changes no answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeml.runtime import load
from edgeml.runtime.backends import Array, Backend
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.config import AgentConfig, ChallengerTable, DeviceTable, ModelTable, load_config
from edgeml.runtime.host import Host
from edgeml.runtime.model import Model, Result, load_as
from edgeml.runtime.setup import Setup
from edgeml.runtime.shadow import QUEUE, Shadow, agree
from edgeml.wire.errors import EngineError
from edgeml.wire.manifest import PostProcessing
from edgeml.wire.messages import Telemetry, decode, encode
from tests.unit.bundles import logits, make_bundle, samples
from tests.unit.slow_engine import SlowBackend, slow_engine

BIAS = 1.0
X = samples(40)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TakesTime:
    """A backend whose calls take a second of the test's clock, or fail."""

    def __init__(self, inner: Backend, clock: Clock) -> None:
        self._inner, self._clock = inner, clock
        self.engine, self.version = inner.engine, inner.version
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.fails = False

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        self._clock.now += 1.0
        if self.fails:
            raise EngineError("the delegate gave up")
        return self._inner.run(inputs)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def champion(tmp_path: Path) -> Iterator[Model]:
    with load(make_bundle(tmp_path)) as model:
        yield model


@pytest.fixture
def challenger(tmp_path: Path) -> Model:
    return load(make_bundle(tmp_path, version="1.1.0", bias=BIAS))


@contextmanager
def shadowing(model: Model, *, cpu_share: float = 1.0, clock: Clock | None = None, share: float = 1.0) -> Iterator[Shadow]:
    shadow = Shadow(model, share=share, cpu_share=cpu_share, clock=clock or Clock(), chance=lambda: 0.5)
    yield shadow
    shadow.retire()


def feed(shadow: Shadow, champion: Model, x: Array) -> Result:
    result = shadow.run({"x": x}, None, lambda identifier: champion.run({"x": x}, request_id=identifier))
    shadow.drain()
    return result


def test_the_old_answer_is_served_and_agreement_is_counted(champion: Model, challenger: Model) -> None:
    with shadowing(challenger) as shadow:
        results = [feed(shadow, champion, x) for x in X]
        counts = shadow.take()
    np.testing.assert_allclose([result.outputs["logits"] for result in results], logits(X), atol=1e-5)
    assert {result.version for result in results} == {"1.0.0"}
    agreeing = int((logits(X).argmax(axis=1) == logits(X, BIAS).argmax(axis=1)).sum())
    assert 0 < agreeing < len(X)
    assert counts is not None
    assert (counts.version, counts.runs, counts.agreed, counts.errors, counts.skipped) == ("1.1.0", len(X), agreeing, 0, 0)
    assert counts.served_s > 0
    assert counts.shadow_s > 0


def test_counts_are_given_once(champion: Model, challenger: Model) -> None:
    with shadowing(challenger) as shadow:
        feed(shadow, champion, X[0])
        assert shadow.take() is not None
        assert shadow.take() is None


@pytest.mark.parametrize(("share", "runs"), [(0.6, 1), (0.4, 0)], ids=["drawn", "not-drawn"])
def test_only_a_share_of_the_calls_is_taken(champion: Model, challenger: Model, share: float, runs: int) -> None:
    """The draw is 0.5."""
    with shadowing(challenger, share=share) as shadow:
        feed(shadow, champion, X[0])
        counts = shadow.take()
    assert (0 if counts is None else counts.runs) == runs


def test_a_share_of_a_core_is_not_exceeded(champion: Model, challenger: Model) -> None:
    """A run of one second at a quarter of a core: the next sample is taken four seconds after its start, and not before."""
    clock = Clock()
    challenger.session.backend = TakesTime(challenger.session.backend, clock)
    with shadowing(challenger, cpu_share=0.25, clock=clock) as shadow:
        runs = []
        for _ in range(6):
            feed(shadow, champion, X[0])
            counts = shadow.take()
            assert counts is not None
            runs.append(counts.runs)
            clock.now += 0.99
    # seconds after the first start: 0 (until 1), 1.99, 2.98, 3.97, 4.96 (until 5.96), 6.95
    assert runs == [1, 0, 0, 0, 1, 0]


def test_a_long_silence_does_not_buy_a_burst(champion: Model, challenger: Model) -> None:
    clock = Clock()
    challenger.session.backend = TakesTime(challenger.session.backend, clock)
    with shadowing(challenger, cpu_share=0.25, clock=clock) as shadow:
        clock.now += 1e6
        for _ in range(3):
            feed(shadow, champion, X[0])
        counts = shadow.take()
    assert counts is not None
    assert (counts.runs, counts.skipped) == (1, 2)


def test_a_new_version_that_fails_is_counted_and_harms_nobody(champion: Model, challenger: Model) -> None:
    backend = TakesTime(challenger.session.backend, Clock())
    backend.fails = True
    challenger.session.backend = backend
    with shadowing(challenger) as shadow:
        assert feed(shadow, champion, X[0]).version == "1.0.0"
        counts = shadow.take()
    assert counts is not None
    assert (counts.runs, counts.errors) == (0, 1)


def test_calls_do_not_wait_for_a_slow_new_version(champion: Model, tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path, version="1.1.0")) as bundle:
        slow = load_as(bundle, Setup(), engines=slow_engine)
    assert isinstance(slow.session.backend, SlowBackend)
    slow.session.backend.hold()
    with shadowing(slow) as shadow:
        for x in X:
            shadow.run({"x": x}, None, lambda _, x=x: champion.run({"x": x}))  # type: ignore[misc]
        slow.session.backend.may_go_on.set()
        shadow.drain()
        counts = shadow.take()
    assert counts is not None
    assert (counts.runs, counts.skipped) == (QUEUE, len(X) - QUEUE)


def test_the_application_may_use_its_array_again(champion: Model, tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path, version="1.1.0")) as bundle:
        slow = load_as(bundle, Setup(), engines=slow_engine)
    assert isinstance(slow.session.backend, SlowBackend)
    with shadowing(slow) as shadow:
        slow.session.backend.hold()
        x = np.array([2, 0, 0, 0], np.float32)  # class 0; negated, class 1
        shadow.run({"x": x}, None, lambda _: champion.run({"x": x}))
        shadow.run({"x": x}, None, lambda _: champion.run({"x": x}))
        x *= -1
        slow.session.backend.may_go_on.set()
        shadow.drain()
        counts = shadow.take()
    assert counts is not None
    assert counts.agreed == 2


def test_numbers_agree_within_a_twentieth_of_the_largest(tmp_path: Path) -> None:
    with load(make_bundle(tmp_path, task="regress")) as model:
        served = {"logits": np.array([10.0, 0.0], np.float32)}
        assert agree(model.manifest, served, {"logits": np.array([10.4, -0.4], np.float32)})
        assert not agree(model.manifest, served, {"logits": np.array([10.0, 0.6], np.float32)})
        assert not agree(model.manifest, served, {"logits": np.array([10.0, np.nan], np.float32)})


def test_a_single_probability_agrees_on_its_side_of_a_half(tmp_path: Path) -> None:
    with load(make_bundle(tmp_path)) as model:
        manifest = msgspec.structs.replace(model.manifest, post=PostProcessing("logits"))
    served = {"logits": np.array([[0.9]], np.float32)}
    assert agree(manifest, served, {"logits": np.array([[0.6]], np.float32)})
    assert not agree(manifest, served, {"logits": np.array([[0.4]], np.float32)})


def host_beside(tmp_path: Path, challenger: Path) -> Host:
    """A host that serves 1.0.0 with a challenger configured."""
    table = ModelTable(challenger=ChallengerTable(str(challenger), share=1.0, cpu_share=1.0), measure=False)
    host = Host(AgentConfig(DeviceTable("d", str(tmp_path)), models={"toy": table}))
    path = make_bundle(tmp_path)
    host.switch("toy", host.check("toy", path), path)
    return host


def windows(host: Host) -> dict[str, Telemetry]:
    sent = host.windows("d", 1, lambda: 1)
    return {window.version: decode(Telemetry, encode(window)) for window in sent}


def test_the_fleet_sees_how_the_shadow_compares(tmp_path: Path) -> None:
    host = host_beside(tmp_path, make_bundle(tmp_path, version="1.1.0"))
    result = host.run("toy", {"x": X[0]})
    shadow = host._beside["toy"]
    assert isinstance(shadow, Shadow)
    shadow.drain()
    counts = windows(host)["1.0.0"].shadow
    host.close()
    assert result.version == "1.0.0"
    assert counts is not None
    assert (counts.version, counts.runs, counts.agreed) == ("1.1.0", 1, 1)


@pytest.mark.parametrize("kind", ["broken", "itself", "other-inputs"])
def test_a_challenger_that_cannot_run_is_noted_and_the_model_answers(tmp_path: Path, kind: str) -> None:
    challenger = {
        "broken": lambda: make_bundle(tmp_path, version="1.1.0", golden_error=0.1),
        "itself": lambda: make_bundle(tmp_path),
        "other-inputs": lambda: make_bundle(tmp_path, version="1.1.0", input_name="y"),
    }[kind]()
    host = host_beside(tmp_path, challenger)
    assert host.run("toy", {"x": X[0]}).version == "1.0.0"
    assert "challenger" in host.notes["toy"]
    assert windows(host)["1.0.0"].shadow is None
    host.close()


def test_a_challenger_is_configured_beside_its_model(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(
        '[device]\nid = "d"\ndata = "data"\n[models.toy]\nbundle = "a.edgeml"\nisolated = true\ncpus = [0]\n'
        '[models.toy.challenger]\nbundle = "b.edgeml"\nmode = "ab"\nshare = 0.2\nsalt = "spring"\n'
    )
    table = load_config(tmp_path / "agent.toml").models["toy"]
    assert table.challenger == ChallengerTable("b.edgeml", mode="ab", share=0.2, salt="spring")
    assert (table.isolated, table.cpus) == (True, (0,))
