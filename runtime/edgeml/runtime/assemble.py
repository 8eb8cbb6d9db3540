"""Writes a packed bundle whose blobs come in any order: every offset follows from the manifest, so each has its place."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edgeml.runtime.atomic import TEMPORARY_SUFFIX, Write, discard, move, write_all
from edgeml.wire.canonical import ZipEntry, directory, header_size, local_header
from edgeml.wire.manifest import Manifest
from edgeml.wire.packed import DIGEST, MANIFEST, digest_file, layout

Content = Callable[[str], Iterable[bytes]]  # a blob's bytes, by digest


def assemble(
    result: Path, manifest: Manifest, text: bytes, content: Content, *, first: Iterable[str] = (), write: Write = os.write
) -> None:
    """Write the packed bundle of `manifest` (its JSON is `text`) to `result`, which appears whole or not at all.

    `content` is asked once for each blob, for those in `first` first and in that order. What it gives is not checked here.
    """
    unfinished = result.with_name(result.name + TEMPORARY_SUFFIX)
    try:
        _write(unfinished, manifest, text, content, first=first, write=write)
        move(unfinished, result)
    except BaseException:
        discard(unfinished)
        raise


def _write(result: Path, manifest: Manifest, text: bytes, content: Content, *, first: Iterable[str], write: Write) -> None:
    files = layout(manifest, len(text))
    starts = starts_of(files)
    order = dict.fromkeys([*first, *(digest for digest in starts if digest not in {MANIFEST, DIGEST})])
    descriptor = os.open(result, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        crcs = {digest: _place(descriptor, starts[digest], content(digest), write) for digest in order}
        small = {MANIFEST: text, DIGEST: digest_file(hashlib.sha256(text).hexdigest())}
        for name, data in small.items():
            crcs[name] = _place(descriptor, starts[name], [data], write)
        entries = [ZipEntry(name, size, crcs[_key(name)]) for name, size in files]
        for entry in entries:
            _place(descriptor, starts[_key(entry.name)] - header_size(entry.name), [local_header(entry)], write)
        last = entries[-1]
        _place(descriptor, starts[_key(last.name)] + last.size, [directory(entries)], write)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def starts_of(files: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Where the content of each file of a packed bundle begins: blobs by digest, the two others by name."""
    starts: dict[str, int] = {}
    position = 0
    for name, size in files:
        position += header_size(name)
        starts[_key(name)] = position
        position += size
    return starts


def _key(name: str) -> str:
    return name.rpartition("/")[2]


def _place(descriptor: int, position: int, chunks: Iterable[bytes] | Iterator[bytes], write: Write) -> int:
    """Write from `position` on; gives the CRC-32."""
    os.lseek(descriptor, position, os.SEEK_SET)
    crc = 0
    for chunk in chunks:
        crc = zlib.crc32(chunk, crc)
        write_all(descriptor, chunk, write=write)
    return crc
