"""Builds a packed bundle from one that is here and a delta (format: `wire.delta`).

A delta is a signed file, and is still not believed: sizes are checked against the signed length before anything is made, what
unpacks is read no further than the header says, memory is bounded by one piece and one blob of the base, and the result must
have the signed manifest and, for the caller to check, the signed hash. Whatever is wrong is an error with code `delta`: the
whole file is downloaded instead.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import numpy as np

from edgeml.runtime.assemble import assemble
from edgeml.runtime.atomic import Write, discard
from edgeml.runtime.bundle import Bundle, open_bundle
from edgeml.runtime.slots import storage_error
from edgeml.wire.canonical import zip_size
from edgeml.wire.contract import check_manifest
from edgeml.wire.delta import DICTIONARY_BYTES, HEADER_LIMIT_BYTES, MAGIC, FileDelta, Header, Piece
from edgeml.wire.errors import EdgemlError, UpdateError
from edgeml.wire.manifest import MANIFEST_LIMIT_BYTES, Manifest, decode_manifest
from edgeml.wire.packed import layout

CHUNK_BYTES: Final = 64 * 1024
UNPACK_LIMIT_BYTES: Final = 4 * 1024 * 1024 + DICTIONARY_BYTES  # what liblzma may take


def apply_delta(
    delta: Path, base: Path, result: Path, *, manifest_sha256: str, result_bytes: int, write: Write = os.write
) -> None:
    """Write to `result` what `delta` makes of the bundle at `base`.

    Raises:
        UpdateError: code `delta`, or `disk_full` or `storage`; nothing is left at `result`.
    """
    try:
        with delta.open("rb") as file, open_bundle(base) as opened:
            _Rebuild(file, opened, write).run(result, manifest_sha256, result_bytes)
    except UpdateError:
        discard(result)
        raise
    except OSError as error:
        discard(result)
        raise storage_error(error) from error
    except EdgemlError as error:
        discard(result)
        raise refused(str(error)) from error


def refused(what: str) -> UpdateError:
    return UpdateError(f"the delta cannot be used: {what}", code="delta", retryable=True)


class _Rebuild:
    def __init__(self, file: BinaryIO, base: Bundle, write: Write) -> None:
        self._file = file
        self._base = base
        self._write = write

    def run(self, result: Path, manifest_sha256: str, result_bytes: int) -> None:
        header = self._header()
        if header.base != self._base.digest:
            raise refused(f"it starts from {header.base[:12]}, here is {self._base.digest[:12]}")
        text = self._manifest(header.manifest, manifest_sha256)
        manifest = decode_manifest(text)
        check_manifest(manifest)
        files = layout(manifest, len(text))
        if zip_size(files) != result_bytes:
            raise refused(f"it makes {zip_size(files)} bytes, {result_bytes} are signed for")
        self._require_complete(header, manifest)
        changed = {file.sha256: file for file in header.blobs}

        def content(digest: str) -> Iterator[bytes]:
            file = changed.get(digest)
            if file is None:
                return iter([self._base.blob(digest)])
            return self._content(file, self._base.blob(file.base) if file.base is not None else b"")

        assemble(result, manifest, text, content, first=changed, write=self._write)

    def _header(self) -> Header:
        start = self._file.read(len(MAGIC) + 4)
        if start[: len(MAGIC)] != MAGIC or len(start) != len(MAGIC) + 4:
            raise refused(f"it opens with {start[: len(MAGIC)]!r}")
        packed = self._file.read(min(int.from_bytes(start[len(MAGIC) :], "little"), HEADER_LIMIT_BYTES))
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(packed, HEADER_LIMIT_BYTES)
            return msgspec.json.decode(text, type=Header)
        except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise refused(f"its header: {error}") from error

    def _manifest(self, file: FileDelta, manifest_sha256: str) -> bytes:
        if file.bytes > MANIFEST_LIMIT_BYTES or file.sha256 != manifest_sha256:
            raise refused("it makes another manifest than the signed one")
        text = b"".join(self._content(file, self._base.manifest.encode() if file.base == self._base.digest else b""))
        if hashlib.sha256(text).hexdigest() != manifest_sha256:
            raise refused("it makes another manifest than the signed one")
        return text

    def _require_complete(self, header: Header, manifest: Manifest) -> None:
        held = self._base.manifest.blobs()
        lacking = {digest: size for digest, size in manifest.blobs().items() if digest not in held}
        if lacking != {file.sha256: file.bytes for file in header.blobs}:
            raise refused("it does not bring exactly what the base lacks")

    def _content(self, file: FileDelta, base: bytes) -> Iterator[bytes]:
        if sum(piece.bytes for piece in file.pieces) != file.bytes:
            raise refused(f"its pieces of {file.sha256[:12]} do not add up")
        stream = _Unpacked(self._file, file.packed_bytes)
        for piece in file.pieces:
            yield _piece(piece, stream.read(piece.bytes), base)
        stream.finish()


class _Unpacked:
    """Reads one xz stream no further than asked."""

    def __init__(self, file: BinaryIO, packed_bytes: int) -> None:
        try:
            import lzma
        except ImportError as error:
            raise refused("this Python has no lzma") from error
        self._file = file
        self._left = packed_bytes
        self._broken = lzma.LZMAError
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=UNPACK_LIMIT_BYTES)

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = self._more(size)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Go to the stream's end; more bytes in it are refused."""
        while not self._unpacker.eof:
            if self._some(1):
                raise refused("it unpacks to more than its header says")
        self._file.seek(self._left, os.SEEK_CUR)

    def _more(self, size: int) -> bytes:
        while True:
            if self._unpacker.eof:
                raise refused("it ends early")
            if part := self._some(size):
                return part

    def _some(self, size: int) -> bytes:
        packed = b""
        if self._unpacker.needs_input:
            packed = self._file.read(min(CHUNK_BYTES, self._left))
            self._left -= len(packed)
            if not packed:
                raise refused("it ends early")
        try:
            return self._unpacker.decompress(packed, size)
        except (self._broken, MemoryError) as error:
            raise refused(str(error)) from error


def _piece(piece: Piece, data: bytes, base: bytes) -> bytes:
    if piece.width == 0:
        return data
    before = base[piece.base_offset : piece.base_offset + piece.bytes]
    if len(before) != piece.bytes or piece.bytes % piece.width:
        raise refused("a piece lies outside its base")
    kind = np.dtype(f"<u{piece.width}")
    planes = np.frombuffer(data, np.uint8).reshape(piece.width, -1)
    coded = np.ascontiguousarray(planes.T).reshape(-1).view(kind)
    difference = (coded >> 1) ^ (~(coded & 1) + 1).astype(kind)
    return bytes((np.frombuffer(before, kind) + difference).astype(kind).data.cast("B"))
