"""What the spool loses, repeats and costs: a day without a broker, a thousand kills while writing, a day on the wire.

    python -m benchmarks.spool [--json] [--kills 1000]

outage   24 hours of the default telemetry (a window a minute of a model with ten classes) and 48 reports go into the real ring
         of 16 MiB on a clock that is moved; then all of it goes through the fleet's ingest into its store.
kills    a child writes reports into a spool and says each number once it is kept; SIGKILL at a random moment, again and again
         on one file. Each number said must be in the fleet's store exactly once, though the parent sends many rows twice.
wire     bytes of that day as MQTT 5 PUBLISH and PUBACK packets with their topics and TCP/IPv4 headers, one packet each, and the
         keep-alive of the default configuration.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import select

from edgeml.fleet.devices import Inventory
from edgeml.fleet.ingest import Inbound, Ingest
from edgeml.fleet.store import Store
from edgeml.fleet.store.tables import reports, telemetry
from edgeml.runtime.config import BrokerTable, TelemetryTable
from edgeml.runtime.spool import Row, Spool
from edgeml.wire.messages import Report, Telemetry, encode, pack, topic
from edgeml.wire.sketches import Histogram, LatencySketch, latency_bucket

DEVICE: Final = "gate-0001"
DAY_S: Final = 86_400
REPORTS_A_DAY: Final = 48
RUNS_A_SECOND: Final = 2.0
CLASSES: Final = 10
DIGEST: Final = hashlib.sha256(b"a manifest").hexdigest()
START: Final = 1_764_000_000.0
BATCH: Final = 100
WRITES_BEFORE_KILL: Final = 16  # at most; the moment is random
TCP_IP_BYTES: Final = 52  # IPv4 20, TCP 20 with the timestamp option's 12
PING_BYTES: Final = 2 * (2 + TCP_IP_BYTES)


@dataclass(frozen=True, slots=True)
class Outcome:
    lost: int
    duplicated: int
    kills: int
    bytes_per_device_day: int
    outage_messages: int
    outage_lost: int
    outage_file_bytes: int
    window_bytes_median: int
    kill_acknowledged: int
    kill_lost: int
    sent_twice: int
    put_us_median: float
    seconds: float


def report(seq: int, at: float = START) -> Report:
    return Report(DEVICE, 1, seq, at, 7, "kws", "confirmed", "1.2.0", "a" * 64, "kws-1.2.0-9f3a1c")


def window(seq: int, minute: int, luck: random.Random) -> Telemetry:
    """A minute of a healthy model: latencies around 4 ms, confidence near one, classes as they come."""
    runs = round(60 * RUNS_A_SECOND)
    buckets = Counter(latency_bucket(luck.lognormvariate(-5.5, 0.15)) for _ in range(runs))
    scores = [min(0.999, luck.betavariate(8, 1)) for _ in range(runs)]
    classes = Counter(luck.randrange(CLASSES) for _ in range(runs))
    return Telemetry(
        DEVICE, 1_764_000_000_000, seq, "kws", "1.2.0", DIGEST, start=START + 60.0 * minute, seconds=60.0, runs=runs,
        latency=LatencySketch(dict(buckets)), confidence=Histogram.of(scores, tuple(i / 20 for i in range(1, 20))),
        classes=tuple(classes[i] for i in range(CLASSES)), rss_bytes=61_234_567, cpu_celsius=51.25,
    )  # fmt: skip


class Fleet:
    """The service's store, in this process."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "fleet.db")
        Inventory(self.store).enrol([DEVICE], {}, START, "benchmark")
        self.ingest = Ingest(self.store, lambda: START)

    def take(self, rows: list[Row]) -> None:
        taken = self.ingest.take([Inbound(DEVICE, row.lane, row.payload) for row in rows])
        assert taken == len(rows), self.ingest.dropped

    def numbers(self) -> Counter[int]:
        with self.store.read() as connection:
            found = [*connection.scalars(select(reports.c.seq)), *connection.scalars(select(telemetry.c.seq))]
        return Counter(found)


def drain(spool: Spool, fleet: Fleet, luck: random.Random, twice_share: float = 0.0) -> int:
    """Send everything; a share of the batches twice, as when the PUBACK is lost. Gives how many rows were sent again."""
    again = 0
    while rows := spool.peek(BATCH):
        fleet.take(rows)
        if luck.random() < twice_share:
            again += len(rows)
            continue
        spool.ack(row.seq for row in rows)
    return again


