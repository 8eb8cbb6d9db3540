"""A delta between two packed bundles: what is new, said as differences from what a device already has.

    magic | header's packed length, 4 bytes little-endian | header, zlib | one xz stream for each file, in the header's order

The header lists the new manifest first, then every blob that the base bundle lacks. A file is a row of pieces. A piece of
width 0 is bytes as they are; one of width 1, 2 or 4 is little-endian words to add to the base's words at `base_offset`: each
difference zigzag-coded (0, -1, 1, -2, …), and the words' lowest bytes stored first, then the next ones, so that the many zeros
stand together. What a device builds is judged by the signed digest of the result alone.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from edgeml.wire.manifest import Count, Sha256
from edgeml.wire.structs import learn

MAGIC: Final = b"EDGEMLD1"
HEADER_LIMIT_BYTES: Final = 4 * 1024 * 1024
MOST_PIECE_BYTES: Final = 256 * 1024  # what a device holds of one piece
DICTIONARY_BYTES: Final = 1024 * 1024  # of the xz streams: more would only cost a device memory

PieceBytes = Annotated[int, msgspec.Meta(ge=1, le=MOST_PIECE_BYTES)]


class Piece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`bytes` of the result, from words `width` wide (0: as they are)."""

    width: Literal[0, 1, 2, 4]
    base_offset: Count
    bytes: PieceBytes


class FileDelta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file of the new bundle. `base` is the base bundle's blob that the pieces refer to; `packed_bytes` its xz stream."""

    sha256: Sha256
    bytes: Count
    packed_bytes: Count
    pieces: tuple[Piece, ...]
    base: Sha256 | None = None


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`base` is the manifest digest of the bundle that the delta starts from."""

    base: Sha256
    manifest: FileDelta
    blobs: tuple[FileDelta, ...]


def delta_path(model: str, version: str, base: str) -> str:
    """The TUF target path of the delta that makes `model`@`version` from the bundle with manifest digest `base`."""
    return f"models/{model}/{version}.from-{base}.delta"


learn(__name__)
