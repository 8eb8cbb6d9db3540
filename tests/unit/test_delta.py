"""Deltas: what they save, what a device makes of them, and what a hostile one cannot do."""

from __future__ import annotations

import lzma
import tracemalloc
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edgeml.fleet.deltas import make_delta, read_contents, worthwhile
from edgeml.runtime.delta import apply_delta
from edgeml.wire.delta import MAGIC, Header
from edgeml.wire.errors import UpdateError
from tests.unit.fleet_bundles import make_bundle

RNG = np.random.default_rng(3)
WEIGHTS = RNG.normal(0, 1, 60_000).astype(np.float32)
NUDGED = WEIGHTS + RNG.normal(0, 0.01, WEIGHTS.shape).astype(np.float32)


def int8(weights: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    return np.clip(np.round(weights * 32), -128, 127).astype(np.int8).tobytes()


class Pair:
    """Two versions as packed files, and the delta between them."""

    def __init__(self, folder: Path, old: bytes, new: bytes) -> None:
        self.base = make_bundle(folder / "old", version="1.0.0", model=old)
        self.new = make_bundle(folder / "new", version="1.1.0", model=new)
        self.delta = make_delta(read_contents(self.base), read_contents(self.new))
        self.file = folder / "delta"
        self.result = folder / "result"

    def apply(self, delta: bytes | None = None) -> bytes:
        self.file.write_bytes(self.delta if delta is None else delta)
        manifest = read_contents(self.new).manifest.digest
        apply_delta(
            self.file, self.base, self.result, manifest_sha256=manifest, result_bytes=self.new.stat().st_size
        )  # fmt: skip
        return self.result.read_bytes()

    def refused(self, delta: bytes) -> str:
        with pytest.raises(UpdateError) as caught:
            self.apply(delta)
        assert caught.value.code == "delta"
        assert not self.result.exists()
        return str(caught.value)

    def parts(self) -> tuple[Header, bytes]:
        size = int.from_bytes(self.delta[8:12], "little")
        return msgspec.json.decode(zlib.decompress(self.delta[12 : 12 + size]), type=Header), self.delta[12 + size :]


def joined(header: Header, streams: bytes) -> bytes:
    packed = zlib.compress(msgspec.json.encode(header))
    return MAGIC + len(packed).to_bytes(4, "little") + packed + streams


@pytest.mark.parametrize(
    ("old", "new", "most_share"),
    [
        pytest.param(int8(WEIGHTS), int8(NUDGED), 0.25, id="int8, 1 % of sigma"),
        pytest.param(b"odd" + WEIGHTS.tobytes(), b"odd" + NUDGED.tobytes(), 0.75, id="fp32 at an odd address"),
        pytest.param(b"one" + int8(WEIGHTS), b"three" + int8(NUDGED) + b"!", 0.3, id="another length"),
        pytest.param(int8(WEIGHTS), int8(WEIGHTS), 0.02, id="the same model"),
    ],
)
def test_a_fine_tuned_model_comes_as_a_small_delta(tmp_path: Path, old: bytes, new: bytes, most_share: float) -> None:
    pair = Pair(tmp_path, old, new)
    assert pair.apply() == pair.new.read_bytes()
    assert len(pair.delta) < most_share * pair.new.stat().st_size


def test_a_model_trained_anew_is_not_worth_a_delta(tmp_path: Path) -> None:
    pair = Pair(tmp_path, int8(WEIGHTS), int8(RNG.normal(0, 1, WEIGHTS.shape).astype(np.float32)))
    assert not worthwhile(len(pair.delta), pair.new.stat().st_size)
    assert pair.apply() == pair.new.read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=40))
def test_whatever_changed_the_result_is_the_new_file(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes, inserted: bytes
) -> None:
    pair = Pair(tmp_path_factory.mktemp("pair"), old + b"x", old[:100] + inserted + old[100:] + new)
    assert pair.apply() == pair.new.read_bytes()


def test_equal_inputs_give_equal_deltas(tmp_path: Path) -> None:
    first, second = (Pair(tmp_path / name, b"a" * 5000, b"a" * 4000 + b"b" * 900) for name in ("1", "2"))
    assert first.delta == second.delta


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, int8(WEIGHTS), int8(NUDGED))


def test_a_delta_cut_anywhere_leaves_no_file(pair: Pair) -> None:
    for end in (*range(0, 200, 7), len(pair.delta) // 2, len(pair.delta) - 20):
        pair.refused(pair.delta[:end])


def test_a_delta_for_another_base_is_refused(pair: Pair, tmp_path: Path) -> None:
    other = Pair(tmp_path / "other", b"something else", int8(NUDGED))
    assert "starts from" in pair.refused(other.delta)


def test_a_delta_to_another_version_is_refused(pair: Pair, tmp_path: Path) -> None:
    other = Pair(tmp_path / "other", int8(WEIGHTS), b"something else")
    assert "another manifest" in pair.refused(other.delta)


def test_a_delta_that_unpacks_without_end_costs_no_memory_and_no_disk(pair: Pair) -> None:
    """One that hides 50 MB behind a promise of 60 kB."""
    header, streams = pair.parts()
    bomb = lzma.compress(bytes(50_000_000), preset=1)
    model = replace(header.blobs[0], packed_bytes=len(bomb))
    hostile = joined(replace(header, blobs=(model,)), streams[: header.manifest.packed_bytes] + bomb)
    tracemalloc.start()
    assert "more than its header says" in pair.refused(hostile)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_a_header_that_unpacks_without_end_is_cut(pair: Pair) -> None:
    packed = zlib.compress(b"[" * 50_000_000, 1)
    tracemalloc.start()
    assert "header" in pair.refused(MAGIC + len(packed).to_bytes(4, "little") + packed)
    assert tracemalloc.get_traced_memory()[1] < 32_000_000
    tracemalloc.stop()


def test_a_stream_that_wants_much_memory_is_refused(pair: Pair) -> None:
    header, streams = pair.parts()
    size = header.blobs[0].bytes
    greedy = lzma.compress(bytes(size), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}])
    model = replace(header.blobs[0], packed_bytes=len(greedy))
    pair.refused(joined(replace(header, blobs=(model,)), streams[: header.manifest.packed_bytes] + greedy))


@pytest.mark.parametrize(
    "change", [{"base_offset": 1 << 40}, {"bytes": 1}, {"width": 4, "bytes": 59_999}], ids=["outside", "short", "half a word"]
)
def test_pieces_that_cannot_be_are_refused(pair: Pair, change: dict[str, int]) -> None:
    header, streams = pair.parts()
    model = header.blobs[0]
    pieces = (replace(model.pieces[0], **change), *model.pieces[1:])
    pair.refused(joined(replace(header, blobs=(replace(model, pieces=pieces),)), streams))


def test_a_delta_that_leaves_a_blob_out_is_refused(pair: Pair) -> None:
    header, streams = pair.parts()
    assert "lacks" in pair.refused(joined(replace(header, blobs=()), streams))


def test_random_damage_is_refused_or_shows_in_the_hash(tmp_path: Path) -> None:
    pair = Pair(tmp_path, b"base" * 300, b"base" * 200 + b"news" * 100)
    whole, codes = pair.new.read_bytes(), set()
    for place in RNG.integers(0, len(pair.delta), 60):
        damaged = bytearray(pair.delta)
        damaged[place] ^= int(RNG.integers(1, 256))
        try:
            assert len(pair.apply(bytes(damaged))) == len(whole)  # the installer hashes it
        except UpdateError as error:
            codes.add(error.code)
    assert codes == {"delta"}
