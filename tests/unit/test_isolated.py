from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime import load
from edgeml.runtime.backends import Array, EngineOptions
from edgeml.runtime.backends.onnx import open_onnx
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.install import code_of
from edgeml.runtime.isolated import IsolatedBackend, Limits, isolate
from edgeml.runtime.session import Session, open_session
from edgeml.wire.errors import (
    ConfigError,
    DeadlineError,
    EngineDownError,
    EngineError,
    EngineHungError,
    InputError,
    ModelError,
)
from tests.unit import crashing
from tests.unit.bundles import FULL, logits, make_bundle, onnx_model, samples
from tests.unit.crashing import open_crashing

OPTIONS = EngineOptions()
PATIENT = Limits(hang_s=30.0, backoff_s=30.0)  # nothing times out by itself
END_S = 20.0


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), artifacts=FULL)


@pytest.fixture
def crashing_session(bundle_path: Path) -> Iterator[Session]:
    with isolated_session(bundle_path, Limits(hang_s=1.0)) as session:
        yield session


@pytest.fixture(scope="module")
def steady_session(bundle_path: Path) -> Iterator[Session]:
    """For tests after which the engine is as it was."""
    with isolated_session(bundle_path, PATIENT) as session:
        yield session


def isolated_session(path: Path, limits: Limits) -> Session:
    with open_bundle(path) as bundle:
        return open_session(bundle, bundle.manifest.artifacts[0], open_backend=isolate(open_crashing, limits))


def backend_of(session: Session) -> IsolatedBackend:
    assert isinstance(session.backend, IsolatedBackend)
    return session.backend


def demand(number: float) -> dict[str, Array]:
    return {"x": np.array([number, 0, 0, 0], np.float32)}


def has_ended(process: int) -> bool:
    """Whether a process that is being watched ends; it needs no parent to say so."""
    return bool(select.select([process], [], [], END_S)[0])


@pytest.mark.parametrize(("format_", "precision"), FULL)
def test_an_isolated_engine_gives_the_answers_of_one_within(bundle_path: Path, format_: str, precision: str) -> None:
    x = samples(5)
    settings: dict[str, object] = {"format": format_, "precision": precision}
    with load(bundle_path, **settings) as within, load(bundle_path, isolated=True, **settings) as apart:  # type: ignore[arg-type]
        assert apart.golden == within.golden
        for feed in (x, x[0]):
            np.testing.assert_array_equal(apart.run({"x": feed}).outputs["logits"], within.run({"x": feed}).outputs["logits"])


@pytest.mark.parametrize(
    ("number", "kind", "code", "said"),
    [
        (crashing.SEGFAULT, EngineDownError, "engine_crash", "SIGSEGV"),
        (crashing.ABORT, EngineDownError, "engine_crash", "SIGABRT"),
        (crashing.KILL, EngineDownError, "engine_crash", "SIGKILL, as when memory runs out"),
        (crashing.HANG, EngineHungError, "engine_hang", "no answer in 1 s"),
        (crashing.NONSENSE, EngineDownError, "engine_crash", "talks nonsense"),
    ],
    ids=["segfault", "abort", "killed", "hang", "nonsense"],
)
def test_what_kills_an_engine_is_an_error_and_the_next_call_is_answered(
    crashing_session: Session, number: float, kind: type[EngineError], code: str, said: str
) -> None:
    first = backend_of(crashing_session).pid
    with pytest.raises(kind, match=said) as caught:
        crashing_session.run(demand(number))
    assert code_of(caught.value) == code
    x = samples(1)[0]
    np.testing.assert_allclose(crashing_session.run({"x": x})["logits"], logits(x), atol=1e-5)
    assert backend_of(crashing_session).pid != first
    assert backend_of(crashing_session).crashes == 1


