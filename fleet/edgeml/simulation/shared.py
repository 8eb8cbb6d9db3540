"""One engine for a whole simulated fleet: each version is loaded and self-tested once, every device counts for itself.

Every device still downloads, checks and stores its own bundle; what the fleet shares is the memory of the loaded model and,
after the check, the disk blocks of equal files (hard links).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeml.runtime.backends import Array
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.choose import Board, this_board
from edgeml.runtime.install import Vitals, code_of
from edgeml.runtime.model import Model, Result, load
from edgeml.runtime.shadow import agree
from edgeml.runtime.telemetry import Window
from edgeml.runtime.trust import Custom
from edgeml.runtime.update import Tally
from edgeml.wire.errors import BundleError, EdgemlError, EngineError, InputError, UpdateError
from edgeml.wire.messages import State, Telemetry

Feed = dict[str, Array]


class Models:
    """Loaded versions by manifest digest, for all devices of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[str, Model | EdgemlError] = {}
        self._files: dict[str, Path] = {}
        self.board: Board = this_board()

    def model(self, digest: str, path: Path) -> Model:
        """The loaded version; the first device to ask runs its golden vectors, the others get the same verdict.

        Raises:
            EdgemlError: it does not run here.
        """
        with self._lock:
            if digest not in self._loaded:
                try:
                    self._loaded[digest] = load(path)
                except BundleError:
                    raise  # this device's file is at fault, not the version
                except EdgemlError as error:
                    self._loaded[digest] = error
            found = self._loaded[digest]
        if isinstance(found, EdgemlError):
            raise found
        return found

    def loaded(self, digest: str) -> Model:
        """A version that some device prepared.

        Raises:
            EngineError: none did.
        """
        found = self._loaded.get(digest)
        if not isinstance(found, Model):
            raise EngineError(f"{digest[:12]} is not prepared")
        return found

    def share(self, digest: str, path: Path) -> None:
        """Let equal files be one on disk."""
        with self._lock:
            first = self._files.setdefault(digest, path)
        if first == path:
            return
        linked = path.with_suffix(".linked")
        with contextlib.suppress(OSError):  # the first one has been pruned, or the file system has no links: keep our own
            os.link(first, linked)
            linked.replace(path)

    def close(self) -> None:
        for found in self._loaded.values():
            if isinstance(found, Model):
                found.close()


@dataclass(slots=True)
class _Serving:
    """What one device did with one version."""

    model: Model
    window: Window
    runs: int = 0
    errors: int = 0


@dataclass(slots=True)
class _Beside:
    """A version that sees what another one answers, and what was counted since it was asked about."""

    model: Model
    tally: Tally = field(default_factory=Tally)


def _named(feed: Feed, model: Model) -> Feed:
    """`x` stands for the input of a model that has one."""
    inputs = model.manifest.signature.inputs
    return {inputs[0].name: feed["x"]} if len(inputs) == 1 and feed.keys() == {"x"} else feed


