"""The ring of messages: order, acknowledgement, cap, restarts and damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeml.runtime.spool import RESTART_GAP, Lane, Spool


def fill(spool: Spool, lane: Lane, payloads: list[bytes]) -> list[int]:
    seqs = []
    for payload in payloads:
        seqs.append(spool.next_seq())
        assert spool.put(seqs[-1], lane, payload)
    return seqs


def test_reports_go_before_telemetry_and_each_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    fill(spool, "telemetry", [b"t1", b"t2"])
    fill(spool, "report", [b"r1", b"r2"])
    assert [row.payload for row in spool.peek(10)] == [b"r1", b"r2", b"t1", b"t2"]


def test_what_is_under_way_is_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    seqs = fill(spool, "telemetry", [b"1", b"2", b"3", b"4"])
    assert [row.payload for row in spool.peek(2, without={seqs[0], seqs[2]})] == [b"2", b"4"]


def test_an_acknowledged_message_is_gone_and_a_second_acknowledgement_harmless(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    first, second = fill(spool, "report", [b"1", b"2"])
    spool.ack([first])
    spool.ack([first])
    assert [row.seq for row in spool.peek(10)] == [second]


def test_a_fresh_spool_counts_from_the_time_in_microseconds(tmp_path: Path) -> None:
    before = time.time_ns() // 1000
    assert before <= Spool(tmp_path / "s").next_seq() <= time.time_ns() // 1000 + 1


def test_numbers_grow_over_restarts_even_when_the_clock_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "s")
    (last,) = fill(spool, "report", [b"1"])
    spool.close()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert Spool(tmp_path / "s").next_seq() > last + RESTART_GAP - 1


def test_session_numbers_grow_even_when_the_clock_falls_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    first = spool.next_session(1_700_000_000.0)
    assert first == 1_700_000_000_000
    assert spool.next_session(0.0) == first + 1


def test_a_full_ring_drops_the_oldest_telemetry_and_no_report(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", cap_bytes=512 * 1024)
    reports = fill(spool, "report", [b"r" * 100] * 20)
    telemetry = fill(spool, "telemetry", [os.urandom(1000) for _ in range(2000)])
    kept = [row.seq for row in spool.peek(10_000)]
    assert kept[:20] == reports
    assert kept[20:] == telemetry[-(len(kept) - 20) :]
    assert spool.dropped == 2000 - (len(kept) - 20)
    assert (tmp_path / "s").stat().st_size <= 512 * 1024


def test_with_reports_alone_the_oldest_reports_go(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", cap_bytes=256 * 1024)
    reports = fill(spool, "report", [os.urandom(1000) for _ in range(600)])
    kept = [row.seq for row in spool.peek(10_000)]
    assert kept == reports[-len(kept) :]
    assert 100 < len(kept) < 600


@pytest.mark.parametrize("damage", [b"not a database" * 100, b""], ids=["garbage", "empty"])
def test_a_damaged_file_is_set_aside_and_a_fresh_ring_begun(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "s").write_bytes(damage)
    spool = Spool(tmp_path / "s")
    fill(spool, "report", [b"1"])
    assert len(spool) == 1
    assert spool.was_damaged == bool(damage)
    assert (tmp_path / "s.damaged").exists() == bool(damage)


def test_a_ring_damaged_in_the_middle_does_not_stop_the_device(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    fill(spool, "telemetry", [bytes(1000)] * 200)
    spool.close()
    data = bytearray((tmp_path / "s").read_bytes())
    data[4096 : 4096 * 8] = os.urandom(4096 * 7)
    (tmp_path / "s").write_bytes(data)
    spool = Spool(tmp_path / "s")
    assert spool.was_damaged
    fill(spool, "report", [b"1"])


WRITER = """
import sys
from pathlib import Path
from edgeml.runtime.spool import Spool
spool = Spool(Path(sys.argv[1]))
while True:
    seq = spool.next_seq()
    spool.put(seq, "telemetry", b"x" * 300)
    print(seq, flush=True)
"""


def test_kill_nine_loses_no_message_that_was_kept(tmp_path: Path) -> None:
    said: list[int] = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said += [int(process.stdout.readline()) for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        said += [int(line) for line in rest.splitlines() if line]
    spool = Spool(tmp_path / "s")
    kept = [row.seq for row in spool.peek(1_000_000)]
    assert said == sorted(set(said))
    assert set(said) <= set(kept)