def outage(folder: Path, luck: random.Random) -> tuple[int, int, int, list[int], list[float], int]:
    """(messages, lost, file bytes, sizes of windows, seconds of each put, bytes on the wire)."""
    place = folder / "outage.sqlite"
    table = TelemetryTable()
    spool, fleet = Spool(place, cap_bytes=table.spool_bytes), Fleet(folder)
    kept: set[int] = set()
    sizes, took, wire = [], [], 0
    for minute in range(round(DAY_S / table.window_s)):
        due = [("telemetry", window(spool.next_seq(), minute, luck))]
        if minute % (1440 // REPORTS_A_DAY) == 0:
            due.append(("report", report(spool.next_seq(), START + 60.0 * minute)))  # type: ignore[arg-type]
        for lane, message in due:
            payload = pack(message) if isinstance(message, Telemetry) else encode(message)
            began = time.perf_counter()
            assert spool.put(message.seq, lane, payload)  # type: ignore[arg-type]
            took.append(time.perf_counter() - began)
            kept.add(message.seq)
            wire += on_the_wire(lane, payload)
            if lane == "telemetry":
                sizes.append(len(payload))
    file_bytes = place.stat().st_size
    drain(spool, fleet, luck)
    lost = len(kept - set(fleet.numbers())) + spool.dropped
    spool.close()
    fleet.store.close()
    return len(kept), lost, file_bytes, sizes, took, wire


def on_the_wire(lane: str, payload: bytes) -> int:
    """MQTT 5, 3.3 and 3.4: header and length, topic, packet id, properties, payload; and the PUBACK that acknowledges it."""
    body = 2 + len(topic("default", DEVICE, lane)) + 2 + 1 + len(payload)  # type: ignore[arg-type]
    length_bytes = 1 if body < 128 else 2 if body < 16_384 else 3
    return 1 + length_bytes + body + TCP_IP_BYTES + 4 + TCP_IP_BYTES


def kill_while_writing(folder: Path, kills: int, luck: random.Random) -> tuple[int, int, int, int]:
    """(acknowledged, lost, more than once in the store, sent twice)."""
    place = folder / "killed.sqlite"
    (folder / "kills").mkdir()
    fleet = Fleet(folder / "kills")
    said: set[int] = set()
    again = 0
    for number in range(kills):
        said |= one_life(place, luck.randrange(1, WRITES_BEFORE_KILL))
        if number % 20 == 19 or number == kills - 1:
            spool = Spool(place)
            again += drain(spool, fleet, luck, twice_share=0.2)
            spool.close()
    found = fleet.numbers()
    fleet.store.close()
    return len(said), len(said - set(found)), sum(count > 1 for count in found.values()), again


def one_life(place: Path, lines: int) -> set[int]:
    """Numbers that a forked writer said it kept, up to its SIGKILL in the middle of whatever it did then."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        write_for_ever(place, writes)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        begun = b"".join(pipe.readline() for _ in range(lines))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        rest = pipe.read()
    return {int(line) for line in (begun + rest).split(b"\n")[:-1]}


def write_for_ever(place: Path, writes: int) -> None:
    spool = Spool(place)
    while True:
        seq = spool.next_seq()
        if spool.put(seq, "report", encode(report(seq))):
            os.write(writes, b"%d\n" % seq)


def measure(kills: int, seed: int) -> Outcome:
    luck, began = random.Random(seed), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        messages, outage_lost, file_bytes, sizes, took, wire = outage(folder, luck)
        said, kill_lost, doubled, again = kill_while_writing(folder, kills, luck)
    pings = DAY_S // BrokerTable(url="mqtt://x").keepalive_s * PING_BYTES
    return Outcome(
        lost=outage_lost + kill_lost,
        duplicated=doubled,
        kills=kills,
        bytes_per_device_day=wire + pings,
        outage_messages=messages,
        outage_lost=outage_lost,
        outage_file_bytes=file_bytes,
        window_bytes_median=int(statistics.median(sizes)),
        kill_acknowledged=said,
        kill_lost=kill_lost,
        sent_twice=again,
        put_us_median=round(statistics.median(took) * 1e6, 1),
        seconds=round(time.perf_counter() - began, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.spool")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.kills, asked.seed)
    print(f"outage  {found.outage_messages} messages in 24 h, {found.outage_lost} lost, file {found.outage_file_bytes:,} bytes")
    print(f"        a window is {found.window_bytes_median} bytes; put takes {found.put_us_median} us in the median")
    print(f"kills   {found.kills} x SIGKILL: {found.kill_acknowledged} acknowledged, {found.kill_lost} lost,")
    print(f"        {found.duplicated} more than once in the store, though {found.sent_twice} rows were sent again")
    print(f"wire    {found.bytes_per_device_day:,} bytes per device and day")
    if asked.json:
        print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
