"""Samples that devices were allowed to send: files in a folder, by device and id, under a cap and for so many days.

    samples/<device>/<id>.sample

The folder is all there is: it is read when the service starts. A file is as it came, checked against its own header and never
unpacked here. Over the cap, the device with most bytes loses its oldest: one that is never sure cannot push out the others.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from edgeml.fleet.disk import PRIVATE, private_folder, write_whole
from edgeml.wire.errors import LinkError
from edgeml.wire.samples import HEADER_LIMIT_BYTES, SampleHeader, decode_sample, read_header
from edgeml.wire.structs import learn

SUFFIX: Final = ".sample"
DAY_S: Final = 86_400.0
log = logging.getLogger(__name__)


class SampleRow(msgspec.Struct, frozen=True):
    """A sample as it is listed. `received_at` is Unix seconds of the service's clock."""

    device: str
    received_at: float
    bytes: int
    header: SampleHeader


class SampleSums(msgspec.Struct, frozen=True):
    """What is kept, in numbers."""

    samples: int
    bytes: int
    devices: int
    by_model: dict[str, int]


class SampleStore:
    """See the module. Thread-safe.

    Args:
        folder: made if absent; what is no sample in it is left alone.
    """

    def __init__(self, folder: Path, *, cap_bytes: int, days: float) -> None:
        self._folder, self._cap_bytes, self._days = folder, cap_bytes, days
        self._lock = threading.Lock()
        self._rows: dict[str, SampleRow] = {}  # oldest first
        self._bytes: Counter[str] = Counter()  # by device
        for path in sorted(folder.glob(f"*/*{SUFFIX}"), key=lambda path: path.stat().st_mtime):
            self._read(path)

    def take(self, device: str, data: bytes, now: float) -> bool:
        """Keep a sample; `False` if it is here already, or if this service keeps none.

        Raises:
            LinkError: it is not a sample.
        """
        header, _ = decode_sample(data)
        with self._lock:
            if header.id in self._rows or len(data) > self._cap_bytes:
                return False
            row = SampleRow(device, now, len(data), header)
            self._make_room(len(data))
            private_folder(self._folder / device)
            write_whole(self._path(row), data, PRIVATE)
            self._add(row)
            return True

    def listed(self, *, device: str | None = None, model: str | None = None, limit: int | None = None) -> list[SampleRow]:
        """The newest first."""
        with self._lock:
            rows = [row for row in reversed(self._rows.values()) if _fits(row, device, model)]
        return rows[:limit]

    def sums(self) -> SampleSums:
        with self._lock:
            by_model = Counter(row.header.model for row in self._rows.values())
            devices = sum(size > 0 for size in self._bytes.values())
            return SampleSums(len(self._rows), self.bytes, devices, dict(sorted(by_model.items())))

    def read(self, sample_id: str) -> bytes | None:
        """A sample's bytes as they came."""
        with self._lock:
            row = self._rows.get(sample_id)
        if row is None:
            return None
        with contextlib.suppress(OSError):
            return self._path(row).read_bytes()
        return None

    def delete(self, sample_ids: Iterable[str]) -> int:
        """How many there were."""
        with self._lock:
            return sum(self._remove(sample_id) for sample_id in list(sample_ids))

    def forget(self, device: str) -> int:
        """Delete everything of a device; how many samples there were."""
        with self._lock:
            count = sum(self._remove(row.header.id) for row in list(self._rows.values()) if row.device == device)
            shutil.rmtree(self._folder / device, ignore_errors=True)
            return count

    def expire(self, now: float) -> int:
        """Delete what is older than it may become."""
        with self._lock:
            old = [row.header.id for row in self._rows.values() if now - row.received_at > self._days * DAY_S]
            return sum(self._remove(sample_id) for sample_id in old)

    @property
    def bytes(self) -> int:
        return self._bytes.total()

    def _make_room(self, size: int) -> None:
        while self._rows and self.bytes + size > self._cap_bytes:
            [(largest, _)] = self._bytes.most_common(1)
            self._remove(next(row.header.id for row in self._rows.values() if row.device == largest))

    def _add(self, row: SampleRow) -> None:
        self._rows[row.header.id] = row
        self._bytes[row.device] += row.bytes

    def _remove(self, sample_id: str) -> int:
        row = self._rows.pop(sample_id, None)
        if row is None:
            return 0
        self._bytes[row.device] -= row.bytes
        self._path(row).unlink(missing_ok=True)
        return 1

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                header = read_header(file.read(HEADER_LIMIT_BYTES + 16))
            state = path.stat()
        except (OSError, LinkError) as error:
            log.warning("%s is left alone: %s", path, error)
            return
        self._add(SampleRow(path.parent.name, state.st_mtime, state.st_size, header))

    def _path(self, row: SampleRow) -> Path:
        return self._folder / row.device / f"{row.header.id}{SUFFIX}"


def _fits(row: SampleRow, device: str | None, model: str | None) -> bool:
    return device in {None, row.device} and model in {None, row.header.model}


learn(__name__)
