from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.model import Result
from edgeml.runtime.telemetry import CODE_LIMIT, OTHER, Window
from edgeml.wire import messages
from edgeml.wire.manifest import Manifest
from tests.unit.bundles import make_bundle


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    with open_bundle(make_bundle(tmp_path_factory.mktemp("bundle"))) as bundle:
        return bundle.manifest


def answer(score: float | None = 0.95, index: int | None = 1, latency_s: float = 0.01, fallback: str | None = None) -> Result:
    return Result({"logits": np.zeros(3)}, None, index, score, "device", latency_s, "toy", "1.0.0", "id", fallback)


def test_a_window_counts_what_happened(manifest: Manifest) -> None:
    window = Window(manifest, now=1000.0)
    for _ in range(3):
        window.record(answer())
    window.record(answer(score=0.35, index=2, latency_s=0.5, fallback="low_confidence"))
    window.record_error("engine")
    counts = window.take(1060.0)
    assert (counts.start, counts.seconds, counts.runs) == (1000.0, 60.0, 4)
    assert counts.errors == {"engine": 1}
    assert counts.fallbacks == {"low_confidence": 1}
    assert counts.classes == (0, 3, 1)
    # edges 0.1 … 0.9: 0.35 falls between the third and the fourth, 0.95 behind the last
    assert counts.confidence is not None
    assert counts.confidence.counts == (0, 0, 0, 1, 0, 0, 0, 0, 0, 3)
    assert counts.latency is not None
    assert counts.latency.quantile(0) == pytest.approx(0.01, rel=0.01)
    assert counts.latency.quantile(1) == pytest.approx(0.5, rel=0.01)


def test_taking_a_window_starts_an_empty_one(manifest: Manifest) -> None:
    window = Window(manifest, now=0.0)
    window.record(answer())
    first, second = window.take(60.0), window.take(120.0)
    assert (first.runs, second.runs, second.start) == (1, 0, 60.0)
    assert second.is_empty
    assert second.latency is None


def test_a_window_travels_as_telemetry(manifest: Manifest) -> None:
    window = Window(manifest, now=0.0)
    window.record(answer())
    sent = window.take(60.0).telemetry("camera-1", session=5, seq=9)
    assert messages.decode(messages.Telemetry, messages.encode(sent)) == sent
    assert (sent.manifest_sha256, sent.version) == (manifest.digest, "1.0.0")
    assert sent.rss_bytes is not None
    assert sent.rss_bytes > 2**20


def test_a_million_different_calls_take_constant_room(manifest: Manifest) -> None:
    window = Window(manifest, now=0.0)
    for i in range(20_000):
        window.record(answer(latency_s=10.0 ** (-9 + i % 18), index=i))
        window.record_error(f"code-{i}")
    counts = window.take(60.0)
    assert len(counts.errors) == CODE_LIMIT + 1
    assert counts.errors[OTHER] == 20_000 - CODE_LIMIT
    assert len(messages.encode(counts.telemetry("d", 1, 1))) < 2048


def test_answers_counted_from_many_threads_all_count(manifest: Manifest) -> None:
    window = Window(manifest, now=0.0)

    def work() -> None:
        for _ in range(2000):
            window.record(answer())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert window.take(1.0).runs == 8000


def test_a_task_without_classes_has_no_confidence(tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path, task="regress")) as bundle:
        window = Window(bundle.manifest, now=0.0)
    window.record(answer(score=None, index=None))
    counts = window.take(1.0)
    assert (counts.runs, counts.confidence, counts.classes) == (1, None, ())
