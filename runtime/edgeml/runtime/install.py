"""Carries out what the update machine asks for one model: look up, download, check, store, test, switch.

Runs on a worker, one action at a time per device. Whatever goes wrong becomes an event for the machine; after it the slots are
as before, and the version that ran still runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from edgeml.runtime import reuse, updater
from edgeml.runtime.atomic import discard
from edgeml.runtime.delta import apply_delta, refused
from edgeml.runtime.fetch import Fetcher, Remote, Superseded, file_digest
from edgeml.runtime.reuse import Recipe, build, read_recipe
from edgeml.runtime.slots import Installed, Slots, storage_error
from edgeml.runtime.trust import Custom, Signed, Trust
from edgeml.wire.delta import delta_path
from edgeml.wire.errors import (
    BundleError,
    EdgemlError,
    EngineError,
    MissingExtraError,
    SelfTestError,
    UnsupportedError,
    UpdateError,
    WorkerError,
)
from edgeml.wire.messages import Target

SHORTCUT_FAILURES: Final = frozenset({"delta", "blobs", "download", "redirect", "disk_full"})  # the whole file may still help
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a version does since it was switched to; `problem` if its self-test fails now."""

    runs: int
    errors: int
    problem: str | None = None


class Engine(Protocol):
    """Whatever runs models on this device; the agent has a real one, a simulated fleet shares one."""

    def accepts(self, model: str, custom: Custom) -> None:
        """Refuse, before a byte is downloaded, what cannot work here.

        Raises:
            UpdateError: code `signature` or `no_variant`.
        """
        ...

    def check(self, model: str, path: Path) -> str:
        """Check every byte of a packed bundle; its manifest digest.

        Raises:
            BundleError: the bytes are not what the manifest promises.
        """
        ...

    def prepare(self, model: str, digest: str, path: Path) -> None:
        """Self-test where a crash harms nobody, then load beside and warm.

        Raises:
            EdgemlError: it cannot run here; what runs now is untouched.
        """
        ...

    def switch(self, model: str, digest: str | None, path: Path | None) -> None:
        """Answer with this version from the next call on; loads it if `prepare` has not.

        Raises:
            EdgemlError: it cannot be opened; what runs now goes on.
        """
        ...

    def run_beside(self, model: str, digest: str) -> None:
        """Show the version that was prepared the inputs of live calls too; what runs now goes on answering.

        Raises:
            EdgemlError: it is not prepared.
        """
        ...

    def compared(self, model: str, digest: str) -> updater.Tally | None:
        """What the version that runs beside did since the last time; `None` if it does not run."""
        ...

    def stop_beside(self, model: str) -> None:
        """Free the version that runs beside, if one does; `switch` needs no such call."""
        ...

    def vitals(self, model: str, digest: str) -> Vitals:
        """How the active version does."""
        ...

    def version(self, model: str, digest: str) -> str | None:
        """Of a loaded bundle, by its digest."""
        ...

    def note(self, model: str, problem: str) -> None:
        """Keep a problem that stops nothing, for people to see."""
        ...


@dataclass(frozen=True, slots=True)
class _Delta:
    """A delta, and the manifest digest of the version here that it starts from."""

    base: str
    remote: Remote


