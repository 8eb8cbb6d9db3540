"""What a failed handshake leaves behind: nothing."""

from __future__ import annotations

import gc
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from edgeml.runtime.tls import client_context


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that speaks no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"not TLS at all\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(10)


def test_a_broker_that_speaks_no_tls_leaves_no_socket_open(port: int) -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    client.tls_set_context(client_context(None, None, None))
    gc.collect()  # what other tests left is not ours
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        with pytest.raises(ssl.SSLError):
            client.connect("127.0.0.1", port)
        gc.collect()
    assert [str(one.message) for one in told if "unclosed <ssl.SSLSocket" in str(one.message)] == []
