"""Inputs of a Core ML model that may have several sizes: the ends of each axis, read, and kept when it is written anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgeml.exporter.mil.package import MODEL, pack_files, unpack_files
from edgeml.exporter.mil.schema import parse_model

Ends = tuple[tuple[int, int], ...]
"""The least and the most size of each axis."""


def input_ends(parsed: Any) -> dict[str, Ends]:
    """Inputs with free axes: the sizes that Core ML holds callers to."""
    return {
        feature.name: tuple((size.lowerBound, size.upperBound) for size in feature.type.multiArrayType.shapeRange.sizeRanges)
        for feature in _flexible(parsed)
    }


def with_ends_of(model: bytes, original: bytes) -> bytes:
    """`model` with the ends of `original`, whose inputs it has: coremltools makes up its own when it writes a model anew."""
    wanted = {feature.name: feature.type for feature in _flexible(parse_model(unpack_files(original)[MODEL]))}
    if not wanted:
        return model
    files = unpack_files(model)
    parsed = parse_model(files[MODEL])
    for feature in parsed.description.input:
        if feature.name in wanted:
            feature.type.CopyFrom(wanted[feature.name])
    return pack_files({**files, MODEL: bytes(parsed.SerializeToString(deterministic=True))})


def _flexible(parsed: Any) -> Iterator[Any]:
    for feature in parsed.description.input:
        if feature.type.multiArrayType.WhichOneof("ShapeFlexibility") == "shapeRange":
            yield feature
