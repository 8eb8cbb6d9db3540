"""TLS for what a device speaks to: whom it believes, and by which certificate it is known itself (mTLS)."""

from __future__ import annotations

import ssl
from pathlib import Path

from edgeml.runtime.config import AgentConfig, broker_address
from edgeml.wire.errors import ConfigError


def service_tls(config: AgentConfig) -> ssl.SSLContext | None:
    """For the service; `None` where it has no `https://`.

    Raises:
        ConfigError: as `client_context`.
    """
    table = config.service
    if table is None or not table.url.startswith("https:"):
        return None
    return client_context(*map(config.optional_path, (table.ca, table.cert, table.key)))


def broker_tls(config: AgentConfig) -> ssl.SSLContext | None:
    """For the broker; `None` where it has no `mqtts://`.

    Raises:
        ConfigError: as `client_context`.
    """
    table = config.broker
    if table is None or not broker_address(table.url)[2]:
        return None
    return client_context(*map(config.optional_path, (table.ca, table.cert, table.key)))


class _Socket(ssl.SSLSocket):
    """Closed when its handshake fails: paho would leave it to the garbage collector, one descriptor for each attempt."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise  # of a socket that does not block: it goes on
        except OSError:
            self.close()
            raise


def client_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """The system's authorities if `ca` is `None`; shows `cert` where the other side asks for one.

    Raises:
        ConfigError: a file that is missing or no PEM, a certificate without its key, or one that is not its.
    """
    if (cert is None) != (key is None):
        have, lack = ("cert", "key") if key is None else ("key", "cert")
        raise ConfigError(f"{have!r} without {lack!r}", hint=f'give both, or neither: {lack} = "….pem"')
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca {str(ca)!r} cannot be used: {error}", hint="give a PEM file") from error
    context.sslsocket_class = _Socket
    if cert is not None and key is not None:
        try:
            context.load_cert_chain(str(cert), str(key), password=lambda: "")  # never ask a terminal: an agent has none
        except (OSError, ssl.SSLError) as error:
            what = f"cert {str(cert)!r} with key {str(key)!r} cannot be used: {error}"
            raise ConfigError(what, hint="give PEM files; the key must not have a password") from error
    return context
