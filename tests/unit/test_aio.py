"""Calls with a deadline, calls from asyncio, calls that share a run of the engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime import load
from edgeml.runtime.agent import Handle
from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.config import AgentConfig, DeviceTable, ModelTable
from edgeml.runtime.host import Host
from edgeml.runtime.install import code_of
from edgeml.runtime.model import Model, Result, load_as
from edgeml.runtime.setup import Setup
from edgeml.wire.errors import DeadlineError, InputError
from tests.unit.bundles import logits, make_bundle, samples
from tests.unit.slow_engine import END_S, SlowBackend, slow_engine

SHORT_S = 0.02
X = samples(64)


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


def slow_model(path: Path, setup: Setup) -> tuple[Model, SlowBackend]:
    with open_bundle(path) as bundle:
        model = load_as(bundle, setup, engines=slow_engine)
    assert isinstance(model.session.backend, SlowBackend)
    return model, model.session.backend


@pytest.fixture
def held(bundle_path: Path) -> Iterator[tuple[Model, SlowBackend]]:
    """A model whose engine does not answer until it may."""
    model, engine = slow_model(bundle_path, Setup())
    engine.hold()
    yield model, engine
    engine.may_go_on.set()
    model.close()


def in_thread(call: Callable[[], Result]) -> tuple[threading.Thread, list[Result]]:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


def test_a_call_gets_its_error_at_the_deadline_though_the_engine_is_still_at_it(held: tuple[Model, SlowBackend]) -> None:
    model, engine = held
    with pytest.raises(DeadlineError, match="did not answer in time") as caught:
        model.run({"x": X[0]}, deadline_s=SHORT_S)
    assert code_of(caught.value) == "deadline"
    with pytest.raises(DeadlineError, match="other calls kept the engine busy"):
        model.run({"x": X[1]}, deadline_s=SHORT_S)
    engine.may_go_on.set()
    np.testing.assert_allclose(model.run({"x": X[2]}, deadline_s=END_S).outputs["logits"], logits(X[2]), atol=1e-5)
    np.testing.assert_allclose(model.run({"x": X[3]}).outputs["logits"], logits(X[3]), atol=1e-5)


def test_a_model_s_own_deadline_holds_for_calls_that_give_none(bundle_path: Path) -> None:
    model, engine = slow_model(bundle_path, Setup(deadline_s=SHORT_S))
    engine.hold()
    with pytest.raises(DeadlineError):
        model.run({"x": X[0]})
    engine.may_go_on.set()
    model.close()


def test_a_wrong_input_is_told_before_any_waiting(held: tuple[Model, SlowBackend]) -> None:
    with pytest.raises(InputError):
        held[0].run({"x": X[0].astype(np.float64)}, deadline_s=SHORT_S)
    assert held[1].sizes == []


def test_the_event_loop_goes_on_while_the_engine_works(held: tuple[Model, SlowBackend]) -> None:
    model, engine = held

    async def application() -> Result:
        answer = asyncio.ensure_future(model.run_async({"x": X[0]}, request_id="r1"))
        while not engine.is_in_call.is_set():  # noqa: ASYNC110 - it is set by another thread
            await asyncio.sleep(0)
        engine.may_go_on.set()  # only a loop that goes on gets here
        return await answer

    result = asyncio.run(application())
    np.testing.assert_allclose(result.outputs["logits"], logits(X[0]), atol=1e-5)
    assert result.request_id == "r1"


def test_errors_reach_the_coroutine(bundle_path: Path) -> None:
    with load(bundle_path) as model, pytest.raises(InputError):
        asyncio.run(model.run_async({"y": X[0]}))


def test_an_agent_s_model_can_be_awaited(bundle_path: Path, tmp_path: Path) -> None:
    host = Host(AgentConfig(DeviceTable("d", str(tmp_path)), models={"toy": ModelTable()}))
    host.switch("toy", host.check("toy", bundle_path), bundle_path)

    async def application() -> list[Result]:
        handle = Handle("toy", host)
        return await asyncio.gather(*(handle.run_async({"x": x}) for x in X))

    results = asyncio.run(application())
    np.testing.assert_allclose([r.outputs["logits"] for r in results], logits(X), atol=1e-5)
    host.close()


def test_calls_that_meet_a_busy_engine_share_its_next_run(bundle_path: Path) -> None:
    """One call is in the engine; the five that come meanwhile are run as one, and each gets its own answer."""
    model, engine = slow_model(bundle_path, Setup(max_batch=8))
    engine.hold()
    calls = [in_thread(lambda: model.run({"x": X[0]}))]
    assert engine.is_in_call.wait(END_S)
    calls += [in_thread(lambda i=i: model.run({"x": X[i]})) for i in range(1, 6)]  # type: ignore[misc]
    wait_until(lambda: waiting(model) == 5)
    engine.may_go_on.set()
    for thread, _ in calls:
        thread.join()
    assert engine.sizes == [1, 5]
    for index, (_, results) in enumerate(calls):
        assert results[0].outputs["logits"].shape == (3,)
        np.testing.assert_allclose(results[0].outputs["logits"], logits(X[index]), atol=1e-5)
    model.close()


def test_a_batch_holds_no_more_than_it_may(bundle_path: Path) -> None:
    model, engine = slow_model(bundle_path, Setup(max_batch=4, max_wait_s=END_S))
    engine.hold()
    engine.may_go_on.set()
    calls = [in_thread(lambda i=i: model.run({"x": X[i : i + 2]})) for i in range(0, 8, 2)]  # type: ignore[misc]
    for thread, _ in calls:
        thread.join()
    assert engine.sizes == [4, 4]
    for index, (_, results) in enumerate(calls):
        np.testing.assert_allclose(results[0].outputs["logits"], logits(X[2 * index : 2 * index + 2]), atol=1e-5)
    model.close()


def test_a_file_with_a_fixed_batch_says_that_calls_are_not_batched(tmp_path: Path) -> None:
    with load(make_bundle(tmp_path, fixed_batch=True), max_batch=8) as model:
        assert "calls are not batched because the model file has a fixed batch" in model.reason
        np.testing.assert_allclose(model.run({"x": X[0]}).outputs["logits"], logits(X[0]), atol=1e-5)


def waiting(model: Model) -> int:
    """Samples in the batch that is open, as the batcher counts them."""
    batcher = model._answer.__self__  # type: ignore[attr-defined]
    return sum(batch.count for batch in batcher._open.values())


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + END_S
    while not holds():
        assert time.monotonic() < until
        threading.Event().wait(0.001)


def test_a_batch_and_a_single_sample_may_share_a_run(bundle_path: Path) -> None:
    outputs: list[Array] = []
    with load(bundle_path, max_batch=16, max_wait_s=0.01) as model:
        calls = [in_thread(lambda: model.run({"x": X[:3]})), in_thread(lambda: model.run({"x": X[3]}))]
        for thread, results in calls:
            thread.join()
            outputs.append(results[0].outputs["logits"])
    np.testing.assert_allclose(outputs[0], logits(X[:3]), atol=1e-5)
    np.testing.assert_allclose(outputs[1], logits(X[3]), atol=1e-5)
