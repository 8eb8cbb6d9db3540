"""Makes the delta from one published bundle to another (format: `wire.delta`), or none where the whole file is as good.

Nothing here knows a model format. Two files are laid side by side where they agree (`_aligned`), and for every stretch the word
width that leaves the fewest bits is taken: weights of a fine-tuned model differ by small numbers at the same places, whichever
format they are in. What cannot be predicted is left as it is. The entropy coder is LZMA with no context: made for this noise.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml.wire.canonical import sha256_hex
from edgeml.wire.delta import DICTIONARY_BYTES, MAGIC, MOST_PIECE_BYTES, FileDelta, Header, Piece
from edgeml.wire.manifest import Manifest
from edgeml.wire.packed import check_packed

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.float64]

MOST_SHARE: Final = 0.6  # of the whole file: a larger delta is not worth a device's work
MOST_BUNDLE_BYTES: Final = 256 * 1024 * 1024  # this module keeps both in memory
BLOCK: Final = 4096  # bytes that are coded in one way
SWITCH_BITS: Final = 256.0  # what one more piece costs
MODES: Final = ((0, 0), (1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3))  # word width, phase of the first word
WINDOW: Final = 16  # bytes that must agree to find a place again
_SIGNED: Final = {1: np.int8, 2: np.int16, 4: np.int32}
_UNSIGNED: Final = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@dataclass(frozen=True, slots=True)
class Contents:
    """A checked packed bundle in memory."""

    manifest: Manifest
    text: bytes
    blobs: dict[str, bytes]


def read_contents(path: Path) -> Contents:
    """The files of a packed bundle.

    Raises:
        BundleError: it changed since it was published.
    """
    data = path.read_bytes()
    found = check_packed(BytesIO(data).read, len(data))
    sizes = found.manifest.blobs()
    blobs = {digest: data[at : at + sizes[digest]] for digest, at in found.offsets.items()}
    return Contents(found.manifest, found.manifest.encode(), blobs)


def make_delta(base: Contents, new: Contents) -> bytes:
    """The delta, however large; equal arguments give equal bytes."""
    roles = {role: digest for digest, role in _roles(base.manifest)}
    manifest, streams = _file(new.text, base.manifest.digest, base.text)
    files: list[FileDelta] = []
    packed = [streams]
    for digest, role in _roles(new.manifest):
        if digest in base.blobs or any(digest == file.sha256 for file in files):
            continue
        before = roles.get(role)
        file, stream = _file(new.blobs[digest], before, base.blobs.get(before or "", b""))
        files.append(file)
        packed.append(stream)
    header = zlib.compress(msgspec.json.encode(Header(base.manifest.digest, manifest, tuple(files))), 9)
    return MAGIC + len(header).to_bytes(4, "little") + header + b"".join(packed)


def worthwhile(delta_bytes: int, whole_bytes: int) -> bool:
    return delta_bytes <= MOST_SHARE * whole_bytes


def _roles(manifest: Manifest) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every blob with what it is in its bundle, so that its like can be found in another."""
    for artifact in manifest.artifacts:
        yield artifact.sha256, ("artifact", artifact.format, artifact.precision)
        for output in artifact.golden.outputs if artifact.golden else ():
            yield output.expected.sha256, ("output", artifact.format, artifact.precision, output.expected.name)
    for tensor in manifest.golden_inputs:
        yield tensor.sha256, ("input", tensor.name)


def _file(new: bytes, base_digest: str | None, base: bytes) -> tuple[FileDelta, bytes]:
    pieces = tuple(_pieces(np.frombuffer(base, np.uint8), np.frombuffer(new, np.uint8)))
    stream = _packed(b"".join(_coded(piece, start, base, new) for start, piece in _placed(pieces)))
    return FileDelta(sha256_hex(new), len(new), len(stream), pieces, base_digest if base else None), stream


def _placed(pieces: tuple[Piece, ...]) -> Iterator[tuple[int, Piece]]:
    start = 0
    for piece in pieces:
        yield start, piece
        start += piece.bytes


def _coded(piece: Piece, start: int, base: bytes, new: bytes) -> bytes:
    data = new[start : start + piece.bytes]
    if piece.width == 0:
        return data
    words = np.frombuffer(data, np.uint8)
    before = np.frombuffer(base, np.uint8)[piece.base_offset : piece.base_offset + piece.bytes]
    return b"".join(plane.tobytes() for plane in _planes(before, words, piece.width))


def _planes(base: Bytes, new: Bytes, width: int) -> list[Bytes]:
    """The zigzag-coded differences, lowest bytes first."""
    kind = np.dtype(_UNSIGNED[width]).newbyteorder("<")
    difference = (new.view(kind) - base.view(kind)).view(np.dtype(_SIGNED[width]).newbyteorder("<"))
    coded = ((difference << 1) ^ (difference >> (8 * width - 1))).view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(coded[:, k]) for k in range(width)]


def _packed(data: bytes) -> bytes:
    """The smaller of two settings: for noise, and for text."""
    filters: list[dict[str, Any]] = [
        {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": DICTIONARY_BYTES, "lc": lc, "lp": 0, "pb": 0} for lc in (0, 3)
    ]
    return min((lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=[f]) for f in filters), key=len)


