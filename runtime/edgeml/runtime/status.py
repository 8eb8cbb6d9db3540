"""What an agent is doing, in a file beside its data, for `edgeml agent status` and for people with an ssh session."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgeml.runtime.atomic import TEMPORARY_SUFFIX
from edgeml.runtime.board import Board, read_board
from edgeml.runtime.device import Device
from edgeml.runtime.host import Host
from edgeml.runtime.updater import Update
from edgeml.wire.contract import label
from edgeml.wire.errors import ConfigError
from edgeml.wire.messages import Drift
from edgeml.wire.structs import learn

FILE: Final = "status.json"
REWRITE_S: Final = 10.0  # even when nothing happened, so that a dead agent shows
WIDTH: Final = 100  # characters of a line that explains
DIGEST_CHARACTERS: Final = 12
MINUTE_S, HOUR_S = 60.0, 3600.0
_HEADINGS: Final = ("model", "answers with", "artifact", "calls", "errors", "update")
_NUMBERS: Final = {"calls", "errors"}


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
    artifact: str | None = None  # `tflite:int8`, of the version that answers
    calls: int = 0  # of that version, in this process
    errors: int = 0


class ErrandStatus(msgspec.Struct, frozen=True):
    """What else the agent has to bring to its service: samples, by what became of them, and a wish to be forgotten."""

    samples: dict[str, int] = {}
    problem: str | None = None
    is_forgetting: bool = False


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
    board: Board | None = None
    errands: ErrandStatus = ErrandStatus()


class StatusFile:
    """Writes the status of a device, not more than once a second."""

    def __init__(
        self,
        device: Device,
        *,
        pid: int,
        host: Host,
        errands: Callable[[], ErrandStatus],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device, self._pid, self._host, self._errands, self._clock = device, pid, host, errands, clock
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
            temporary.write_bytes(msgspec.json.encode(status_of(self._device, self._pid, self._host, self._errands())))
            temporary.replace(self._path)
        except OSError:  # only a window for people: a full disk must not stop the agent
            return


def status_of(device: Device, pid: int, host: Host, errands: ErrandStatus) -> Status:
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
        models=tuple(_model_status(device, update, host) for update in device.updates),
        board=read_board(),
        errands=errands,
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
    """One screen for a terminal: the device, then a line for each model with what is not as it should be below it."""
    age_s = max(0.0, now - status.at)
    lines = [
        f"device   {status.device}, pid {status.pid}, {_age(age_s)} ago",
        f"link     {status.link}",
        f"service  {status.service}",
        f"spool    {status.spool_rows} waiting, {status.spool_dropped} dropped",
    ]
    if status.board is not None and (words := _board_words(status.board)):
        lines.append(f"board    {words}")
    lines += _errand_lines(status.errands)
    if status.ignored:
        lines.append(f"ignored  {status.ignored} messages that were not what they claimed")
    if status.defects:
        lines.append(f"defects  {status.defects} errors that nothing foresaw; see the log")
    if not status.models:
        return "\n".join([*lines, "", "no model yet: give [models.NAME] a bundle, or roll one out"])
    rows = [_HEADINGS, *(_row(model) for model in status.models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(
            cell.rjust(width) if heading in _NUMBERS else cell.ljust(width)
            for cell, width, heading in zip(row, widths, _HEADINGS, strict=True)
        ).rstrip()
        for row in rows
    ]
    lines += ["", table[0]]
    for line, model in zip(table[1:], status.models, strict=True):
        lines.append(line)
        for text in filter(None, (_reason(model), _drift(model), model.note)):
            lines += textwrap.wrap(text, WIDTH, initial_indent="  ! ", subsequent_indent="    ")
    return "\n".join(lines)


def _errand_lines(errands: ErrandStatus) -> list[str]:
    lines = []
    if errands.samples:
        words = [f"{count} {word.replace('_', ' ')}" for word, count in errands.samples.items() if count or word == "waiting"]
        lines.append(f"samples  {', '.join(words)}")
    if errands.is_forgetting:
        lines.append("forget   erased here; the service is asked to forget what it has")
    if errands.problem is not None and (errands.samples or errands.is_forgetting):
        lines.append(f"  ! {errands.problem}")
    return lines


def _row(model: ModelStatus) -> tuple[str, ...]:
    answers = "nothing" if model.active_version is None else model.active_version
    if model.active is not None:
        answers += f" ({model.active[:DIGEST_CHARACTERS]})"
    update = "-"
    if model.stage is not None:
        update = f"{model.wanted or 'nothing'} {model.stage.replace('_', ' ')}, rev {model.rev}"
    return model.name, answers, model.artifact or "-", str(model.calls), str(model.errors), update


def _board_words(board: Board) -> str:
    words = [board.model] if board.model else []
    if board.hottest is not None:
        words.append(f"{board.hottest.celsius:.0f} °C")
    if board.throttled:
        words.append(f"now {', '.join(board.throttled)}")
    elif board.throttled_before:
        words.append(f"since its start {', '.join(board.throttled_before)}")
    return "; ".join(words)


def _age(seconds: float) -> str:
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE_S:.0f} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:.0f} h"


def _reason(model: ModelStatus) -> str | None:
    return None if model.code is None else f"{model.code}: {model.detail}"


def _drift(model: ModelStatus) -> str | None:
    alarms = [f"{stream} (PSI {drift.psi:.2f})" for stream, drift in model.drift.items() if drift.alarm]
    return f"drifts from its reference: {', '.join(alarms)}" if alarms else None


def _model_status(device: Device, update: Update, host: Host) -> ModelStatus:
    serving = host.serving(update.model)
    return ModelStatus(
        name=update.model,
        stage=update.stage,
        rev=update.rev,
        wanted=update.target.version if update.target else None,
        active=update.active,
        active_version=device.version(update.model, update.active),
        code=update.code,
        detail=update.detail,
        note=host.notes.get(update.model),
        artifact=None if serving is None else label(serving.model.artifact),
        calls=0 if serving is None else serving.runs,
        errors=0 if serving is None else serving.errors,
        drift=device.drift.get(update.model, ("", {}))[1],
    )


learn(__name__)