@dataclass(slots=True)
class Installer:
    """One model's worker.

    `factory` is the bundle the device was shipped with: its digest and path. `wanted` gives the digest that the machine wants
    at this moment, so that a superseded download stops.
    """

    model: str
    slots: Slots
    trust: Trust | None
    fetcher: Fetcher
    engine: Engine
    wanted: Callable[[], str | None]
    factory: tuple[str, Path] | None = None
    defects: int = 0

    def carry_out(self, action: updater.Work) -> updater.Event | None:
        """Do it; what the machine should know of the outcome. An error that no part foresaw fails the update, nothing more."""
        try:
            return self._carry_out(action)
        except Exception as error:
            self.defects += 1
            log.exception("%s of %r failed in a way that nothing foresaw", type(action).__name__, self.model)
            self.engine.note(self.model, f"internal: {error!r}")
            return _unforeseen(action, error)

    def _carry_out(self, action: updater.Work) -> updater.Event | None:
        match action:
            case updater.Fetch():
                return self.fetch(action.target, action.attempt)
            case updater.SelfTest():
                return self.self_test(action.digest, action.attempt)
            case updater.RunBeside():
                return self.run_beside(action.digest, action.attempt)
            case updater.Compare():
                return updater.Compared(action.digest, self.engine.compared(self.model, action.digest))
            case updater.StopBeside():
                self.engine.stop_beside(self.model)
            case updater.Switch():
                return self.switch(action.digest)
            case updater.CheckHealth():
                return self.health(action.digest)
            case updater.Prune():
                self.prune(action.keep)
        return None

    def fetch(self, target: Target, attempt: int) -> updater.Event | None:
        """Signed metadata, then bytes, then a slot. `None` if nobody wants it any more."""
        digest = target.manifest_sha256 or ""
        self.fetcher.moved_bytes = 0
        try:
            size_bytes = self._fetch(target, digest)
        except Superseded:
            return None
        except EdgemlError as error:
            return self._failure(digest, attempt, error)
        return updater.Fetched(digest, attempt, size_bytes, self.fetcher.moved_bytes)

    def self_test(self, digest: str, attempt: int) -> updater.Event:
        try:
            self.engine.prepare(self.model, digest, self.path(digest))
        except BundleError as error:
            return updater.Damaged(digest, str(error))
        except EdgemlError as error:
            return updater.Failed(digest, attempt, code_of(error), str(error), is_retryable(error))
        return updater.Tested(digest, attempt)

    def run_beside(self, digest: str, attempt: int) -> updater.Event | None:
        try:
            self.engine.run_beside(self.model, digest)
        except EdgemlError as error:
            return updater.Failed(digest, attempt, code_of(error), str(error), is_retryable(error))
        return None

    def switch(self, digest: str | None) -> updater.Event | None:
        try:
            self.engine.switch(self.model, digest, None if digest is None else self.path(digest))
            self.slots.activate(digest)
        except UpdateError:
            return None  # the pointer is only a sign for people; the stored state of the machine decides
        except EdgemlError as error:
            return None if digest is None else updater.Damaged(digest, str(error))
        return None

    def prune(self, keep: Sequence[str]) -> None:
        try:
            self.slots.prune(keep)
        except UpdateError:  # the pointer could not be written, so nothing was deleted; the download will say `disk_full`
            return

    def health(self, digest: str) -> updater.Event:
        vitals = self.engine.vitals(self.model, digest)
        return updater.Health(digest, vitals.runs, vitals.errors, vitals.problem)

    def path(self, digest: str) -> Path:
        """Where a version lies: its slot, or the factory bundle."""
        if self.factory is not None and digest == self.factory[0] and self.slots.find(digest) is None:
            return self.factory[1]
        return self.slots.path(digest)

    def _fetch(self, target: Target, digest: str) -> int:
        if self.trust is None:
            raise UpdateError("no service to trust is configured", code="untrusted", retryable=False)
        held = self.slots.find(digest)
        if held is not None:  # installed by an attempt that did not live to say so; `prepare` checks every byte again
            return held.bytes
        signed = self.trust.find(target.path or f"models/{target.model}/{target.version}.edgeml")
        _require_match(signed.custom, target)
        self.engine.accepts(self.model, signed.custom)
        remote = signed.remote
        part = self.slots.part(remote.digest)
        delta = self._delta(signed)
        self.slots.clear_downloads(remote.digest, *([] if delta is None else [delta.remote.digest]))
        self._build(delta, signed, part)
        have = part.stat().st_size if part.exists() else 0
        self.slots.require_space(max(remote.length_bytes - have, 0))
        self.fetcher.fetch(remote, part, stop=self._stop(signed))
        try:
            found = self.engine.check(self.model, part)
        except EdgemlError:
            discard(part)
            raise
        if found != digest:
            discard(part)
            raise UpdateError(f"the bundle is {found[:12]}, not {digest[:12]}", code="untrusted", retryable=False)
        self.slots.install(part, _installed(signed))
        self.slots.clear_pieces(remote.digest)
        return remote.length_bytes

    def _delta(self, signed: Signed) -> _Delta | None:
        """The smallest signed delta from a version that is here."""
        assert self.trust is not None
        custom = signed.custom
        found = ((base, self.trust.listed(delta_path(custom.model, custom.version, base))) for base in self._here())
        deltas = [_Delta(base, remote) for base, remote in found if remote is not None]
        return min(deltas, key=lambda delta: delta.remote.length_bytes, default=None)

    def _build(self, delta: _Delta | None, signed: Signed, part: Path) -> None:
        """Make `part` from what is here and as few bytes as can be.

        Where that would not save any, or goes wrong, the whole file is left to be downloaded.
        """
        remote = signed.remote
        lacking = max(remote.length_bytes - (part.stat().st_size if part.exists() else 0), 0)
        if delta is not None and delta.remote.length_bytes >= lacking:
            delta = None
        try:
            recipe = self._recipe(signed, lacking if delta is None else delta.remote.length_bytes)
            if recipe is not None:
                self.slots.require_space(remote.length_bytes + recipe.left_bytes)
                build(recipe, self.fetcher, part, stop=self._stop(signed), write=self.fetcher.write)
            elif delta is not None:
                self._rebuild(delta, signed, part)
            else:
                return
            if file_digest(part) != remote.digest:
                discard(part)
                raise refused("it makes another file than the signed one")
        except UpdateError as error:
            if error.code not in SHORTCUT_FAILURES:
                raise
            self.slots.clear_pieces(remote.digest)
            self.engine.note(self.model, f"{error}; the whole bundle was downloaded")
        if delta is not None:
            discard(self.slots.part(delta.remote.digest))

    def _recipe(self, signed: Signed, most_bytes: int) -> Recipe | None:
        """How to build the bundle out of its blobs, if that costs less than moving `most_bytes`."""
        here = [self.path(digest) for digest in self._here()]
        if not here or most_bytes < reuse.LEAST_BYTES:
            return None
        pieces, digest = self.slots.pieces(signed.remote.digest), signed.custom.manifest_sha256
        recipe = read_recipe(self.fetcher, signed.remote, digest, here, pieces, stop=self._stop(signed))
        return recipe if recipe.cost_bytes < most_bytes else None

    def _rebuild(self, delta: _Delta, signed: Signed, part: Path) -> None:
        remote = signed.remote
        packed = self.slots.part(delta.remote.digest)
        self.slots.require_space(remote.length_bytes + delta.remote.length_bytes)
        self.fetcher.fetch(delta.remote, packed, stop=self._stop(signed))
        apply_delta(
            packed, self.path(delta.base), part, write=self.fetcher.write,
            manifest_sha256=signed.custom.manifest_sha256, result_bytes=remote.length_bytes,
        )  # fmt: skip

    def _here(self) -> list[str]:
        """Manifest digests of the versions on this device."""
        factory = [] if self.factory is None else [self.factory[0]]
        return list(dict.fromkeys([*(slot.digest for slot in self.slots.installed), *factory]))

    def _stop(self, signed: Signed) -> Callable[[], bool]:
        return lambda: self.wanted() != signed.custom.manifest_sha256

    def _failure(self, digest: str, attempt: int, error: EdgemlError) -> updater.Event:
        code, moved = code_of(error), self.fetcher.moved_bytes
        if code in {"unreachable", "metadata_expired"}:
            return updater.Waiting(digest, attempt, code, str(error), moved)
        return updater.Failed(digest, attempt, code, str(error), is_retryable(error), moved)