def _pieces(base: Bytes, new: Bytes) -> Iterator[Piece]:
    for start, size, shift in _aligned(base, new):
        if shift is None:
            yield from _cut(0, 0, size)
            continue
        before = base[start + shift : start + shift + size].copy()
        after = new[start : start + size].copy()
        for begin, end, (width, phase) in _modes(before, after):
            at = begin + shift + start
            lead = (phase - begin) % width if width else 0
            whole = (end - begin - lead) // width * width if width else end - begin
            yield from _cut(1, at, min(lead, end - begin))
            yield from _cut(width, at + lead, max(whole, 0))
            yield from _cut(1, at + lead + whole, end - begin - lead - whole)


def _cut(width: Any, base_offset: int, size: int) -> Iterator[Piece]:
    for start in range(0, size, MOST_PIECE_BYTES):
        yield Piece(width, base_offset + start if width else 0, min(MOST_PIECE_BYTES, size - start))


def _modes(base: Bytes, new: Bytes) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Which coding serves which stretch: the cheapest way through all blocks, where a change has its price."""
    count = -(-len(new) // BLOCK)
    costs = np.stack([_bits(base, new, width, phase, count) for width, phase in MODES])
    total, back = costs[:, 0], []
    for block in range(1, count):
        cheapest = int(total.argmin())
        stays = total <= total[cheapest] + SWITCH_BITS
        back.append(np.where(stays, np.arange(len(MODES)), cheapest))
        total = np.where(stays, total, total[cheapest] + SWITCH_BITS) + costs[:, block]
    chosen = [int(total.argmin())]
    for step in reversed(back):
        chosen.append(int(step[chosen[-1]]))
    chosen.reverse()
    begin = 0
    for block in range(1, count + 1):
        if block == count or chosen[block] != chosen[begin]:
            yield begin * BLOCK, min(block * BLOCK, len(new)), MODES[chosen[begin]]
            begin = block


def _bits(base: Bytes, new: Bytes, width: int, phase: int, count: int) -> Counts:
    """Entropy of each block under one coding, byte plane by byte plane."""
    if width == 0:
        return _entropy(new, 1, count)
    size = (len(new) - phase) // width * width
    if size <= 0:
        return np.full(count, np.inf)
    planes = _planes(base[phase : phase + size], new[phase : phase + size], width)
    return np.asarray(np.sum([_entropy(plane, width, count) for plane in planes], axis=0))


def _entropy(plane: Bytes, width: int, count: int) -> Counts:
    block = np.minimum(np.arange(len(plane)) * width // BLOCK, count - 1)
    table = np.bincount(block * 256 + plane, minlength=count * 256).reshape(count, 256).astype(np.float64)
    sizes = table.sum(axis=1)
    logs = np.log2(np.maximum(table, 1.0))
    return np.asarray(sizes * np.log2(np.maximum(sizes, 1.0)) - (table * logs).sum(axis=1))


def _aligned(base: Bytes, new: Bytes) -> Iterator[tuple[int, int, int | None]]:
    """Stretches of `new` as (start, bytes, where in `base` minus where in `new`, or `None` for nowhere)."""
    if not len(new):
        return
    runs = [(0, 0)] if len(base) == len(new) else _runs(base, new)
    start = 0
    for index, (_, shift) in enumerate(runs):
        end = len(new) if index + 1 == len(runs) else max(start, _border(base, new, runs[index], runs[index + 1]))
        low, high = max(start, -shift), min(end, len(base) - shift)
        if low >= high:
            continue
        if low > start:
            yield start, low - start, None
        yield low, high - low, shift
        start = high
    if start < len(new):
        yield start, len(new) - start, None


def _runs(base: Bytes, new: Bytes) -> list[tuple[int, int]]:
    """(first agreeing place in `new`, shift), in order of both files; found by windows that occur once in each."""
    ours, theirs = _windows(new), _windows(base)
    if not len(ours) or not len(theirs):
        return []
    values, places, counts = np.unique(theirs, return_index=True, return_counts=True)
    values, places = values[counts == 1], places[counts == 1]
    own, own_places, own_counts = np.unique(ours, return_index=True, return_counts=True)
    own, own_places = own[own_counts == 1], own_places[own_counts == 1]
    _, left, right = np.intersect1d(own, values, assume_unique=True, return_indices=True)
    runs: list[tuple[int, int]] = []
    reached = -1
    for index in np.argsort(own_places[left], kind="stable"):
        place, there = int(own_places[left[index]]), int(places[right[index]])
        if there > reached:
            reached = there
            if not runs or runs[-1][1] != there - place:
                runs.append((place, there - place))
    return runs


def _windows(data: Bytes) -> npt.NDArray[np.uint64]:
    if len(data) < WINDOW:
        return np.zeros(0, np.uint64)
    mixed = np.zeros(len(data) - WINDOW + 1, np.uint64)
    for offset in range(WINDOW):
        mixed = mixed * np.uint64(0x9E37_79B9_7F4A_7C15) + data[offset : offset + len(mixed)]
    return mixed


def _border(base: Bytes, new: Bytes, first: tuple[int, int], second: tuple[int, int]) -> int:
    """Where to change from one shift to the next: as many equal bytes as possible on both sides."""
    start, end = first[0], second[0]
    scores = _equal(base, new, start, end, first[1]) - _equal(base, new, start, end, second[1])
    return start + int(np.concatenate([[0], np.cumsum(scores)]).argmax())


def _equal(base: Bytes, new: Bytes, start: int, end: int, shift: int) -> npt.NDArray[np.int64]:
    places = np.arange(start, end) + shift
    inside = (places >= 0) & (places < len(base))
    same = base[np.clip(places, 0, len(base) - 1)] == new[start:end]
    return np.asarray(inside & same, np.int64)
