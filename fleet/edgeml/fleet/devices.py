"""Enrolment: a device gets an id and a token, shown once; the service keeps only hashes of it.

The token is what the device says over HTTPS (`Authorization: Bearer …`) and its password at the broker. It carries 256 random
bits, so a plain hash is enough and PBKDF2 needs no more rounds than the broker's own tool uses.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgeml.fleet.store import Store, devices, events, forgotten
from edgeml.fleet.store.devices import NewDevice
from edgeml.wire.errors import ServiceError, UsageError

DEVICE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # safe in a topic, a file name and a broker's file
SERVICE_USER: Final = "edgeml-service"
PROBE_USER: Final = "edgeml-probe"
BULK_LIMIT: Final = 10_000
TAG_LIMIT: Final = 16
TAG_CHARACTERS: Final = 128
_ROUNDS: Final = 101  # mosquitto_passwd's own number


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device and its token; the only time the token is seen."""

    id: str
    token: str


class Inventory:
    """Who may speak.

    Args:
        store: keeps the devices.
        passwords_changed: called after a commit that changed who may connect to the broker.
    """

    def __init__(self, store: Store, passwords_changed: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._passwords_changed = passwords_changed

    def enrol(self, ids: Sequence[str], tags: Mapping[str, str], now: float, actor: str) -> list[Enrolled]:
        """Enrol all of `ids`, or none.

        Raises:
            UsageError: an id or tag that cannot be used, or an id twice.
            ServiceError: (409) an id is taken.
        """
        check_ids(ids)
        check_tags(tags)
        enrolled = [Enrolled(device, new_token()) for device in ids]
        rows = [NewDevice(one.id, token_sha256(one.token), password_hash(one.token), dict(tags)) for one in enrolled]
        with self._store.write() as connection:
            taken = devices.add(connection, rows, now)
            if taken:
                raise ServiceError(
                    f"device {taken[0]!r} is enrolled already",
                    status=409,
                    hint="give another id, or use `devices renew`",
                )
            subject = ids[0] if len(ids) == 1 else f"{ids[0]} … {ids[-1]}"
            body = {"count": len(ids), "tags": dict(tags)}
            events.append(connection, at=now, actor=actor, kind="enrolled", subject=subject, body=body)
        self._passwords_changed()
        return enrolled

    def renew(self, device: str, now: float, actor: str) -> Enrolled:
        """Give a device a new token; the old one ends.

        Raises:
            ServiceError: (404) there is no such device.
        """
        token = new_token()
        with self._store.write() as connection:
            if not devices.renew_token(connection, device, token_sha256(token), password_hash(token)):
                raise no_device(device)
            events.append(connection, at=now, actor=actor, kind="token renewed", subject=device)
        self._passwords_changed()
        return Enrolled(device, token)

    def remove(self, device: str, now: float, actor: str) -> None:
        """Forget a device and all it said.

        Raises:
            ServiceError: (404) there is no such device.
        """
        with self._store.write() as connection:
            if not devices.remove(connection, device):
                raise no_device(device)
            events.append(connection, at=now, actor=actor, kind="removed", subject=device)
        self._passwords_changed()

    def forget(self, device: str, before_seq: int | None, samples: int, now: float, actor: str) -> dict[str, int]:
        """Delete what a device said, up to a sequence number (`None`: all); it stays enrolled. Gives what was deleted.

        `samples` of it were deleted beside. Again is no news: only a change is written into the audit.

        Raises:
            UsageError: a number that cannot be.
            ServiceError: (404) there is no such device.
        """
        if before_seq is not None and not 0 <= before_seq < 1 << 63:
            raise UsageError("before_seq", expected="a sequence number", got=str(before_seq))
        with self._store.write() as connection:
            if not devices.known(connection, [device]):
                raise no_device(device)
            reports, windows = forgotten.forget(connection, device, before_seq, now)
            found = {"reports": reports, "telemetry": windows, "samples": samples}
            if any(found.values()):
                events.append(connection, at=now, actor=actor, kind="forgotten", subject=device, body=found)
        return found

    def set_tags(self, device: str, tags: Mapping[str, str], now: float, actor: str) -> None:
        """Replace the operator's tags of a device.

        Raises:
            UsageError: a tag that cannot be used.
            ServiceError: (404) there is no such device.
        """
        check_tags(tags)
        with self._store.write() as connection:
            if not devices.set_tags(connection, device, dict(tags)):
                raise no_device(device)
            events.append(connection, at=now, actor=actor, kind="tagged", subject=device, body=dict(tags))

    def authenticate(self, token: str) -> str | None:
        """The device whose token this is."""
        with self._store.read() as connection:
            return devices.by_token(connection, token_sha256(token))


def no_device(device: str) -> ServiceError:
    return ServiceError(f"there is no device {device!r}", status=404, hint="see `edgeml fleet devices list`")


def check_ids(ids: Sequence[str]) -> None:
    if not 0 < len(ids) <= BULK_LIMIT:
        raise UsageError("devices to enrol", expected=f"1 to {BULK_LIMIT} at once", got=str(len(ids)))
    for device in ids:
        if not DEVICE_ID.fullmatch(device):
            raise UsageError(f"device id {device!r}", expected="1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit")
        if device in {SERVICE_USER, PROBE_USER}:
            raise UsageError(f"device id {device!r} is the service's own", hint="give another id")
    if len(set(ids)) != len(ids):
        twice = next(device for device in ids if ids.count(device) > 1)
        raise UsageError(f"device id {twice!r} is given twice")


def check_tags(tags: Mapping[str, str]) -> None:
    if len(tags) > TAG_LIMIT:
        raise UsageError("tags", expected=f"at most {TAG_LIMIT}", got=str(len(tags)))
    for key, value in tags.items():
        if not 0 < len(key) <= TAG_CHARACTERS or len(value) > TAG_CHARACTERS or not (key + value).isprintable():
            raise UsageError(f"tag {key[:20]!r}", expected=f"1 to {TAG_CHARACTERS} printable characters", got=f"{value[:20]!r}")


def new_token() -> str:
    return secrets.token_urlsafe(32)


def token_sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def password_hash(password: str) -> str:
    """As a Mosquitto password file has it: `$7$rounds$salt$hash`, PBKDF2 with HMAC-SHA512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ROUNDS)
    return f"$7${_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def password_fits(password: str, stored: str) -> bool:
    _, kind, rounds, salt, digest = stored.split("$")
    assert kind == "7"
    computed = hashlib.pbkdf2_hmac("sha512", password.encode(), base64.b64decode(salt), int(rounds))
    return hmac.compare_digest(computed, base64.b64decode(digest))
