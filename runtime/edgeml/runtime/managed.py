"""One model on a device: its update machine, whose state is stored before anything is done, and the rules of its pace.

A disk that takes nothing holds up the machine, not the device: events wait, in their order, and are tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime import updater
from edgeml.runtime.atomic import write_file
from edgeml.runtime.config import UpdateTable
from edgeml.runtime.install import Installer
from edgeml.runtime.updater import Policy, Update, step
from edgeml.runtime.window import Hold, hold, parse_windows

STATE_RETRY_S: Final = 5.0  # how often a full disk is asked again whether it takes the state


class Rules:
    """When a device may change versions: its settings, its clock, and its application's word.

    Args:
        note: keeps a problem (model, words) that stops nothing.
        now: Unix seconds.
        jitter: uniform in [0, 1).

    Attributes:
        postpone: asked before a new version is tested and switched to; true keeps it waiting.
    """

    def __init__(
        self, table: UpdateTable, *, note: Callable[[str, str], None], now: Callable[[], float], jitter: Callable[[], float]
    ) -> None:
        self._table = table
        self._policy = Policy(
            soak_s=table.soak_s,
            health_s=table.health_s,
            most_error_share=table.most_error_share,
            least_runs=table.least_runs,
            backoff_s=table.backoff_s,
            backoff_cap_s=table.backoff_cap_s,
            shadow_s=table.shadow_s,
            shadow_calls=table.shadow_calls,
            least_agreement=table.least_agreement,
            most_latency_ratio=table.most_latency_ratio,
        )
        self._windows = parse_windows(table.windows)
        self._note = note
        self._jitter = jitter
        self.now = now
        self.postpone: Callable[[], bool] = lambda: False

    def outcome(self, update: Update, event: updater.Event) -> updater.Outcome:
        now = self.now()
        return step(update, event, now, policy=self._policy, jitter=self._jitter(), hold=self._hold(update, now))

    def is_due(self, update: Update) -> bool:
        return updater.is_due(update, self.now(), self._policy)

    def _hold(self, update: Update, now: float) -> Hold | None:
        return hold(
            self._windows, now, is_postponed=self._is_postponed(update, now), again_s=self._table.postpone_s,
            blocks_download=not self._table.download_outside,
        )  # fmt: skip

    def _is_postponed(self, update: Update, now: float) -> bool:
        is_patient = update.held_since is None or now - update.held_since < self._table.most_postpone_s
        if update.stage not in {"downloading", "verified", "shadow"} or not is_patient:
            return False
        try:
            return self.postpone()
        except Exception as error:  # noqa: BLE001 - the application's code on our thread: its mistake must not end the agent
            self._note(update.model, f"postpone: {type(error).__name__}: {error}")
            return False


class Managed:
    """See the module. Belongs to the device's thread.

    Attributes:
        update: the machine's state, as stored.
        installer: carries out what the machine asks for.
    """

    def __init__(self, installer: Installer, path: Path, rules: Rules) -> None:
        self.installer = installer
        self.update = _stored(path, installer.model)
        self._path = path
        self._rules = rules
        self._unsaved: list[updater.Event] = []  # events whose outcome the disk would not take
        self._retry_at = 0.0

    def boot(self, event: updater.Event) -> Sequence[updater.Action]:
        """A step that a full disk must not hold up: without it the device would not answer."""
        update, actions = self._rules.outcome(self.update, event)
        self._save(update)
        self.update = update
        return actions

    def step(self, event: updater.Event) -> Sequence[updater.Action]:
        """What to do, now that the new state is stored; nothing while the disk does not take it."""
        if self._unsaved:
            self._unsaved.append(event)
            return ()
        update, actions = self._rules.outcome(self.update, event)
        if update != self.update and not self._save(update):
            self._unsaved.append(event)
            self._retry_at = self._rules.now() + STATE_RETRY_S
            return ()
        self.update = update
        return actions

    def due(self) -> Iterator[updater.Event]:
        """What has to be stepped by now: events that a full disk kept waiting, and time."""
        if self._unsaved and not 0 < self._retry_at - self._rules.now() <= STATE_RETRY_S:
            events, self._unsaved = self._unsaved, []
            yield from events
        if not self._unsaved and self._rules.is_due(self.update):
            yield updater.Tick()

    def _save(self, update: Update) -> bool:
        try:
            write_file(self._path, msgspec.json.encode(update))
        except OSError:
            return False
        return True


def _stored(path: Path, model: str) -> Update:
    """The machine's state as it was stored; a fresh one if there is none that can be read."""
    try:
        update = msgspec.json.decode(path.read_bytes(), type=Update)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return Update(model)
    return update if update.model == model else Update(model)
