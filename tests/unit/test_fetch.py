"""What a hostile or broken server may do to a download, and what lies on disk afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3

from edgeml.runtime.fetch import Fetcher, Remote, Superseded
from edgeml.wire.errors import UpdateError

BODY = bytes(range(256)) * 1024  # 256 KiB
SHA = hashlib.sha256(BODY).hexdigest()

Answer = Callable[[socket.socket, dict[str, str]], None]


class Server:
    """Answers each connection's one request as the test's function says, byte by byte."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[dict[str, str]] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def remote(self, length: int = len(BODY), sha256: str = SHA) -> Remote:
        return Remote(f"http://127.0.0.1:{self.port}/file", length, sha256)

    def close(self) -> None:
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            lines = connection.recv(65536).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
            self.requests.append({"": lines[0], **headers})
            try:
                self.answer(connection, headers)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                return


def respond(connection: socket.socket, status: str, headers: dict[str, str], body: bytes = b"") -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection.sendall(f"HTTP/1.1 {status}\r\n{lines}Connection: close\r\n\r\n".encode() + body)


def always(status: str, headers: dict[str, str]) -> Answer:
    return lambda connection, _: respond(connection, status, headers)


def honest(connection: socket.socket, headers: dict[str, str]) -> None:
    start = int(headers.get("range", "bytes=0-")[6:-1])
    ranged = {"Content-Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if start else {}
    respond(
        connection, "206 Partial" if start else "200 OK", {"Content-Length": str(len(BODY) - start), **ranged}, BODY[start:]
    )


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "x.part"


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    with urllib3.PoolManager(retries=False) as pool:
        yield Fetcher(pool, stall_s=0.5)


Serve = Callable[[Answer], Server]


def test_a_download_is_the_file(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    fetcher.fetch(serve(honest).remote(), part)
    assert part.read_bytes() == BODY
    assert fetcher.moved_bytes == len(BODY)


def test_a_broken_connection_leaves_a_part_that_the_next_try_completes(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    def breaks(connection: socket.socket, headers: dict[str, str]) -> None:
        respond(connection, "200 OK", {"Content-Length": str(len(BODY))}, BODY[:100_000])

    with pytest.raises(UpdateError) as caught:
        fetcher.fetch(serve(breaks).remote(), part)
    assert caught.value.code == "unreachable"
    assert part.read_bytes() == BODY[:100_000]
    server = serve(honest)
    fetcher.moved_bytes = 0
    fetcher.fetch(server.remote(), part)
    assert server.requests[0]["range"] == "bytes=100000-"
    assert part.read_bytes() == BODY
    assert fetcher.moved_bytes == len(BODY) - 100_000


def test_a_server_that_ignores_range_is_read_from_the_start(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    part.write_bytes(b"wrong" * 1000)
    fetcher.fetch(serve(lambda connection, _: honest(connection, {})).remote(), part)
    assert part.read_bytes() == BODY


def test_a_complete_part_is_only_hashed(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    part.write_bytes(BODY)
    server = serve(honest)
    fetcher.fetch(server.remote(), part)
    assert server.requests == []


@pytest.mark.parametrize("is_chunked", [False, True], ids=["until close", "chunked"])
def test_an_endless_body_is_cut_at_the_promised_length(serve: Serve, fetcher: Fetcher, part: Path, is_chunked: bool) -> None:
    def endless(connection: socket.socket, headers: dict[str, str]) -> None:
        respond(connection, "200 OK", {"Transfer-Encoding": "chunked"} if is_chunked else {})
        piece = bytes(32768)
        while True:
            connection.sendall(b"8000\r\n" + piece + b"\r\n" if is_chunked else piece)

    with pytest.raises(UpdateError, match="more than") as caught:
        fetcher.fetch(serve(endless).remote(), part)
    assert caught.value.code == "download"
    assert not part.exists()
    assert fetcher.moved_bytes <= len(BODY) + 64 * 1024


def test_a_longer_announcement_is_refused_before_its_body(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    def long(connection: socket.socket, headers: dict[str, str]) -> None:
        respond(connection, "200 OK", {"Content-Length": str(len(BODY) + 1)}, b"")

    with pytest.raises(UpdateError, match="announces 262145 bytes, 262144 are signed"):
        fetcher.fetch(serve(long).remote(), part)
    assert fetcher.moved_bytes == 0


def test_bytes_of_another_hash_are_deleted(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    with pytest.raises(UpdateError, match="another sha256") as caught:
        fetcher.fetch(serve(honest).remote(sha256="0" * 64), part)
    assert (caught.value.code, caught.value.retryable) == ("download", True)
    assert not part.exists()


def test_a_server_that_drips_is_given_up(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    def drip(connection: socket.socket, headers: dict[str, str]) -> None:
        respond(connection, "200 OK", {"Content-Length": str(len(BODY))})
        pause = threading.Event()
        while True:
            connection.sendall(b"x")
            pause.wait(0.05)

    with pytest.raises(UpdateError, match=r"bytes in 0 s|bytes in 1 s") as caught:
        fetcher.fetch(serve(drip).remote(), part)
    assert caught.value.code == "unreachable"


def test_a_server_that_never_answers_is_given_up(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    given_up = threading.Event()

    def silent(connection: socket.socket, headers: dict[str, str]) -> None:
        given_up.wait(10)

    with pytest.raises(UpdateError) as caught:
        fetcher.fetch(serve(silent).remote(), part)
    given_up.set()
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize("location", ["http://localhost:1/x", "https://127.0.0.1/x", "ftp://x/y", ""])
def test_a_redirect_to_elsewhere_is_refused(serve: Serve, fetcher: Fetcher, part: Path, location: str) -> None:
    server = serve(always("302 Found", {"Location": location, "Content-Length": "0"}))
    with pytest.raises(UpdateError, match="redirects to") as caught:
        fetcher.fetch(server.remote(), part)
    assert (caught.value.code, caught.value.retryable) == ("redirect", False)


def test_a_redirect_loop_ends(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    server = serve(always("302 Found", {"Location": "/file", "Content-Length": "0"}))
    with pytest.raises(UpdateError, match="more than 3 times"):
        fetcher.fetch(server.remote(), part)


@pytest.mark.parametrize(
    ("status", "code"), [("503 Busy", "unreachable"), ("404 Not Found", "download"), ("403 No", "download")]
)
def test_a_refusal_says_whether_waiting_helps(serve: Serve, fetcher: Fetcher, part: Path, status: str, code: str) -> None:
    with pytest.raises(UpdateError) as caught:
        fetcher.fetch(serve(always(status, {"Content-Length": "0"})).remote(), part)
    assert caught.value.code == code


def test_a_range_that_was_not_asked_for_is_refused(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    part.write_bytes(BODY[:1000])

    def shifted(connection: socket.socket, headers: dict[str, str]) -> None:
        respond(
            connection, "206 Partial", {"Content-Range": "bytes 999-9999/262144", "Content-Length": "9001"}, BODY[999:10_000]
        )

    with pytest.raises(UpdateError, match="another range"):
        fetcher.fetch(serve(shifted).remote(), part)
    assert part.read_bytes() == BODY[:1000]


def test_a_disk_that_fills_up_leaves_no_part(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    left = [100_000]

    def write(descriptor: int, data: memoryview) -> int:
        if left[0] < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(data)
        return os.write(descriptor, data)

    fetcher.write = write
    with pytest.raises(UpdateError) as caught:
        fetcher.fetch(serve(honest).remote(), part)
    assert (caught.value.code, caught.value.retryable) == ("disk_full", True)
    assert not part.exists()


def test_a_superseded_download_stops_and_keeps_its_part(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    with pytest.raises(Superseded):
        fetcher.fetch(serve(honest).remote(), part, stop=lambda: True)
    assert 0 < part.stat().st_size < len(BODY)


def test_a_capped_download_takes_its_time_and_no_more(serve: Serve, fetcher: Fetcher, part: Path) -> None:
    """256 KiB at 64 KiB a second, on a clock that only the waiting moves: four seconds, less the wait after the last piece."""
    now = [0.0]
    fetcher.clock = lambda: now[0]
    fetcher.sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)
    fetcher.bytes_per_s = 64 * 1024
    fetcher.fetch(serve(honest).remote(), part)
    assert part.read_bytes() == BODY
    assert 3.0 <= now[0] <= 4.0
