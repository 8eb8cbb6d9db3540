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


class StatusFile:
    """Writes the status of a device, not more than once a second."""

    def __init__(self, device: Device, *, pid: int, notes: dict[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._device, self._pid, self._notes, self._clock = device, pid, notes, clock
        self._path = device.config.data / FILE
        self._written_at = -REWRITE_S

    def refresh(self) -> None:
        age_s = self._clock() - self._written_at
        if age_s < 1.0 or (age_s < REWRITE_S and not self._device.dirty):
            return
        self._device.dirty = False
        self._written_at = self._clock()
        temporary = self._path.with_name(FILE + TEMPORARY_SUFFIX)
        try:
            temporary.write_bytes(msgspec.json.encode(status_of(self._device, self._pid, self._notes)))
            temporary.replace(self._path)
        except OSError:  # only a window for people: a full disk must not stop the agent
            return


def status_of(device: Device, pid: int, notes: dict[str, str]) -> Status:
    conversation = device.conversation
    link = conversation.link
    if link is None:
        words = "no broker configured; polling" if conversation.poller is not None else "no fleet configured"
    elif link.connected:
        words = f"connected, MQTT {'5' if link.version == 5 else '3.1.1'}"
    else:
        words = f"down: {link.problem or 'connecting'}"
    return Status(
        device=device.id,
        pid=pid,
        at=time.time(),
        link=words,
        service=conversation.problem or "ok",
        spool_rows=len(device.spool),
        spool_dropped=device.spool.dropped,
        ignored=device.ignored,
        models=tuple(_model_status(device, update, notes.get(update.model)) for update in device.updates),
    )


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
    for model in status.models:
        wanted = f", wanted {model.wanted} ({model.stage})" if model.stage else ""
        digest = f" {model.active[:12]}" if model.active else ""
        lines.append(
            f"model    {model.name}  answers with {model.active_version or 'nothing'}{digest}{wanted}, rev {model.rev}"
        )
        lines += [f"         {text}" for text in (_reason(model), model.note) if text]
    return "\n".join(lines)


def _reason(model: ModelStatus) -> str | None:
    return None if model.code is None else f"{model.code}: {model.detail}"


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
    )
