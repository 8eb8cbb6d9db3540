"""What every broker is to the service, whoever runs it: an address, and who may connect. `brokers.py` chooses one."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from edgeml.fleet.devices import SERVICE_USER
from edgeml.wire.errors import ConfigError, EnvironmentProblem

_CONNECT_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Address:
    """How the service itself connects. `tls` is `mqtts://`."""

    host: str
    port: int
    user: str | None = None
    password: str | None = None
    tls: bool = False

    @property
    def url(self) -> str:
        """What devices are told: no user, no password."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


class Broker(Protocol):
    """A broker for the service's life time."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> Address: ...

    def start(self, passwords: Mapping[str, str]) -> None:
        """Serve devices (id -> password hash) and the service.

        Raises:
            EnvironmentProblem: it cannot, with the way out.
        """
        ...

    def admit(self, passwords: Mapping[str, str]) -> None:
        """From now on, exactly these devices may connect; returns when that holds."""
        ...

    def check(self) -> bool:
        """Start it again if it died; gives whether it did."""
        ...

    def stop(self) -> None: ...


def parse_address(text: str) -> Address:
    """Read `mqtt://user:password@host:port` (or `mqtts://`).

    Raises:
        ConfigError: it is not one; the password is not repeated in the message.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError("the broker's address", expected="mqtt://user:password@host:port") from error
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
        raise ConfigError("the broker's address", expected="mqtt://user:password@host:port", got=f"scheme {parts.scheme!r}")
    tls = parts.scheme == "mqtts"
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    return Address(parts.hostname, port or (8883 if tls else 1883), user, password, tls)


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def refuse_taken_port(host: str, port: int) -> None:
    """Raises `EnvironmentProblem` if something listens on the port that the broker is to have."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EnvironmentProblem(
                f"the broker's port {port} on {host} cannot be had: {error.strerror}", hint="give another one with --mqtt-port"
            ) from error


def admits(address: Address, user: str, password: str) -> bool:
    """Whether a broker answers at `address` and lets this user in: one MQTT 3.1.1 CONNECT, then DISCONNECT."""
    fields = [user.encode(), user.encode(), password.encode()]  # client id, user name, password
    body = b"\x00\x04MQTT\x04\xc2\x00\x0a" + b"".join(len(field).to_bytes(2, "big") + field for field in fields)
    try:
        with socket.create_connection((address.host, address.port), timeout=_CONNECT_TIMEOUT_S) as connection:
            connection.sendall(b"\x10" + _length(len(body)) + body)
            answer = connection.recv(4)
            connection.sendall(b"\xe0\x00")
    except OSError:
        return False
    return answer[:1] == b"\x20" and answer[3:4] == b"\x00"


def service_address(host: str, port: int, password: str) -> Address:
    return Address(host, port, SERVICE_USER, password)


def _length(size: int) -> bytes:
    """MQTT 3.1.1, 2.2.3: seven bits a byte, the high bit says that more follow."""
    encoded = b""
    while True:
        size, digit = divmod(size, 128)
        encoded += bytes([digit | 0x80 if size else digit])
        if not size:
            return encoded
