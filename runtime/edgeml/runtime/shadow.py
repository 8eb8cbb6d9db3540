"""Shadow: a new version answers some of the live inputs too, on a thread that no call waits for; the old answer is given.

Counted are the answers that agree, the errors, and the time of both versions on the same inputs. The thread is polite: it has a
share of one core and leaves out samples beyond it, and the system prefers every other thread of the process.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from msgspec.structs import asdict

from edgeml.runtime.backends import Array
from edgeml.runtime.model import Model, Result
from edgeml.runtime.update import Tally
from edgeml.wire.errors import EdgemlError
from edgeml.wire.manifest import Manifest
from edgeml.wire.messages import ShadowCounts

QUEUE: Final = 4  # samples that wait; each holds a copy of its inputs
REGRESSION_SHARE: Final = 0.05  # of the largest served value: two numbers nearer than this agree
NICENESS: Final = 10
STOP_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class _Sample:
    inputs: dict[str, Array]
    served: dict[str, Array]
    served_s: float


class Shadow:
    """Runs `model` beside another version. Thread-safe.

    Args:
        model: the new version.
        owned: close it with the shadow; a version that is to answer next must outlive it.
        share: of the calls.
        cpu_share: of one core, over any longer time.
        clock, chance: of `time.monotonic` and `random.random`.
    """

    def __init__(
        self,
        model: Model,
        *,
        share: float,
        cpu_share: float,
        owned: bool = True,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.model = model
        self._share, self._cpu_share, self._owned = share, cpu_share, owned
        self._clock, self._chance = clock, chance
        self._samples: queue.SimpleQueue[_Sample | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._debt_s = 0.0  # core seconds used beyond the share; no sample is taken while there are any
        self._debt_at = clock()
        self._total = self._taken = Tally()
        self._thread = threading.Thread(target=self._work, name="edgeml-shadow", daemon=True)
        self._thread.start()

    def run(self, inputs: Mapping[str, Array], request_id: str | None, champion: Callable[[str | None], Result]) -> Result:
        """The champion's answer; the new version may see the inputs later."""
        result = champion(request_id)
        if result.source == "device" and self._chance() < self._share:
            self._offer(inputs, result)
        return result

    @property
    def total(self) -> Tally:
        """Everything that was counted."""
        with self._lock:
            return self._total

    def take(self) -> ShadowCounts | None:
        """What was counted since the last time; `None` if nothing was."""
        manifest = self.model.manifest
        with self._lock:
            counts, self._taken = self._total.minus(self._taken), self._total
        if counts == Tally():
            return None
        return ShadowCounts(version=manifest.version, manifest_sha256=manifest.digest, **asdict(counts))

    def drain(self) -> None:
        """Wait until every sample that was taken is counted."""
        done = threading.Event()
        while not done.wait(0.001):
            with self._lock:
                if self._waiting == 0:
                    done.set()

    def retire(self) -> None:
        """End the thread, and close the model if it is ours."""
        self._samples.put(None)
        self._thread.join(STOP_S)
        if self._owned:
            self.model.close()

    def _offer(self, inputs: Mapping[str, Array], result: Result) -> None:
        with self._lock:
            now = self._clock()
            self._debt_s = max(0.0, self._debt_s - self._cpu_share * (now - self._debt_at))
            self._debt_at = now
            if self._debt_s > 0.0 or self._waiting >= QUEUE:
                self._total = self._total.plus(Tally(skipped=1))
                return
            self._waiting += 1
        served = {name: array.copy() for name, array in result.outputs.items()}
        self._samples.put(_Sample({name: array.copy() for name, array in inputs.items()}, served, result.latency_s))

    def _work(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (sample := self._samples.get()) is not None:
            started = self._clock()
            try:
                result = self.model.run(sample.inputs)
            except EdgemlError:
                self._count(None, sample, self._clock() - started)
            else:
                self._count(result, sample, self._clock() - started)

    def _count(self, result: Result | None, sample: _Sample, took_s: float) -> None:
        counts = Tally(errors=1)
        if result is not None:
            agreed = agree(self.model.manifest, sample.served, result.outputs)
            counts = Tally(runs=1, agreed=int(agreed), served_s=sample.served_s, shadow_s=result.latency_s)
        with self._lock:
            self._waiting -= 1
            self._debt_s += took_s
            self._total = self._total.plus(counts)


def agree(manifest: Manifest, served: Mapping[str, Array], beside: Mapping[str, Array]) -> bool:
    """The same class for every sample, or, without classes, every number within REGRESSION_SHARE of the largest one served."""
    if manifest.task == "classify" and manifest.post is not None:
        one, other = served[manifest.post.output], beside[manifest.post.output]
        if one.shape[-1] == 1:
            cut = 0.0 if manifest.post.activation == "sigmoid" else 0.5  # where p = 0.5
            return bool(((one >= cut) == (other >= cut)).all())
        return bool((one.argmax(axis=-1) == other.argmax(axis=-1)).all())
    for name, values in served.items():
        limit = REGRESSION_SHARE * float(np.abs(values.astype(np.float64)).max(initial=0.0))
        if not bool((np.abs(values.astype(np.float64) - beside[name].astype(np.float64)) <= limit).all()):
            return False
    return True
