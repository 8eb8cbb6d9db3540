"""Take what devices say, over MQTT or HTTP alike, exactly once; count and drop what no honest device would send.

Nothing here answers or raises for a bad payload: one hostile device must not stop the batch that others are in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from edgeml.fleet.store import Store, devices, forgotten, messages
from edgeml.wire.errors import LinkError
from edgeml.wire.messages import Message, Report, State, Telemetry, decode

KINDS: Final = ("report", "telemetry", "state")
_LARGEST: Final = (1 << 63) - 1  # what a database's integer holds
_LATEST: Final = 1e11  # Unix seconds; a clock beyond the year 5000 is a broken one
_ENTRIES: Final = 256  # keys of one dictionary, classes of one model
_TEXT: Final = 256  # characters of a key or code


@dataclass(frozen=True, slots=True)
class Inbound:
    """A payload and who sent it: the device that the topic or the token names."""

    device: str
    kind: str
    payload: bytes


class Ingest:
    """Payloads to rows.

    `taken` counts messages by kind, `dropped` by reason, both since the service started; `duplicates` are counted apart.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self.taken: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.duplicates = 0

    def take(self, batch: Sequence[Inbound]) -> int:
        """Store a batch in one transaction; gives how many messages were accepted, repeated ones included."""
        now = self._clock()
        with self._store.read() as connection:
            known = devices.known(connection, {inbound.device for inbound in batch})
        parsed = [message for inbound in batch if (message := self._parse(inbound, known)) is not None]
        if not parsed:
            return 0
        with self._store.write() as connection:
            still = devices.known(connection, {message.device for message in parsed})  # one may have been removed meanwhile
            parsed = [message for message in parsed if message.device in still]
            parsed = self._without_forgotten(parsed, forgotten.floors(connection, still))
            new = 0
            for message in parsed:
                match message:
                    case Report():
                        new += messages.add_report(connection, message, now)
                    case Telemetry():
                        new += messages.add_telemetry(connection, message, now)
                    case State():
                        new += 1
                        self._present(connection, message)
            devices.seen(connection, {message.device: now for message in parsed if not _is_will(message)})
        self.taken.update(type(message).__name__.lower() for message in parsed)
        self.duplicates += len(parsed) - new
        return len(parsed)

    def _without_forgotten(self, parsed: list[Message], floors: dict[str, int]) -> list[Message]:
        """A device that was forgotten may have had messages under way."""
        if not floors:
            return parsed
        kept = [m for m in parsed if isinstance(m, State) or m.seq > floors.get(m.device, -1)]
        self.dropped["forgotten"] += len(parsed) - len(kept)
        return kept

    def _present(self, connection: Connection, state: State) -> None:
        if devices.present(connection, state) and state.online:
            for model, slots in state.slots.items():
                for slot in slots:
                    if slot.active:
                        messages.set_installed(connection, state.device, model, slot.version, slot.manifest_sha256)

    def _parse(self, inbound: Inbound, known: set[str]) -> Message | None:
        try:
            return _check(inbound, known)
        except LinkError as error:
            self.dropped[error.what] += 1
            return None


def _check(inbound: Inbound, known: set[str]) -> Message:
    """Raises `LinkError` with the reason to count the payload under."""
    if inbound.kind not in KINDS:
        raise LinkError("unknown kind")
    if inbound.device not in known:
        raise LinkError("unknown device")
    message = _decode(inbound)
    if message.device != inbound.device:
        raise LinkError("another device's name")
    if not _is_sane(message):
        raise LinkError("impossible numbers")
    return message


def _decode(inbound: Inbound) -> Message:
    try:
        match inbound.kind:
            case "report":
                return decode(Report, inbound.payload)
            case "telemetry":
                return decode(Telemetry, inbound.payload)
            case _:
                return decode(State, inbound.payload)
    except LinkError as error:
        raise LinkError("not a message") from error


def _is_will(message: Message) -> bool:
    """A last will is the broker speaking: the device was not seen."""
    return isinstance(message, State) and not message.online


def _is_sane(message: Message) -> bool:
    if not 0 <= message.session <= _LARGEST:
        return False
    match message:
        case Report():
            counts = [message.seq, message.rev, message.downloaded_bytes]
            times = [message.at]
            texts = [message.version, message.rollout, message.code, message.detail]
            return (
                _fit(counts, times) and all(len(text) <= 4 * _TEXT for text in texts if text) and len(message.slots) <= _ENTRIES
            )
        case Telemetry():
            tables = (message.errors, message.fallbacks, message.inputs, message.drift)
            buckets = list(message.latency.buckets.values()) if message.latency else []
            counts = [
                message.seq,
                message.runs,
                *buckets,
                *message.classes,
                *message.errors.values(),
                *message.fallbacks.values(),
            ]
            counts += list(message.confidence.counts) if message.confidence else []
            for sketch in message.inputs.values():
                counts += [sketch.calls, *sketch.counts, sketch.nan, sketch.outside, sketch.constant]
            counts += [drift.calls for drift in message.drift.values()]
            few = all(len(table) <= _ENTRIES and all(len(key) <= _TEXT for key in table) for table in tables)
            return few and _fit(counts, [message.start, message.seconds])
        case State():
            entries = (message.engines, message.tags, message.models, message.slots)
            return _fit([message.rev, message.ram_bytes], [message.at]) and all(len(entry) <= _ENTRIES for entry in entries)


def _fit(counts: Sequence[int], times: Sequence[float]) -> bool:
    # The sum must fit too: it is what is stored.
    return all(count >= 0 for count in counts) and sum(counts) <= _LARGEST and all(0 <= time <= _LATEST for time in times)