def _unforeseen(action: updater.Work, error: Exception) -> updater.Event | None:
    """What a defect means for the update: what could not be done has failed; what could not be looked at is not healthy."""
    failure = storage_error(error) if isinstance(error, OSError) else None
    code, detail = ("internal", repr(error)) if failure is None else (failure.code, str(failure))
    match action:
        case updater.Fetch():
            return updater.Failed(action.target.manifest_sha256 or "", action.attempt, code, detail, retryable=True)
        case updater.SelfTest() | updater.RunBeside():
            return updater.Failed(action.digest, action.attempt, code, detail, retryable=True)
        case updater.Compare():
            return updater.Compared(action.digest, None)
        case updater.CheckHealth():
            return updater.Health(action.digest, 0, 0, f"{code}: {detail}")
        case updater.Switch():
            return None if action.digest is None else updater.Damaged(action.digest, f"{code}: {detail}")
        case updater.Prune() | updater.StopBeside():
            return None


def code_of(error: EdgemlError) -> str:
    """The stable word that reports carry for an error."""
    match error:
        case UpdateError():
            return error.code
        case SelfTestError():
            return "self_test"
        case BundleError():
            return "bundle"
        case UnsupportedError() | MissingExtraError():
            return "no_variant"
        case WorkerError():
            return "crash"
        case EngineError():
            return error.code
        case _:
            return "internal"


def is_retryable(error: EdgemlError) -> bool:
    return error.retryable if isinstance(error, UpdateError) else code_of(error) == "internal"


def _installed(signed: Signed) -> Installed:
    custom = signed.custom
    return Installed(custom.manifest_sha256, custom.version, signed.remote.digest, signed.remote.length_bytes)


def _require_match(custom: Custom, target: Target) -> None:
    """The service may only choose among what is signed: what it says must be what the signature says."""
    said = (target.model, target.version, target.manifest_sha256)
    signed = (custom.model, custom.version, custom.manifest_sha256)
    if said != signed:
        raise UpdateError(f"the service says {said}, the signature says {signed}", code="untrusted", retryable=False)