def test_an_engine_that_goes_on_crashing_is_left_alone_for_a_while_and_calls_do_not_wait_for_it(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "crash"
    monkeypatch.setenv(crashing.FLAG, str(flag))
    with isolated_session(bundle_path, PATIENT) as session:
        flag.touch()
        with pytest.raises(EngineDownError, match="SIGSEGV"):
            session.run(demand(crashing.SEGFAULT))
        with pytest.raises(EngineDownError, match=r"crashed 2 times in a row; it starts again in [23]\d\.\d s"):
            session.run(demand(0.0))  # waits for the first restart, which fails


def test_concurrent_calls_survive_the_crash_of_one(crashing_session: Session) -> None:
    x = samples(40)
    errors: list[EngineError] = []
    wrong: list[int] = []

    def call(numbers: range) -> None:
        for number in numbers:
            feed = demand(crashing.SEGFAULT) if number == 20 else {"x": x[number]}
            try:
                answer = crashing_session.run(feed)["logits"]
            except EngineError as error:
                errors.append(error)
                continue
            if not np.allclose(answer, logits(x[number]), atol=1e-5):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(range(start, 40, 4),)) for start in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [type(error) for error in errors] == [EngineDownError]
    assert wrong == []


def test_an_answer_that_comes_too_late_is_not_given_to_the_next_caller(steady_session: Session) -> None:
    x = samples(1)[0]
    pid = backend_of(steady_session).pid
    with pytest.raises(DeadlineError):
        steady_session.run(demand(crashing.SLOW), deadline_s=crashing.SLOW_S / 10)
    np.testing.assert_allclose(steady_session.run({"x": x})["logits"], logits(x), atol=1e-5)
    assert backend_of(steady_session).pid == pid  # late is not dead


def test_a_call_that_waits_for_the_restart_keeps_its_deadline(bundle_path: Path) -> None:
    with isolated_session(bundle_path, PATIENT) as session:
        with pytest.raises(EngineDownError):
            session.run(demand(crashing.SEGFAULT))
        started = time.monotonic()
        with pytest.raises(DeadlineError, match="not up again yet"):
            session.run(demand(0.0), deadline_s=0.001)
        assert time.monotonic() - started < PATIENT.start_s


def test_inputs_are_checked_before_they_leave(steady_session: Session) -> None:
    with pytest.raises(InputError, match="names of the inputs"):
        steady_session.run({"y": samples(1)[0]})
    assert backend_of(steady_session).crashes == 0


def test_more_than_fits_makes_the_shared_memory_grow(steady_session: Session) -> None:
    x = samples(100_000)  # 1.6 MB in, 1.2 MB out
    np.testing.assert_allclose(steady_session.run({"x": x})["logits"], logits(x), atol=1e-4)
    np.testing.assert_allclose(steady_session.run({"x": x[:2]})["logits"], logits(x[:2]), atol=1e-5)


def test_answers_stay_what_they_were(steady_session: Session) -> None:
    x = samples(2)
    first = steady_session.run({"x": x[0]})["logits"]
    kept = first.copy()
    steady_session.run({"x": x[1]})
    np.testing.assert_array_equal(first, kept)


def test_closing_ends_the_process(bundle_path: Path) -> None:
    session = isolated_session(bundle_path, PATIENT)
    process = os.pidfd_open(backend_of(session).pid or 0)
    session.close()
    assert has_ended(process)
    os.close(process)
    with pytest.raises(EngineError, match="the session is closed"):
        session.run(demand(0.0))


def test_a_terminal_or_supervisor_that_ends_all_leaves_the_engine_to_the_application(steady_session: Session) -> None:
    pid = backend_of(steady_session).pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    steady_session.run(demand(0.0))
    assert backend_of(steady_session).pid == pid


def test_where_memory_runs_out_the_engine_goes_first(steady_session: Session) -> None:
    score = Path(f"/proc/{backend_of(steady_session).pid}/oom_score_adj").read_text()
    assert int(score) > int(Path("/proc/self/oom_score_adj").read_text())


def test_a_file_that_is_no_model_is_refused_as_it_is_within() -> None:
    with pytest.raises(ModelError, match="not an ONNX model"):
        isolate(open_onnx)(b"garbage", OPTIONS)


def test_an_engine_without_a_name_cannot_be_isolated() -> None:
    with pytest.raises(EngineError, match="a function of an importable module"):
        isolate(lambda model, options: open_onnx(model + b"", options))


def test_an_isolated_engine_keeps_to_its_cores() -> None:
    core = min(os.sched_getaffinity(0))
    backend = isolate(open_crashing)(onnx_model(), EngineOptions(cpus=(core,)))
    assert isinstance(backend, IsolatedBackend)
    assert os.sched_getaffinity(backend.pid or 0) == {core}
    backend.close()
    with pytest.raises(ConfigError, match=r"cores: expected some of .*, got 4096"):
        isolate(open_crashing)(onnx_model(), EngineOptions(cpus=(4096,)))
