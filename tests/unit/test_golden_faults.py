"""Faults in a toy's engine and file are caught by its golden vectors, by the program that measures this on real models."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from benchmarks.golden import Found, look_at, misses, summary, table
from edgeml.runtime.bundle import open_bundle
from tests.unit.bundles import make_bundle

ANSWERS = {
    "scale off by 1 %", "scale off by 5 %", "scale off by 2", "sign flipped", "the previous answer", "NaN in one sample",
    "the same answer always", "a channel of the output silent", "two channels of the output exchanged",
}  # fmt: skip
FILES = {
    "one channel of a layer silent",
    "two channels of a layer exchanged",
    "a layer of another version",
    "a layer without its bias",
}


def test_every_fault_of_a_float_model_is_caught_and_no_kernel_is_refused(tmp_path: Path) -> None:
    found = Found()
    with open_bundle(make_bundle(tmp_path, artifacts=(("onnx", "fp32"), ("tflite", "fp32")))) as bundle:
        look_at(bundle, found)
    kinds = defaultdict(set)
    for trial in found.trials:
        kinds[trial.artifact].add(trial.fault)
    assert kinds.keys() == {"onnx:fp32", "tflite:fp32"}
    for of_one in kinds.values():
        assert of_one >= ANSWERS | FILES
    assert (list(misses(found)), found.refused) == ([], [])
    assert found.healthy >= 8
    assert summary(found)["caught"] == len(found.trials)


def test_what_bounds_do_not_cover_is_listed_with_its_size(tmp_path: Path) -> None:
    """A bundle whose tolerance is wider than a step lets small shifts through, and says so."""
    found = Found()
    with open_bundle(make_bundle(tmp_path, artifacts=(("onnx", "int8"),))) as bundle:
        look_at(bundle, found)
    assert any("scale off by 1 %" in line and "of the range" in line for line in misses(found))
    assert f"healthy kernels refused: 0 of {found.healthy}" in list(table(found))
