"""What an agent is doing, in a file beside its data, for `edgeml agent status` and for people with an ssh session."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.atomic import TEMPORARY_SUFFIX
from edgeml.runtime.device import Device
from edgeml.runtime.updater import Update
from edgeml.wire.errors import ConfigError
from edgeml.wire.messages import Drift

FILE: Final = "status.json"
REWRITE_S: Final = 10.0  # even when nothing happened, so that a dead agent shows


class ModelStatus(msgspec.Struct, frozen=True):
    name: str
    stage: str | None
    rev: int
    wanted: str | None  # version
    active: str | None  # manifest digest
    active_version: str | None
    code: str | None = None
    detail: str | None = None
    note: str | None = None
    drift: dict[str, Drift] = {}  # by stream, the newest comparison with the bundle's reference


class Status(msgspec.Struct, frozen=True):
    device: str
    pid: int
    at: float  # Unix seconds
    link: str  # in words
    service: str
    spool_rows: int
    spool_dropped: int
    ignored: int
    models: tuple[ModelStatus, ...]
    defects: int = 0


class StatusFile:
    """Writes the status of a device, not more than once a second."""

    def __init__(self, device: Device, *, pid: int, notes: dict[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._device, self._pid, self._notes, self._clock = device, pid, notes, clock
        self._path = device.config.data / FILE
        self._written_at = -REWRITE_S
        self._link = ""

    def refresh(self) -> None:
        age_s = self._clock() - self._written_at
        if age_s < 1.0:
            return
        link = _link_words(self._device)
        if age_s < REWRITE_S and not self._device.dirty and link == self._link:
            return
        self._device.dirty, self._link = False, link
        self._written_at = self._clock()
        temporary = self._path.with_name(FILE + TEMPORARY_SUFFIX)
        try:
            temporary.write_bytes(msgspec.json.encode(status_of(self._device, self._pid, self._notes)))
            temporary.replace(self._path)
        except OSError:  # only a window for people: a full disk must not stop the agent
            return


def status_of(device: Device, pid: int, notes: dict[str, str]) -> Status:
    conversation = device.conversation
    return Status(
        device=device.id,
        pid=pid,
        at=time.time(),
        link=_link_words(device),
        service=conversation.problem or "ok",
        spool_rows=len(device.spool),
        spool_dropped=device.spool.dropped,
        ignored=device.ignored,
        defects=device.defects,
        models=tuple(_model_status(device, update, notes.get(update.model)) for update in device.updates),
    )


def _link_words(device: Device) -> str:
    link = device.conversation.link
    if link is None:
        return "no broker configured; polling" if device.conversation.poller is not None else "no fleet configured"
    if link.connected:
        return f"connected, MQTT {'5' if link.version == 5 else '3.1.1'}"
    return f"down: {link.problem or 'connecting'}"


def read_status(data: Path) -> Status:
    """The status an agent left.

    Raises:
        ConfigError: there is none, or it is not one.
    """
    path = data / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Status)
    except OSError as error:
        hint = "start the agent: edgeml agent run --config agent.toml"
        raise ConfigError(f"no status in {str(path)!r}: {error.strerror}", hint=hint) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not a status file: {error}") from error


def screen(status: Status, now: float) -> str:
    """One screen for a terminal."""
    age_s = max(0.0, now - status.at)
    lines = [
        f"device   {status.device}  (pid {status.pid}, {age_s:.0f} s ago)",
        f"link     {status.link}",
        f"service  {status.service}",
        f"spool    {status.spool_rows} waiting, {status.spool_dropped} dropped",
    ]
    if status.defects:
        lines.append(f"defects  {status.defects} errors that nothing foresaw; see the log")
    for model in status.models:
        wanted = f", wanted {model.wanted} ({model.stage})" if model.stage else ""
        digest = f" {model.active[:12]}" if model.active else ""
        lines.append(
            f"model    {model.name}  answers with {model.active_version or 'nothing'}{digest}{wanted}, rev {model.rev}"
        )
        lines += [f"         {text}" for text in (_reason(model), _drift(model), model.note) if text]
    return "\n".join(lines)


def _reason(model: ModelStatus) -> str | None:
    return None if model.code is None else f"{model.code}: {model.detail}"


def _drift(model: ModelStatus) -> str | None:
    alarms = [f"{stream} (PSI {drift.psi:.2f})" for stream, drift in model.drift.items() if drift.alarm]
    return f"drifts from its reference: {', '.join(alarms)}" if alarms else None


def _model_status(device: Device, update: Update, note: str | None) -> ModelStatus:
    return ModelStatus(
        name=update.model,
        stage=update.stage,
        rev=update.rev,
        wanted=update.target.version if update.target else None,
        active=update.active,
        active_version=device.version(update.model, update.active),
        code=update.code,
        detail=update.detail,
        note=note,
        drift=device.drift.get(update.model, ("", {}))[1],
    )
