"""What a device downloads when versions share artifacts: `python -m benchmarks.reuse [--json]`.

1.0.0 and 1.1.0 of real model files (MLPerf Tiny's, where they are found): the fp32 artifact is the same, the int8 one was
quantized anew, which is stood in for by +1 on 10 % of its bytes. A device's own installer gets 1.1.0 over HTTP from a service
with signed metadata, once without a delta (as when its version is older than the four that deltas are made from), once with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import urllib3

from edgeml.fleet.deltas import make_delta, read_contents
from edgeml.runtime import reuse
from tests.conftest import ROOT
from tests.system.standin import Service
from tests.unit.boards import Board


@dataclass(frozen=True, slots=True)
class Row:
    """Bytes over the network, of the bundle's alone."""

    model: str
    whole: int
    blobs: int
    delta: int


def pairs() -> Iterator[tuple[str, bytes, bytes]]:
    """(name, fp32 file, int8 file)."""
    places = [ROOT.parent / "shared" / "models" / "mlperf-tiny", Path.home() / ".cache/edgeml/models/mlperf-tiny"]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        noise = np.random.default_rng(1)
        yield "noise", noise.bytes(1_000_000), noise.bytes(250_000)
        return
    for name in ("ic_resnet8", "kws_dscnn"):
        fp32, int8 = ((folder / f"{name}_ref_{kind}.tflite").read_bytes() for kind in ("fp32", "int8"))
        yield name, fp32, int8
    for name in ("vww_mobilenetv1", "ad_autoencoder"):
        yield name, (folder / f"{name}.h5").read_bytes(), (folder / f"{name}_ref_int8.tflite").read_bytes()


def moved(int8: bytes, fp32: bytes, *, with_delta: bool) -> tuple[int, int]:
    """(bytes over the network, bytes of the bundle)."""
    old = np.frombuffer(int8, np.uint8)
    new = old + (np.random.default_rng(5).random(old.size) < 0.1).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder, Service(Path(folder)) as service, urllib3.PoolManager(retries=False) as pool:
        board = Board(Path(folder), service, pool, old=int8, new=new.tobytes(), second=fp32)
        if with_delta:
            board.sign_delta(make_delta(read_contents(board.old), read_contents(board.new)))
        event = board.fetch()
    return event.moved_bytes, event.bytes


def measure() -> list[Row]:
    rows = []
    for name, fp32, int8 in pairs():
        blobs, whole = moved(int8, fp32, with_delta=False)
        rows.append(Row(name, whole, blobs, moved(int8, fp32, with_delta=True)[0]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = measure()
    print(
        f"{'model':<18}{'whole, kB':>12}{'blobs':>10}{'delta':>10}   (bundles below {reuse.LEAST_BYTES // 1024} KiB come whole)"
    )
    for row in rows:
        print(f"{row.model:<18}{row.whole / 1e3:>12.1f}{row.blobs / row.whole:>10.1%}{row.delta / row.whole:>10.1%}")
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