class SharedEngine:
    """Engine and sensor of one simulated device.

    Args:
        feeds: what this device sees, over and over.
    """

    def __init__(self, models: Models, feeds: Sequence[Feed], *, now: Callable[[], float] = time.time) -> None:
        self._models = models
        self._feeds = feeds
        self._next = 0
        self._now = now
        self._serving: dict[str, _Serving] = {}
        self._left: list[_Serving] = []
        self._beside: dict[str, _Beside] = {}
        self.runs = 0
        self.refused_inputs = 0

    def run_once(self) -> None:
        """Feed the next sample to every model of this device."""
        if not self._feeds:
            return
        feed = self._feeds[self._next % len(self._feeds)]
        self._next += 1
        for serving in list(self._serving.values()):
            self._run(serving, feed)

    def _run(self, serving: _Serving, feed: Feed) -> None:
        self.runs += 1
        try:
            result = serving.model.run(_named(feed, serving.model))
            serving.window.record(result)
            self._compare(serving.model, result, feed)
        except InputError:
            self.refused_inputs += 1
            serving.window.record_error("input")
            return
        except EdgemlError as error:
            serving.errors += 1
            serving.window.record_error(code_of(error))
        serving.runs += 1

    def accepts(self, model: str, custom: Custom) -> None:
        serving = self._serving.get(model)
        if serving is not None and custom.signature not in {None, serving.model.manifest.signature.digest}:
            raise UpdateError(f"{model} {custom.version} has other inputs or outputs", code="signature", retryable=False)
        if custom.artifacts and not any(variant.format in self._models.board.engines for variant in custom.artifacts):
            raise UpdateError(f"nothing of {model} {custom.version} runs here", code="no_variant", retryable=False)

    def check(self, model: str, path: Path) -> str:
        with open_bundle(path) as bundle:
            if bundle.manifest.name != model:
                raise BundleError("model of the bundle", expected=repr(model), got=repr(bundle.manifest.name))
            return bundle.digest

    def prepare(self, model: str, digest: str, path: Path) -> None:  # noqa: ARG002 - the protocol's
        self._models.model(digest, path)
        self._models.share(digest, path)

    def run_beside(self, model: str, digest: str) -> None:
        self._beside[model] = _Beside(self._models.loaded(digest))

    def compared(self, model: str, digest: str) -> Tally | None:
        beside = self._beside.get(model)
        if beside is None or beside.model.digest != digest:
            return None
        tally, beside.tally = beside.tally, Tally()
        return tally

    def stop_beside(self, model: str) -> None:
        self._beside.pop(model, None)

    def _compare(self, served: Model, result: Result, feed: Feed) -> None:
        beside = self._beside.get(served.name)
        if beside is None:
            return
        try:
            other = beside.model.run(_named(feed, beside.model))
        except EdgemlError:
            beside.tally = beside.tally.plus(Tally(errors=1))
            return
        agreed = agree(beside.model.manifest, result.outputs, other.outputs)
        counts = Tally(runs=1, agreed=int(agreed), served_s=result.latency_s, shadow_s=other.latency_s)
        beside.tally = beside.tally.plus(counts)

    def switch(self, model: str, digest: str | None, path: Path | None) -> None:
        old = self._serving.get(model)
        if old is not None and digest == old.model.digest:
            return
        self._beside.pop(model, None)
        if digest is None or path is None:
            self._serving.pop(model, None)
        else:
            loaded = self._models.model(digest, path)
            self._serving[model] = _Serving(loaded, Window(loaded.manifest, self._now()))
        if old is not None:
            self._left.append(old)

    def vitals(self, model: str, digest: str) -> Vitals:
        serving = self._serving.get(model)
        if serving is None or serving.model.digest != digest:
            return Vitals(0, 0, "the version is not loaded")
        return Vitals(serving.runs, serving.errors)

    def version(self, model: str, digest: str) -> str | None:
        serving = self._serving.get(model)
        return serving.model.version if serving is not None and serving.model.digest == digest else None

    def note(self, model: str, problem: str) -> None:
        """A simulated device has no factory bundle to have problems with."""

    def describe(self) -> State:
        return State(
            device="",
            session=0,
            online=True,
            runtime="simulated",
            arch=self._models.board.arch,
            engines={engine.name: engine.version for engine in self._models.board.engines.values()},
            ram_bytes=self._models.board.ram_bytes,
            models={name: serving.model.manifest.signature.digest for name, serving in list(self._serving.items())},
        )

    def windows(self, device: str, session: int, next_seq: Callable[[], int]) -> Iterator[Telemetry]:
        left, self._left = self._left, []
        now = self._now()
        for serving in [*left, *list(self._serving.values())]:
            counts = serving.window.take(now)
            if not (counts.is_empty and serving in left):
                yield counts.telemetry(device, session, next_seq())
