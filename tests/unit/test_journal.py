"""The log of answers: one JSON object a line, sampled by request id, bounded in rate and size, and never in the way."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from edgeml.runtime.journal import STDERR, Journal
from edgeml.runtime.model import Result, new_request_id

NOON = 1_790_000_000.125  # 2026-09-21T14:13:20.125Z


def answer(request_id: str = "id-1", fallback: str | None = None) -> Result:
    return Result({}, "yes", 1, 0.9, "device", 0.0031, "kws", "1.2.0", request_id, fallback)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_tells_when_who_what_and_how_long(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log", share=1.0, now=lambda: NOON)
    journal.answered(answer())
    assert lines(tmp_path / "log") == [
        {
            "at": "2026-09-21T14:13:20.125Z",
            "request_id": "id-1",
            "model": "kws",
            "version": "1.2.0",
            "latency_ms": 3.1,
            "source": "device",
        }
    ]


def test_a_failed_call_is_logged_whatever_the_share(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log", share=0.0)
    journal.answered(answer())
    journal.failed("kws", "1.2.0", request_id="id-2", latency_s=0.5, code="engine", detail="it broke")
    (line,) = lines(tmp_path / "log")
    assert (line["request_id"], line["error"], line["detail"], "source" in line) == ("id-2", "engine", "it broke", False)


def test_a_share_of_the_answers_is_logged_and_two_journals_agree_which(tmp_path: Path) -> None:
    ids = [new_request_id() for _ in range(4000)]
    for name in ("device", "cloud"):
        journal = Journal(tmp_path / name, share=0.1, lines_per_s=1e9)
        for request_id in ids:
            journal.answered(answer(request_id))
    chosen = [line["request_id"] for line in lines(tmp_path / "device")]
    assert 300 <= len(chosen) <= 500  # 400 expected, standard deviation 19
    assert chosen == [line["request_id"] for line in lines(tmp_path / "cloud")]


def test_a_storm_of_errors_is_bounded_and_what_is_missing_is_counted(tmp_path: Path) -> None:
    seconds = 0.0
    journal = Journal(tmp_path / "log", lines_per_s=2.0, clock=lambda: seconds)
    for _ in range(1000):
        journal.failed("kws", "1.2.0", request_id=None, latency_s=0.0, code="engine", detail="it broke")
    assert len(lines(tmp_path / "log")) == 20  # a burst of ten seconds
    seconds = 1.0
    journal.failed("kws", "1.2.0", request_id=None, latency_s=0.0, code="engine", detail="it broke")
    assert lines(tmp_path / "log")[-1]["dropped"] == 980


def test_the_log_never_takes_more_than_two_files_of_its_size(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log", share=1.0, lines_per_s=1e9, size_bytes=2000)
    for number in range(200):
        journal.answered(answer(f"id-{number}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    assert lines(tmp_path / "log")[-1]["request_id"] == "id-199"


def test_a_log_that_cannot_be_written_stops_nothing_and_is_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "missing" / "log", share=1.0)
    journal.answered(answer())
    (tmp_path / "missing").mkdir()
    journal.answered(answer())
    assert [line["dropped"] for line in lines(tmp_path / "missing" / "log")] == [1]


def test_the_log_may_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Journal(STDERR, share=1.0).answered(answer(fallback="low_confidence"))
    assert json.loads(capsys.readouterr().err)["fallback"] == "low_confidence"


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log", share=1.0, lines_per_s=1e9)

    def work() -> None:
        for _ in range(200):
            journal.answered(answer())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(tmp_path / "log")) == 800
