"""Inputs that the model was not sure of, kept for the fleet to look at. Off unless the device's owner has turned it on.

A call only decides and copies; a thread of its own redacts, packs and writes. What the redaction hook refuses, or fails on, is
dropped and counted: an input is never kept because something went wrong. The folder has a cap and drops the oldest.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, cast

import numpy as np

from edgeml.runtime.atomic import discard, write_file
from edgeml.runtime.backends import Array
from edgeml.runtime.config import SamplesTable
from edgeml.runtime.hook import load_hook
from edgeml.runtime.model import Model, Result, new_request_id
from edgeml.wire.contract import ITEM_BYTES
from edgeml.wire.errors import LinkError
from edgeml.wire.manifest import DType
from edgeml.wire.samples import TEXT_CHARACTERS, SampleHeader, SampleTensor, encode_sample

SUFFIX: Final = ".sample"
QUEUE: Final = 4  # inputs that wait for the thread; each is a copy
UNSURE: Final = "low_confidence"  # the fall-back's reason: the device's own score was too low, whatever the cloud said then
STOP_S: Final = 5.0

Redact = Callable[[dict[str, Array]], dict[str, Array] | None]
"""Gets a copy of a call's inputs; gives what may leave the device, or `None` if nothing may."""


class SampleFolder:
    """Samples on disk until they are sent, oldest first; thread-safe.

    Attributes:
        dropped: how many the cap took.
        epoch: how often it was emptied; a sample of an earlier epoch is not kept.
    """

    def __init__(self, folder: Path, *, cap_bytes: int) -> None:
        self._folder = folder
        self._cap_bytes = cap_bytes
        self._lock = threading.Lock()
        self._sizes = {path.stem: path.stat().st_size for path in sorted(folder.glob(f"*{SUFFIX}"))}  # ids sort by time
        self.dropped = self.epoch = 0

    def add(self, sample_id: str, data: bytes, epoch: int) -> bool:
        """Keep a sample; `False` if the disk would not take it, if it is larger than the cap, or of an earlier epoch."""
        with self._lock:
            if len(data) > self._cap_bytes or epoch != self.epoch:
                return False
            while sum(self._sizes.values()) + len(data) > self._cap_bytes:
                self._forget(next(iter(self._sizes)))
                self.dropped += 1
            try:
                write_file(self._path(sample_id), data)
            except OSError:
                return False
            self._sizes[sample_id] = len(data)
            return True

    def oldest(self) -> tuple[str, bytes] | None:
        """(id, bytes) of what is sent next."""
        with self._lock:
            while self._sizes:
                sample_id = next(iter(self._sizes))
                try:
                    return sample_id, self._path(sample_id).read_bytes()
                except OSError:
                    self._forget(sample_id)
        return None

    def remove(self, sample_id: str) -> None:
        with self._lock:
            self._forget(sample_id)

    def clear(self) -> None:
        with self._lock:
            self.epoch += 1
            for sample_id in list(self._sizes):
                self._forget(sample_id)
            for path in self._folder.glob(f"*{SUFFIX}*"):
                discard(path)

    def __len__(self) -> int:
        return len(self._sizes)

    def _forget(self, sample_id: str) -> None:
        self._sizes.pop(sample_id, None)
        discard(self._path(sample_id))

    def _path(self, sample_id: str) -> Path:
        return self._folder / f"{sample_id}{SUFFIX}"


class Sampler:
    """Picks samples; `offer` is called with every answer, takes microseconds and does not raise.

    Attributes:
        counts: `taken`, and what was not by reason: `busy`, `withheld` (by the hook), `redaction` (the hook failed),
            `too_large`, `disk`.
    """

    def __init__(
        self,
        table: SamplesTable,
        folder: SampleFolder,
        redact: Redact | None,
        *,
        chance: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._below, self._share = table.below, table.share
        self._folder = folder
        self._redact = redact
        self._chance, self._now = chance, now
        self._offers: queue.Queue[tuple[dict[str, Array], Result, str, int] | None] = queue.Queue(QUEUE)
        self.counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._work, name="edgeml-samples", daemon=True)
        self._thread.start()

    def offer(self, model: Model, inputs: Mapping[str, Array], result: Result) -> None:
        is_unsure = result.fallback == UNSURE or (result.score is not None and result.score < self._below)
        if not is_unsure or self._chance() >= self._share:
            return
        if self._offers.full():
            self.counts["busy"] += 1
            return
        copy = {name: np.array(array) for name, array in inputs.items()}
        try:
            self._offers.put_nowait((copy, result, model.digest, self._folder.epoch))
        except queue.Full:
            self.counts["busy"] += 1

    def drain(self) -> None:
        """Wait until everything that was offered is kept or dropped."""
        self._offers.join()

    def close(self) -> None:
        with contextlib.suppress(queue.Full):  # a hook that hangs: the thread ends with the process
            self._offers.put(None, timeout=STOP_S)
        self._thread.join(STOP_S)

    def _work(self) -> None:
        while (offer := self._offers.get()) is not None:
            self.counts[self._keep(*offer)] += 1
            self._offers.task_done()

    def _keep(self, inputs: dict[str, Array], result: Result, digest: str, epoch: int) -> str:
        try:
            shown = inputs if self._redact is None else self._redact(inputs)
            arrays = None if shown is None else {name: _plain(array) for name, array in shown.items()}
        except Exception:  # noqa: BLE001 - the owner's code: whatever it raises, the input stays here
            return "redaction"
        if not arrays:
            return "withheld"
        sample_id = new_request_id()
        header = SampleHeader(
            id=sample_id, at=self._now(), model=result.model, version=result.version, manifest_sha256=digest,
            tensors=tuple(SampleTensor(name, cast("DType", a.dtype.name), a.shape) for name, a in arrays.items()),
            request_id=result.request_id[:TEXT_CHARACTERS], score=result.score,
            label=result.label and result.label[:TEXT_CHARACTERS], fallback=result.fallback,
        )  # fmt: skip
        try:
            data = encode_sample(header, [array.tobytes() for array in arrays.values()])
        except LinkError:
            return "too_large"
        return "taken" if self._folder.add(sample_id, data, epoch) else "disk"


def sample_hook(table: SamplesTable, folder: Path) -> Redact | None:
    """What the settings name as `redact`, if they do.

    Raises:
        ConfigError: there is no such module or function.
    """
    return None if table.redact is None else load_hook("[samples] redact", table.redact, folder)


def _plain(array: object) -> Array:
    """Little-endian and row-major, of a type that a sample may have."""
    if not isinstance(array, np.ndarray) or array.dtype.name not in ITEM_BYTES:
        raise TypeError(f"a redacted input is {type(array).__name__}, not an array of numbers")
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
