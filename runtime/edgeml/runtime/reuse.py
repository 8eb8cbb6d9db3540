"""Builds a packed bundle from the blobs that are here and those that are not, fetched one by one out of the same file.

A packed bundle is a stored zip that opens with its manifest, and every offset follows from that: a device reads the manifest,
sees which blobs its versions have already, and asks for the others by Range. Each blob is hashed, the manifest must be the
signed one, and the whole result must have the signed hash. Whatever is wrong is an error with code `blobs`: the whole file is
downloaded instead. What was fetched before a power cut is not fetched again.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml.runtime.assemble import assemble, starts_of
from edgeml.runtime.atomic import Write, discard
from edgeml.runtime.bundle import Bundle, open_bundle
from edgeml.runtime.fetch import Fetcher, Remote
from edgeml.runtime.slots import storage_error
from edgeml.wire.canonical import header_size, zip_size
from edgeml.wire.contract import check_manifest
from edgeml.wire.errors import BundleError, EdgemlError, UpdateError
from edgeml.wire.manifest import MANIFEST_LIMIT_BYTES, Manifest, decode_manifest
from edgeml.wire.packed import MANIFEST, layout

LEAST_BYTES: Final = 1024 * 1024  # of a bundle: below, its manifest and a request a blob cost more than they can save
REQUEST_BYTES: Final = 16 * 1024  # what one request more costs: 100 ms of waiting at 160 kB/s
_SIZE: Final = struct.Struct("<18xI")  # where a zip's local header has the size of a stored file


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build a bundle here.

    `lacking` are the blobs to fetch, in the order they have in the file; `left_bytes` what of them is not here yet.
    """

    manifest: Manifest
    text: bytes
    lacking: tuple[Remote, ...]
    folder: Path
    here: tuple[Path, ...]

    @property
    def left_bytes(self) -> int:
        return sum(blob.length_bytes - _size(self.part(blob.digest)) for blob in self.lacking)

    @property
    def cost_bytes(self) -> int:
        """`left_bytes`, and what asking for so many blobs costs beside asking for one file."""
        return self.left_bytes + REQUEST_BYTES * max(len(self.lacking) - 1, 0)

    def part(self, digest: str) -> Path:
        return self.folder / f"{digest}.part"


def read_recipe(
    fetcher: Fetcher, remote: Remote, manifest_sha256: str, here: Sequence[Path], folder: Path, *, stop: Callable[[], bool]
) -> Recipe:
    """Fetch the manifest out of a packed bundle, and see which of its blobs the bundles `here` have.

    `folder` is for what was fetched; it is made if absent.

    Raises:
        UpdateError: `blobs`, or as `Fetcher.fetch`.
        Superseded: `stop` said so.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{manifest_sha256}.part"
        size = _size(part) or _manifest_size(fetcher.head(remote, header_size(MANIFEST)))
        fetcher.fetch(Remote(remote.url, size, manifest_sha256, offset=header_size(MANIFEST)), part, stop=stop)
        text = part.read_bytes()
        manifest = decode_manifest(text)
        check_manifest(manifest)
    except OSError as error:
        raise storage_error(error) from error
    except BundleError as error:
        raise _refused(str(error)) from error
    files = layout(manifest, len(text))
    if zip_size(files) != remote.length_bytes:
        raise _refused(f"its parts are {zip_size(files)} bytes, {remote.length_bytes} are signed for")
    starts, sizes = starts_of(files), manifest.blobs()
    useful = {path: held for path in here if (held := _held(path) & sizes.keys())}
    lacking = [digest for digest in sizes if not any(digest in held for held in useful.values())]
    blobs = [Remote(remote.url, sizes[digest], digest, offset=starts[digest]) for digest in sorted(lacking)]
    return Recipe(manifest, text, tuple(blobs), folder, tuple(useful))


def build(recipe: Recipe, fetcher: Fetcher, result: Path, *, stop: Callable[[], bool], write: Write = os.write) -> None:
    """Fetch what is lacking and write the packed bundle to `result`; its hash is for the caller to check.

    Raises:
        UpdateError: `blobs`, or as `Fetcher.fetch`; nothing is left at `result`.
        Superseded: `stop` said so; what was fetched stays.
    """
    for blob in recipe.lacking:
        if blob.length_bytes:
            fetcher.fetch(blob, recipe.part(blob.digest), stop=stop)
    fetched = {blob.digest for blob in recipe.lacking}
    try:
        with ExitStack() as stack:
            bundles = [stack.enter_context(open_bundle(path)) for path in recipe.here]

            def content(digest: str) -> Iterable[bytes]:
                if digest in fetched:
                    return [recipe.part(digest).read_bytes()] if recipe.manifest.blobs()[digest] else []
                return [_local(bundles, digest)]

            assemble(result, recipe.manifest, recipe.text, content, write=write)
    except OSError as error:
        discard(result)
        raise storage_error(error) from error
    except BundleError as error:
        discard(result)
        raise _refused(str(error)) from error


def _local(bundles: Iterable[Bundle], digest: str) -> bytes:
    for bundle in bundles:
        if digest in bundle.manifest.blobs():
            return bundle.blob(digest)
    raise _refused(f"blob {digest[:12]} is not here any more")


def _held(path: Path) -> set[str]:
    """The blobs of a bundle; none if it cannot be opened, since damage is found elsewhere."""
    with contextlib.suppress(EdgemlError), open_bundle(path) as bundle:
        return set(bundle.manifest.blobs())
    return set()


def _manifest_size(head: bytes) -> int:
    if len(head) < header_size(MANIFEST) or head[:4] != b"PK\x03\x04":
        raise _refused(f"it opens with {head[:4]!r}")
    (size,) = _SIZE.unpack_from(head)
    if not 0 < size <= MANIFEST_LIMIT_BYTES:
        raise _refused(f"a manifest of {size} bytes")
    return int(size)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refused(what: str) -> UpdateError:
    return UpdateError(f"the bundle cannot be built from its parts: {what}", code="blobs", retryable=True)
