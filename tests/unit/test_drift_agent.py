"""Drift from the device's calls to the status screen and the fleet's message."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeml.exporter.reference import answer_counts, make_reference
from edgeml.exporter.samples import make_samples
from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import open_bundle, write_bundle
from edgeml.runtime.config import load_config
from edgeml.runtime.host import Host
from edgeml.runtime.model import Result
from edgeml.runtime.telemetry import Window
from edgeml.wire.manifest import Artifact, Manifest, PostProcessing
from tests.unit.bundles import logits, make_bundle

POST = PostProcessing("logits", "softmax")


def inputs(count: int, seed: int, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with a reference as the exporter makes it."""
    folder = tmp_path_factory.mktemp("bundle")
    with open_bundle(make_bundle(folder)) as plain:
        x = inputs(1000, 1)
        reference = make_reference(make_samples({"x": x}), {"logits": logits(x)}, POST)
        manifest = msgspec.structs.replace(plain.manifest, version="1.1.0", reference=reference)
        blobs = {digest: plain.blob(digest) for digest in manifest.blobs()}
    path = folder / "toy-1.1.0.edgeml"
    write_bundle(manifest, blobs, path)
    return path


def host_of(bundle: Path, folder: Path, telemetry: str = "") -> Host:
    config = folder / "agent.toml"
    config.write_text(f'[device]\nid = "d"\ndata = "data"\n[models.toy]\nbundle = "{bundle}"\n{telemetry}')
    minutes = iter(range(10_000))
    host = Host(load_config(config), now=lambda: 60.0 * next(minutes))
    host.switch("toy", host.check("toy", bundle), bundle)
    return host


def test_inputs_that_move_are_in_alarm_in_the_next_window_but_two_blocks(bundle: Path, tmp_path: Path) -> None:
    host, alarms, sequence = host_of(bundle, tmp_path), [], iter(range(1, 1000))
    for minute in range(40):
        for x in inputs(100, minute, shift=0.0 if minute < 20 else 0.7):
            host.run("toy", {"x": x})
        (window,) = host.windows("d", 1, lambda: next(sequence))
        assert window.inputs["x"].calls == 100
        alarms.append({stream for stream, drift in window.drift.items() if drift.alarm})
    serving = host.serving("toy")
    assert serving is not None
    assert serving.window.is_drifting
    host.close()
    assert not any(alarms[:20])
    assert alarms[-1] >= {"input:x"}
    assert any("input:x" in found for found in alarms[20:38])


def test_an_owner_may_turn_it_off(bundle: Path, tmp_path: Path) -> None:
    host = host_of(bundle, tmp_path, "[telemetry]\ndrift = false\n")
    host.run("toy", {"x": np.zeros(4, np.float32)})
    (window,) = host.windows("d", 1, lambda: 1)
    host.close()
    assert (window.runs, window.inputs, window.drift, window.edges_id) == (1, {}, {}, None)


def softer(manifest: Manifest) -> tuple[Artifact, Array]:
    """An artifact whose answers are half as sure as the source's, with what it answered at export."""
    x = inputs(1000, 1)
    confidence, classes = answer_counts(POST, {"logits": logits(x)}, POST, {"logits": logits(x) / 2})
    return msgspec.structs.replace(manifest.artifacts[0], confidence=confidence, classes=classes), logits(inputs(3000, 2)) / 2


@pytest.mark.parametrize("knows", [True, False], ids=["its own answers are in the manifest", "only the source's are"])
def test_an_artifact_that_is_less_sure_than_its_source_has_not_drifted(bundle: Path, *, knows: bool) -> None:
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    artifact, answers = softer(manifest)
    window, alarms = Window(manifest, 0.0, artifact=artifact if knows else None), set()
    for minute, rows in enumerate(answers.reshape(30, 100, 3)):
        for row in rows:
            shares = np.exp(row) / np.exp(row).sum()
            window.record(Result({}, None, int(row.argmax()), float(shares.max()), "device", 0.001, "toy", "1.1.0", "id"))
        alarms |= {stream for stream, drift in window.take(60.0 * (minute + 1)).drift.items() if drift.alarm}
    assert alarms == (set() if knows else {"confidence"})


def test_windows_with_the_clouds_answers_say_nothing_of_the_devices_confidence(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        window = Window(opened.manifest, 0.0)
    for minute in range(30):
        for _ in range(100):
            window.record(Result({}, None, 0, 0.99, "cloud", 0.001, "toy", "1.1.0", "id", "low_confidence"))
        assert window.take(60.0 * (minute + 1)).drift == {}
