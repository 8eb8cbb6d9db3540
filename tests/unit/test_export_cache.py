"""The cache gives back what a job gave, or nothing: never something damaged, never more than its limit."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeml.exporter.cache import ABANDONED_S, PART, Cache, Kept, default_cache, make_key
from edgeml.exporter.worker import Worker
from edgeml.wire.errors import ModelError

JOBS = """
from pathlib import Path
from edgeml.wire.errors import ModelError

def convert(text, out):
    with open("calls", "a") as file:
        file.write("x")
    if text == "bad":
        raise ModelError("no such model")
    Path(out).write_text(text.upper())
    return ["a note"]
"""
KEPT = Kept(["note"], b"model" * 100)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    (tmp_path / "jobs_for_cache.py").write_text(JOBS)
    monkeypatch.chdir(tmp_path)
    with Worker("test", tmp_path / "work", environment={"PYTHONPATH": str(tmp_path)}) as worker:
        yield worker


def convert(cache: Cache, worker: Worker, text: str, out: Path) -> tuple[object, bool]:
    return cache.call(worker, "jobs_for_cache:convert", {"text": text}, out=out, text=text)


def test_the_second_call_is_answered_without_the_job(tmp_path: Path, worker: Worker) -> None:
    cache = Cache(tmp_path / "cache")
    assert convert(cache, worker, "model", tmp_path / "one") == (["a note"], False)
    assert convert(cache, worker, "model", tmp_path / "two") == (["a note"], True)
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes() == b"MODEL"
    assert convert(cache, worker, "other", tmp_path / "two") == (["a note"], False)
    assert Path("calls").read_text() == "xx"


def test_a_refusal_is_not_kept_and_without_a_folder_nothing_is(tmp_path: Path, worker: Worker) -> None:
    for _ in range(2):
        with pytest.raises(ModelError):
            convert(Cache(tmp_path / "cache"), worker, "bad", tmp_path / "out")
        assert convert(Cache(None), worker, "model", tmp_path / "out") == (["a note"], False)
    assert Path("calls").read_text() == "xxxx"
    assert not (tmp_path / "cache").exists()


def test_every_damaged_byte_is_noticed_and_the_entry_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("key", KEPT)
    whole = (tmp_path / "key").read_bytes()
    for damaged in (
        whole[:-1],
        b"",
        b"garbage",
        *(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(200)),
    ):
        (tmp_path / "key").write_bytes(damaged)
        assert cache.get("key") is None
        assert not (tmp_path / "key").exists()
    cache.put("key", KEPT)
    assert cache.get("key") == KEPT


def test_what_was_used_least_recently_goes_when_it_grows(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=3500)
    for number in range(3):
        cache.put(f"key{number}", Kept(None, bytes(1000)))
        os.utime(tmp_path / f"key{number}", (number, number))
    assert cache.get("key0") is not None  # now the most recently used
    cache.put("key3", Kept(None, bytes(1000)))
    assert [cache.get(f"key{number}") is not None for number in range(4)] == [True, False, False, True]


def test_half_written_files_of_dead_writers_are_cleared(tmp_path: Path) -> None:
    for name, age in (("dead", ABANDONED_S + 60), ("living", 1.0)):
        (tmp_path / f"{name}{PART}").write_bytes(b"half")
        os.utime(tmp_path / f"{name}{PART}", (time.time() - age,) * 2)
    Cache(tmp_path).put("key", KEPT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", f"living{PART}"]


def test_readers_beside_writers_see_whole_entries_or_none(tmp_path: Path) -> None:
    seen: list[Kept | None] = []

    def write() -> None:
        for _ in range(100):
            Cache(tmp_path, limit_bytes=2000).put("key", KEPT)
            Cache(tmp_path, limit_bytes=2000).put("other", Kept(None, bytes(1900)))

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        seen.append(Cache(tmp_path).get("key"))
    assert {None if kept is None else kept.file for kept in seen} <= {None, KEPT.file}
    assert not list(tmp_path.glob(f"*{PART}"))


def test_a_place_that_cannot_be_written_makes_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file" / "cache")
    cache.put("key", KEPT)
    assert cache.get("key") is None


def test_a_key_changes_with_the_job_and_with_all_it_depends_on() -> None:
    keys = [
        make_key(job, {"source": source, "seed": seed})
        for job in ("onnx", "tflite")
        for source in ("a", "b")
        for seed in (0, 1)
    ]
    assert len(set(keys)) == 8
    assert make_key("onnx", {"seed": 0, "source": "a"}) == keys[0]


def test_the_environment_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path))
    assert default_cache().folder == tmp_path / "conversions"
