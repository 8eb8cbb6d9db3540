"""`edgeml fleet serve`: the service behind HTTP, until a signal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn

from edgeml.fleet.api.app import build_app
from edgeml.fleet.config import Config
from edgeml.fleet.disk import PRIVATE, write_whole
from edgeml.fleet.service import Fleet
from edgeml.wire.errors import EnvironmentProblem

SHUTDOWN_S: Final = 3  # for requests in flight; a long poll is not worth more


def serve(config: Config, *, say: Callable[[str], None] = print) -> None:
    """Run until SIGINT or SIGTERM.

    Raises:
        EnvironmentProblem: a port is taken, another service uses the data folder, …
    """
    listener = bind(config.host, config.port)
    with contextlib.closing(listener), Fleet(config, say=say) as fleet:
        url = config.public_url or _url(listener)
        broker = fleet.broker.address.url if fleet.broker is not None else None
        place = config.places.address
        write_whole(place, json.dumps({"url": url, "broker": broker, "pid": os.getpid()}).encode(), PRIVATE)
        try:
            say(f"fleet service at {url}" + (f", broker ({fleet.broker.name}) at {broker}" if fleet.broker else ""))
            say(f"page at {url}/ (operator's key: {config.places.operator_key})")
            _run(fleet, listener)
        finally:
            place.unlink(missing_ok=True)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        EnvironmentProblem: the port is taken, or the address is not this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise EnvironmentProblem(
            f"port {port} on {host} cannot be had: {error.strerror}", hint="give another one with --port, or stop what uses it"
        ) from error
    return listener


class _Server(uvicorn.Server):
    """Ends on a signal without passing it on, so that the broker is stopped in order afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def end(*_: Any) -> None:
            self.should_exit = True

        before = {name: signal.signal(name, end) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def _run(fleet: Fleet, listener: socket.socket) -> None:
    config = uvicorn.Config(
        build_app(fleet),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
    _Server(config).run(sockets=[listener])
