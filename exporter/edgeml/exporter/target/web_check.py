"""Serves a page on loopback and hears from it what it found; `--check` opens it in a headless Chromium."""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import msgspec

from edgeml.wire.errors import EnvironmentProblem

RECORD_LIMIT_BYTES: Final = 1 << 20
CHECK_LIMIT_S: Final = 180.0
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
HEADERS: Final = {
    "Cross-Origin-Opener-Policy": "same-origin",  # these two let a page have threads
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


class PageOutput(msgspec.Struct, frozen=True):
    """`None` where a number was not finite."""

    name: str
    max_abs: float | None
    tolerance: float
    rms: float | None = None
    rms_limit: float | None = None
    bias: float | None = None
    bias_limit: float | None = None


class PageArtifact(msgspec.Struct, frozen=True):
    """What one artifact did; only status and reason where it could not be run."""

    artifact: str
    status: Literal["pass", "fail"]
    reason: str = ""
    samples: int = 0
    failed: int = 0
    outputs: tuple[PageOutput, ...] = ()
    agreement: float | None = None
    least_agreement: float = 0.0
    load_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    calls: int = 0


class PageRecord(msgspec.Struct, frozen=True):
    """What a page found out in the browser that opened it."""

    digest: str
    threads: int
    engine: str
    agent: str
    isolated: bool
    status: Literal["pass", "fail"]
    artifacts: tuple[PageArtifact, ...]
    reason: str = ""


@dataclass(slots=True)
class Server:
    """A folder on loopback; `records` gets what pages tell that were opened by `url`."""

    url: str
    records: queue.Queue[PageRecord] = field(default_factory=queue.Queue)


@contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[Server]:
    """Serve until the block ends.

    Raises:
        EnvironmentProblem: the port is taken.
    """
    token = secrets.token_urlsafe(16)
    server = Server("")
    handler = partial(_Handler, directory=str(folder), told=server.records.put, place=f"/result/{token}")
    try:
        listener = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise EnvironmentProblem(f"port {port} cannot be had: {error.strerror}", hint="give another --port") from error
    server.url = f"http://127.0.0.1:{listener.server_port}/?tell={token}"
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Handler(SimpleHTTPRequestHandler):
    """Static files, and one address that takes a record."""

    extensions_map: ClassVar[dict[str, str]] = {  # type: ignore[misc]  # typeshed has it on instances
        **SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm",
    }  # fmt: skip

    def __init__(self, *arguments: Any, told: Any, place: str, **named: Any) -> None:
        self._told, self._place = told, place
        super().__init__(*arguments, **named)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def do_POST(self) -> None:
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            size = -1
        if self.path != self._place or not 0 <= size <= RECORD_LIMIT_BYTES:
            self.send_error(404)
            return
        try:
            record = msgspec.json.decode(self.rfile.read(size), type=PageRecord)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.send_error(400)
            return
        self._told(record)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def find_browser() -> Path:
    """A Chromium, or EDGEML_CHROMIUM.

    Raises:
        EnvironmentProblem: there is none.
    """
    given = os.environ.get("EDGEML_CHROMIUM")
    found = given or next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None or not Path(found).exists():
        raise EnvironmentProblem(
            "no Chromium here", hint="install chromium, set EDGEML_CHROMIUM, or open the page yourself with --serve"
        )
    return Path(found)


def check(folder: Path) -> tuple[PageRecord, str]:
    """The page's record from a headless Chromium, and the browser's name with its version.

    Raises:
        EnvironmentProblem: there is no browser, or it gave no record in time.
    """
    browser = find_browser()
    said = subprocess.run([browser, "--version"], capture_output=True, text=True, check=False).stdout.split()
    version = next((word for word in said if word[:1].isdigit()), "of unknown version")
    with serve(folder) as server, tempfile.TemporaryDirectory(prefix="edgeml-web-", ignore_cleanup_errors=True) as profile:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to sandbox root
        options = ["--headless=new", *sandbox, "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        command = [str(browser), *options, server.url]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
            try:
                record = server.records.get(timeout=CHECK_LIMIT_S)
            except queue.Empty:
                raise EnvironmentProblem(f"{browser.name} {version} gave no result in {CHECK_LIMIT_S:.0f} s") from None
            finally:
                process.terminate()
                process.wait()
    return record, f"{browser.name} {version}"
