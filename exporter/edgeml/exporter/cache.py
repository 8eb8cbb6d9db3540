"""What slow jobs gave, kept for the next export: conversions, a source's answers, quantized forms, a search's measurements.

Never the verdict on what is packed.

An entry is found by a digest of everything its job depends on: the source by content, options, samples, this package's own
code, the versions of all libraries. It is checked against its own digest before it is believed. Writers rename whole files
into place, so exports may share the folder; what was used least recently goes first when it grows.
"""

from __future__ import annotations

import functools
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import msgspec

import edgeml.exporter
from edgeml.exporter.source.model import identity
from edgeml.exporter.worker import Worker
from edgeml.wire.canonical import encode_json, sha256_hex

PLACE: Final = "EDGEML_CACHE"  # names the folder in place of ~/.cache/edgeml
LIMIT_BYTES: Final = 2 << 30
ENTRY_LIMIT_BYTES: Final = 256 << 20
KEPT_SHARE: Final = 0.8  # of the limit, once it was passed: so that not every export has to clear
ABANDONED_S: Final = 24 * 3600.0  # a half-written file this old has no writer any more
PART: Final = ".part"
DIGEST_BYTES: Final = 64
LIBRARIES: Final = (
    "ai-edge-litert", "ai-edge-quantizer", "coremltools", "edgeml-toolkit", "keras", "litert-torch", "numpy", "onnx",
    "onnxruntime", "onnxscript", "onnxslim", "scikit-learn", "scipy", "skl2onnx", "tensorflow", "tensorflow-cpu", "tf2onnx",
    "tf_keras", "torch",
)  # fmt: skip


class Kept(msgspec.Struct, frozen=True):
    """What a job gave: its answer, and the file it wrote, if any."""

    answer: Any
    file: bytes | None = None


class Cache:
    """A folder of entries; without a folder it keeps nothing. A disk that refuses makes exports slower, never wrong."""

    def __init__(self, folder: Path | None, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def call(
        self, worker: Worker, job: str, depends: Mapping[str, object] | None, *, out: Path | None = None, **arguments: object
    ) -> tuple[Any, bool]:
        """(answer, whether it was kept) of a job, which writes `out`. What depends on nothing known (`None`) is not kept.

        Raises:
            EdgemlError: the job's; failures are not kept.
        """
        key = None if depends is None or self.folder is None else make_key(job, depends)
        kept = self.get(key) if key is not None else None
        if kept is not None and (kept.file is None) == (out is None):
            if out is not None and kept.file is not None:
                out.write_bytes(kept.file)
            return kept.answer, True
        answer = worker.call(job, **arguments, **({} if out is None else {"out": str(out)}))
        if key is not None:
            self.put(key, Kept(answer, None if out is None else out.read_bytes()))
        return answer, False

    def get(self, key: str) -> Kept | None:
        """The entry, if it is there and whole; a damaged one is removed."""
        if self.folder is None:
            return None
        path = self.folder / key
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        body = data[DIGEST_BYTES:]
        if data[:DIGEST_BYTES] == sha256_hex(body).encode():
            with suppress(msgspec.DecodeError):  # ValidationError is one: written by another version
                return msgspec.msgpack.decode(body, type=Kept)
        path.unlink(missing_ok=True)
        return None

    def put(self, key: str, kept: Kept) -> None:
        """Keep an entry, unless it is very large or the disk refuses."""
        body = msgspec.msgpack.encode(kept)
        if self.folder is None or len(body) > ENTRY_LIMIT_BYTES:
            return
        with suppress(OSError):  # a full or read-only disk: the export goes on without
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(suffix=PART, dir=self.folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(sha256_hex(body).encode() + body)
                Path(name).replace(self.folder / key)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
            self._bound()

    def _bound(self) -> None:
        assert self.folder is not None, "only a cache with a folder grows"
        found = list(_files(self.folder))
        for about, path in found:
            if path.suffix == PART and time.time() - about.st_mtime > ABANDONED_S:
                path.unlink(missing_ok=True)
        total = sum(about.st_size for about, _ in found)
        if total <= self.limit_bytes:
            return
        for about, path in sorted(found, key=lambda pair: pair[0].st_mtime_ns):
            if total <= KEPT_SHARE * self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= about.st_size


def _files(folder: Path) -> Iterator[tuple[os.stat_result, Path]]:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another export clears too
            yield path.lstat(), path


def default_cache() -> Cache:
    """In `~/.cache/edgeml`, or where `EDGEML_CACHE` says."""
    named = os.environ.get(PLACE)
    return Cache((Path(named) if named else Path.home() / ".cache" / "edgeml") / "conversions")


def make_key(job: str, depends: Mapping[str, object]) -> str:
    """The name of an entry: a digest of all that the job's answer depends on."""
    return sha256_hex(encode_json({"job": job, "depends": dict(depends), "by": _by()}))


@functools.cache
def _by() -> dict[str, str]:
    """This package's code, the libraries, the machine."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    root = Path(next(iter(edgeml.exporter.__path__)))
    listing = [f"{path.relative_to(root)} {identity(path)[0]}" for path in sorted(root.rglob("*.py"))]
    return found | {"code": sha256_hex("\n".join(listing).encode())}
