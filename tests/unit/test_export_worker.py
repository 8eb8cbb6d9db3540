"""A worker turns crashes, hangs and leaks into sentences, and goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeml.exporter.worker import Worker
from edgeml.wire.errors import MissingExtraError, ModelError, WorkerError
from tests.unit.processes import lives, until

JOBS = """
import os, signal, subprocess, sys, time
from edgeml.wire.errors import MissingExtraError, ModelError

def add(a, b):
    print("noise on stdout")
    return a + b

def pid():
    return os.getpid()

def segfault():
    print("about to crash", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)

def leave():
    os._exit(7)

def hang():
    time.sleep(3600)

def hang_with_child(path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    open(path, "w").write(str(child.pid))
    time.sleep(3600)

def eat():
    block = bytearray(512 << 20)
    for page in range(0, len(block), 4096):
        block[page] = 1
    time.sleep(3600)

def refuse():
    raise ModelError("no such tensor", expected="'x'", got="'y'", hint="rename it")

def lacks():
    raise MissingExtraError("torch", "export")

def fail():
    raise KeyError("foreign")

def imports(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "jobs_for_test.py").write_text(JOBS)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def worker(tmp_path: Path, environment: dict[str, str]) -> Iterator[Worker]:
    with Worker("test", tmp_path, environment=environment) as worker:
        yield worker


def test_answers_though_the_job_prints(worker: Worker) -> None:
    assert worker.call("jobs_for_test:add", a=2, b=3) == 5
    assert "noise on stdout" in worker.log.read_text()


def test_one_process_serves_many_calls(worker: Worker) -> None:
    assert worker.call("jobs_for_test:pid") == worker.call("jobs_for_test:pid")


def test_a_refusal_arrives_as_what_it_was(worker: Worker) -> None:
    with pytest.raises(ModelError) as caught:
        worker.call("jobs_for_test:refuse")
    error = caught.value
    assert (error.what, error.expected, error.got, error.hint) == ("no such tensor", "'x'", "'y'", "rename it")


def test_a_missing_extra_names_what_to_install(worker: Worker) -> None:
    with pytest.raises(MissingExtraError, match=r"install edgeml-toolkit\[export\]"):
        worker.call("jobs_for_test:lacks")


def test_a_foreign_exception_names_job_and_error_and_keeps_the_process(worker: Worker) -> None:
    before = worker.call("jobs_for_test:pid")
    with pytest.raises(WorkerError, match=r"'jobs_for_test:fail'.*KeyError: 'foreign'"):
        worker.call("jobs_for_test:fail")
    assert worker.call("jobs_for_test:pid") == before


def test_a_segfault_names_the_signal_and_the_last_words_and_the_next_job_runs(worker: Worker) -> None:
    with pytest.raises(WorkerError, match=r"'jobs_for_test:segfault' killed the test worker \(SIGSEGV\).*about to crash"):
        worker.call("jobs_for_test:segfault")
    assert worker.call("jobs_for_test:add", a=1, b=1) == 2


def test_a_silent_exit_names_its_code(worker: Worker) -> None:
    with pytest.raises(WorkerError, match=r"\(exit 7\)"):
        worker.call("jobs_for_test:leave")


def test_a_hang_ends_at_the_time_limit(tmp_path: Path, environment: dict[str, str]) -> None:
    with (
        Worker("test", tmp_path, environment=environment, time_limit_s=0.5) as worker,
        pytest.raises(WorkerError, match=r"did not finish in 0\.5 s; raise --time-limit"),
    ):
        worker.call("jobs_for_test:hang")


def test_what_a_hung_job_started_dies_with_it(tmp_path: Path, environment: dict[str, str]) -> None:
    note = tmp_path / "pid"
    with Worker("test", tmp_path, environment=environment, time_limit_s=2.0) as worker, pytest.raises(WorkerError):
        worker.call("jobs_for_test:hang_with_child", path=str(note))
    until(lambda: not lives(int(note.read_text())), "the end of the child")


def test_memory_over_the_limit_ends_the_job(tmp_path: Path, environment: dict[str, str]) -> None:
    with (
        Worker("test", tmp_path, environment=environment, memory_limit_bytes=200 << 20) as worker,
        pytest.raises(WorkerError, match=r"too much memory: expected at most 200 MiB"),
    ):
        worker.call("jobs_for_test:eat")


def test_blocked_packages_look_absent(tmp_path: Path, environment: dict[str, str]) -> None:
    with Worker("test", tmp_path, environment=environment, blocked=("json.tool",)) as worker:
        assert worker.call("jobs_for_test:imports", name="json.tool") is False
        assert worker.call("jobs_for_test:imports", name="json.decoder") is True
