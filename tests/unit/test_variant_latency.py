from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from edgeml.runtime import load
from edgeml.runtime.affinity import pinned
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.choose import Board, Engine, candidates, rank
from edgeml.runtime.latency import latencies
from edgeml.wire.contract import label
from edgeml.wire.errors import ConfigError, EngineError
from edgeml.wire.manifest import Artifact, Manifest
from tests.unit.bundles import FULL, make_bundle

BOARD = Board("aarch64", 2**30, {"onnx": Engine("onnxruntime", "1.30.0"), "tflite": Engine("litert", "2.3.0")})


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), artifacts=FULL)


@pytest.fixture(scope="module")
def manifest(bundle_path: Path) -> Manifest:
    with open_bundle(bundle_path) as bundle:
        return bundle.manifest


class Bench:
    """Stands for the clock: what each artifact takes, and what was measured."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = seconds
        self.measured: list[str] = []

    def __call__(self, artifact: Artifact) -> float:
        self.measured.append(label(artifact))
        if label(artifact) not in self.seconds:
            raise EngineError("it does not open")
        return self.seconds[label(artifact)]


def test_the_fastest_here_is_chosen_and_nothing_is_measured_twice(manifest: Manifest, tmp_path: Path) -> None:
    bench = Bench({"onnx:int8": 3e-3, "onnx:fp32": 1e-3, "tflite:fp32": 2e-3})
    artifacts = candidates(manifest, BOARD)
    for _ in range(2):
        seconds = latencies(tmp_path / "cache" / "latency.json", manifest.digest, artifacts, BOARD, threads=1, measure=bench)
    assert label(rank(manifest, BOARD, measured_s=seconds)[0].artifact) == "onnx:fp32"
    assert sorted(bench.measured) == ["onnx:fp32", "onnx:int8", "tflite:fp32"]


def test_a_new_engine_version_or_other_threads_are_measured_again(manifest: Manifest, tmp_path: Path) -> None:
    bench = Bench({"onnx:int8": 1e-3, "onnx:fp32": 1e-3, "tflite:fp32": 1e-3})
    newer = Board(BOARD.arch, BOARD.ram_bytes, {**BOARD.engines, "onnx": Engine("onnxruntime", "1.31.0")})
    artifacts = candidates(manifest, BOARD)
    for board, threads in ((BOARD, 1), (newer, 1), (newer, 2)):
        bench.measured.clear()
        latencies(tmp_path / "latency.json", manifest.digest, artifacts, board, threads=threads, measure=bench)
        expected = 2 if (board, threads) == (newer, 1) else 3
        assert len(bench.measured) == expected


def test_one_that_cannot_be_timed_is_not_preferred(manifest: Manifest, tmp_path: Path) -> None:
    bench = Bench({"onnx:fp32": 2e-3, "tflite:fp32": 1e-3})
    artifacts = candidates(manifest, BOARD)
    seconds = latencies(tmp_path / "latency.json", manifest.digest, artifacts, BOARD, threads=1, measure=bench)
    assert [label(c.artifact) for c in rank(manifest, BOARD, measured_s=seconds)] == ["tflite:fp32", "onnx:fp32", "onnx:int8"]


def test_latencies_that_hardly_differ_leave_the_usual_order(manifest: Manifest) -> None:
    """Steps are powers of 1.1 seconds: 1.1^-69 is 1.393 ms, 1.1^-70 is 1.266 ms, 1.1^-71 is 1.151 ms."""
    within = {"onnx:int8": 1.38e-3, "onnx:fp32": 1.28e-3, "tflite:fp32": 9e-3}
    beyond = {"onnx:int8": 1.38e-3, "onnx:fp32": 1.20e-3, "tflite:fp32": 9e-3}
    assert label(rank(manifest, BOARD, measured_s=within)[0].artifact) == "onnx:int8"
    assert label(rank(manifest, BOARD, measured_s=beyond)[0].artifact) == "onnx:fp32"


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"a": 1}'], ids=["empty", "bytes", "list", "numbers"])
def test_a_damaged_file_is_measured_anew(manifest: Manifest, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "latency.json"
    file.write_bytes(content)
    bench = Bench({"onnx:int8": 3e-3, "onnx:fp32": 1e-3, "tflite:fp32": 2e-3})
    latencies(file, manifest.digest, candidates(manifest, BOARD), BOARD, threads=1, measure=bench)
    assert len(bench.measured) == 3
    assert manifest.digest in msgspec.json.decode(file.read_bytes())


def test_a_folder_that_cannot_be_written_costs_only_the_memory_of_it(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    bench = Bench({"onnx:int8": 3e-3, "onnx:fp32": 1e-3, "tflite:fp32": 2e-3})
    artifacts = candidates(manifest, BOARD)
    seconds = latencies(tmp_path / "file" / "latency.json", manifest.digest, artifacts, BOARD, threads=1, measure=bench)
    assert seconds["onnx:fp32"] == 1e-3


def test_loading_measures_every_artifact_once_and_says_what_it_found(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with load(bundle_path, measure=True) as model:
        assert " us here" in model.reason
    file = tmp_path / "edgeml" / "latency.json"
    (held,) = msgspec.json.decode(file.read_bytes()).values()
    assert sorted(key.partition("@")[0] for key in held) == ["onnx:fp32", "onnx:int8", "tflite:fp32"]
    before = file.read_bytes()
    with load(bundle_path, measure=True) as again:
        assert again.artifact == model.artifact
    assert file.read_bytes() == before


def test_an_engine_s_threads_are_kept_to_their_cores_and_the_caller_is_not() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    with pinned((core,)):
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ConfigError, match="got 4096"), pinned((4096,)):
        pass
