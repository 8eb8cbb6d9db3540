"""Which operators are the steps of an unrolled recurrent layer."""

from __future__ import annotations

from edgeml.exporter.quantize.tflite_steps import Done, recurrent_steps

CONSTANTS = {"u", "w", "b", "head", "kernel"}


def step(number: int, cell: str = "TANH") -> list[Done]:
    """h(n) = cell(p(n) + u h(n-1))"""
    return [
        Done("FULLY_CONNECTED", (f"h{number - 1}", "u", "b"), (f"m{number}",)),
        Done("ADD", (f"m{number}", f"p{number}"), (f"a{number}",)),
        Done(cell, (f"a{number}",), (f"h{number}",)),
    ]


def test_products_of_a_repeated_step_round_their_input_and_what_carries_the_state_stays_float() -> None:
    before = [Done("FULLY_CONNECTED", ("x", "w", "b"), ("p",)), Done("SPLIT", ("p",), ("p1", "p2"))]
    after = [Done("FULLY_CONNECTED", ("h2", "head", "b"), ("y",)), Done("SOFTMAX", ("y",), ("z",))]

    found = recurrent_steps([*before, *step(1), *step(2), *after], CONSTANTS)

    assert found.products == {"m1", "m2"}
    assert found.others == {"a1", "h1", "a2", "h2"}  # not the layer before, not the one after


def test_branches_that_share_weights_are_no_steps() -> None:
    twins = [Done("FULLY_CONNECTED", (name, "u", "b"), (f"m{name}",)) for name in ("left", "right")]

    assert not recurrent_steps([*twins, Done("SUB", ("mleft", "mright"), ("d",))], CONSTANTS).products


def test_blocks_with_convolutions_that_share_weights_are_no_steps() -> None:
    deep = [*step(1), Done("BATCH_MATMUL", ("h1", "h1"), ("h2",)), *step(3)]

    assert recurrent_steps(deep, CONSTANTS).others == set()
