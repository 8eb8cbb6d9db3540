"""`scripts/models` against a server on this machine."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "models"
FILES: dict[str, tuple[str, str]] = runpy.run_path(str(SCRIPT))["FILES"]


@dataclass
class Upstream:
    url: str
    content: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path[1:])
            body = state.content.get(self.path[1:])
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Upstream(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def run(into: Path, upstream: Upstream) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--into", str(into), "--upstream", upstream.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_file_with_other_bytes_is_refused_and_not_kept(tmp_path: Path, upstream: Upstream) -> None:
    upstream.content = {source: b"not the model" for source, _ in FILES.values()}
    result = run(tmp_path, upstream)
    assert result.returncode == 6
    assert "ad_autoencoder.h5" in result.stderr
    assert "Traceback" not in result.stderr
    assert files_in(tmp_path) == set()


def test_an_upstream_that_is_down_is_said_in_one_line(tmp_path: Path) -> None:
    result = run(tmp_path, Upstream("http://127.0.0.1:1"))
    assert result.returncode == 6
    assert "run scripts/models again" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.published
def test_finished_files_are_kept_when_a_download_breaks_off(tmp_path: Path, upstream: Upstream, models_dir: Path) -> None:
    served = {source: (models_dir / name).read_bytes() for name, (source, _) in FILES.items()}
    last = "visual_wake_words/trained_models/vww_96.h5"
    upstream.content = {source: body for source, body in served.items() if source != last}
    assert run(tmp_path, upstream).returncode == 6
    assert len(files_in(tmp_path)) == len(FILES) - 1

    upstream.content, upstream.asked = served, []
    result = run(tmp_path, upstream)
    assert result.returncode == 0, result.stderr
    assert files_in(tmp_path / "mlperf-tiny") == set(FILES)
    assert set(upstream.asked) == {last}
