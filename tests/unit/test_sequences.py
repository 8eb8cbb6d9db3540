"""Models with states: samples are sequences, the source's own states travel through them, artifacts carry theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeml.exporter.parity.answers import answers
from edgeml.exporter.plan import make_plan
from edgeml.exporter.samples import Samples
from edgeml.exporter.sequences import load_sequences, run_sequences, with_states
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Signature, TensorSpec

PLAIN = Signature(
    (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("sum_in", "float32", ("batch", 2))),
    (TensorSpec("sum_out", "float32", ("batch", 2)), TensorSpec("y", "float32", ("batch", 1))),
)
SUMS = with_states(PLAIN, {"sum_in": "sum_out"})


def running_sum(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The state is the sum of all x so far, y the sum of the state."""
    total = inputs["sum_in"] + inputs["x"]
    return {"sum_out": total, "y": total.sum(1, keepdims=True)}


@pytest.fixture
def sequences(tmp_path: Path) -> Samples:
    """Two sequences of three steps: x is 1 in the first, 10 in the second."""
    x = np.stack([np.ones((3, 2)), np.full((3, 2), 10)]).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=x, y=np.array([4, 5]))
    return load_sequences(tmp_path / "s.npz", SUMS)


def test_steps_become_samples_and_states_start_at_zero(sequences: Samples) -> None:
    assert (len(sequences), sequences.steps) == (6, 3)
    assert sequences.inputs["x"][:, 0].tolist() == [1, 1, 1, 10, 10, 10]
    assert not sequences.inputs["sum_in"].any()
    assert sequences.labels is not None
    assert sequences.labels.tolist() == [4, 4, 4, 5, 5, 5]


def test_the_sources_states_travel_within_a_sequence_and_not_beyond(sequences: Samples) -> None:
    ran = run_sequences(running_sum, sequences, SUMS)
    assert ran.inputs["sum_in"][:, 0].tolist() == [0, 1, 2, 0, 10, 20]


def test_an_artifact_carries_its_own_states(sequences: Samples) -> None:
    """One that adds 0.5 too much each step is 0.5, 1, 1.5 off: its errors add up, as they do on a device."""
    ran = run_sequences(running_sum, sequences, SUMS)

    def wrong(inputs: Mapping[str, Array]) -> dict[str, Array]:
        right = running_sum(inputs)
        return {**right, "sum_out": right["sum_out"] + 0.5}

    got = answers(wrong, ran, SUMS)["sum_out"][:, 0]
    assert got.tolist() == [1.5, 3.0, 4.5, 10.5, 21.0, 31.5]


def test_golden_samples_are_single_steps_with_the_sources_state(sequences: Samples) -> None:
    ran = run_sequences(running_sum, sequences, SUMS)
    assert answers(running_sum, ran.take([5, 2]), SUMS)["y"][:, 0].tolist() == [60, 6]


def test_labels_may_stand_at_every_step(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.zeros((2, 3, 2), np.float32), y=np.arange(6).reshape(2, 3))
    labels = load_sequences(tmp_path / "s.npz", SUMS).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"h": "sum_out"}, "no input 'h'"),
        ({"sum_in": "h"}, "no output 'h'"),
        ({"sum_in": "y"}, "one is not the other"),
        ({"sum_in": "sum_out", "x": "y"}, "one is not the other"),
    ],
)
def test_states_that_are_not_there_or_not_alike_are_refused(states: dict[str, str], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        with_states(PLAIN, states)


@pytest.mark.parametrize("told", [["h"], ["=h"], ["a=b,a=c"], ["a=b", "c=b"]])
def test_what_is_no_pair_of_names_is_refused(told: list[str]) -> None:
    with pytest.raises(PlanError, match="--state"):
        make_plan("m.onnx", to="onnx", states=told)


def test_states_change_the_contract_and_their_absence_does_not() -> None:
    assert SUMS.digest != PLAIN.digest
    assert with_states(PLAIN, {}).digest == PLAIN.digest
