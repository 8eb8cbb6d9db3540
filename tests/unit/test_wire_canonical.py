from __future__ import annotations

import msgspec

from edgeml.wire.canonical import encode_json
from edgeml.wire.manifest import PostProcessing, Requirement


class Child(msgspec.Struct, frozen=True, omit_defaults=True):
    word: str = "classify"
    number: float = 1.0
    items: tuple[int, ...] = ()
    mapping: dict[str, int] = {}


def test_equal_values_give_equal_bytes_whatever_objects_they_are_made_of() -> None:
    """A word from a command line is equal to the default, not the same object."""
    made = Child("CLASSIFY".lower(), float("1.0"), (), {})
    assert encode_json(made) == encode_json(Child()) == b"{}"


def test_what_differs_from_the_default_is_written_with_sorted_keys() -> None:
    assert encode_json(PostProcessing("y", "softmax", 2.0)) == b'{"activation":"softmax","output":"y","temperature":2.0}'
    assert encode_json({"b": [Requirement("onnxruntime")], "a": 1}) == b'{"a":1,"b":[{"engine":"onnxruntime"}]}'


def test_an_integer_is_not_taken_for_the_float_it_equals() -> None:
    assert encode_json(msgspec.convert({"number": 2}, Child)) == b'{"number":2.0}'
