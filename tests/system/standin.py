"""A stand-in for the fleet service: real signed metadata over real HTTP, and switches for everything that can go wrong.

with Service(folder) as service:
    service.publish(bundle)              # signs and serves it
    service.want("toy", "1.0.0")         # a higher revision for every device
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp  # type: ignore[attr-defined]

from edgeml.runtime.bundle import open_bundle
from edgeml.wire.messages import Desired, Target, encode

TOKEN = "device-token"


class Repository:
    """TUF with one key for all roles, consistent snapshots."""

    def __init__(self) -> None:
        self._signer = CryptoSigner.generate_ed25519()
        self.files: dict[str, bytes] = {}
        self.targets_files: dict[str, bytes] = {}
        self._expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
        self._root = Metadata(Root(expires=self._expires + timedelta(days=300), consistent_snapshot=True))
        for role in ("root", "timestamp", "snapshot", "targets"):
            self._root.signed.add_key(self._signer.public_key, role)
        self._timestamp = Metadata(Timestamp(expires=self._expires))
        self._snapshot = Metadata(Snapshot(expires=self._expires))
        self._targets = Metadata(Targets(expires=self._expires))
        self.root = self._sign(self._root)
        self.files["1.root.json"] = self.root
        self.sign()

    def add(self, path: str, data: bytes, custom: dict[str, Any]) -> None:
        target = TargetFile.from_data(path, data, ["sha256"])
        target.unrecognized_fields["custom"] = custom
        self._targets.signed.targets[path] = target
        folder, _, name = path.rpartition("/")
        self.targets_files[f"{folder}/{target.hashes['sha256']}.{name}"] = data
        self._targets.signed.version += 1
        self.sign()

    def sign(self, *, expires: datetime | None = None) -> None:
        """Sign a new generation of metadata."""
        for metadata in (self._targets, self._snapshot, self._timestamp):
            metadata.signed.expires = (expires or self._expires).replace(microsecond=0)
        targets = self._sign(self._targets)
        self.files[f"{self._targets.signed.version}.targets.json"] = targets
        self._snapshot.signed.version += 1
        self._snapshot.signed.meta["targets.json"] = MetaFile(self._targets.signed.version)
        self.files[f"{self._snapshot.signed.version}.snapshot.json"] = self._sign(self._snapshot)
        self._timestamp.signed.version += 1
        self._timestamp.signed.snapshot_meta = MetaFile(self._snapshot.signed.version)
        self.files["timestamp.json"] = self._sign(self._timestamp)

    def _sign(self, metadata: Any) -> bytes:
        metadata.signatures.clear()
        metadata.sign(self._signer)
        data: bytes = metadata.to_bytes()
        return data


class Service:
    """Serves a repository, one desired document for all devices, and takes reports.

    Attributes:
        chunk_bytes, chunk_s: bodies of bundles go out in such pieces, such a time apart.
        target_bytes: body bytes of bundles sent so far.
        gives_ranges, ranges: whether a Range is heeded, and those that were: (first byte, byte after the last).
        reports: every report, by device and sequence number.
    """

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.repository = Repository()
        self.root = folder / "root.json"
        self.root.write_bytes(self.repository.root)
        self.desired = Desired(0, ())
        self.reports: dict[tuple[str, int], dict[str, Any]] = {}
        self.telemetry: dict[tuple[str, int], dict[str, Any]] = {}
        self.chunk_bytes, self.chunk_s = 1 << 20, 0.0
        self.target_bytes = 0
        self.gives_ranges = True
        self.ranges: list[tuple[int, int]] = []
        self.requests: list[str] = []
        self.samples: list[bytes] = []
        self.forgotten: list[int] = []  # numbers up to which a device asked to be forgotten
        self._port = port
        self._server: ThreadingHTTPServer | None = None
        self.heard = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def publish(self, bundle: Path) -> Target:
        with open_bundle(bundle) as opened:
            manifest = opened.manifest
        path = f"models/{manifest.name}/{manifest.version}.edgeml"
        custom = {
            "model": manifest.name,
            "version": manifest.version,
            "manifest_sha256": manifest.digest,
            "signature": manifest.signature.digest,
            "artifacts": [{"format": a.format, "precision": a.precision, "engine": ""} for a in manifest.artifacts],
        }
        self.repository.add(path, bundle.read_bytes(), custom)
        return Target(manifest.name, manifest.version, manifest.digest, path)

    def want(self, *targets: Target) -> int:
        self.desired = Desired(self.desired.rev + 1, targets)
        return self.desired.rev

    def states(self, rev: int) -> list[str]:
        """What was reported of a revision, in order of sequence numbers."""
        found = sorted((key[1], report["state"]) for key, report in self.reports.items() if report["rev"] == rev)
        return [state for _, state in found]

    def wait_for(self, rev: int, state: str, *, timeout_s: float = 30.0) -> dict[str, Any]:
        """The report of this state; fails the test if it never comes."""

        def found() -> dict[str, Any] | None:
            return next((r for r in self.reports.values() if r["rev"] == rev and r["state"] == state), None)

        with self.heard:
            assert self.heard.wait_for(lambda: found() is not None, timeout_s), f"no {state!r} of rev {rev}: {self.states(rev)}"
        report = found()
        assert report is not None
        return report

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), type("Handler", (_Handler,), {"service": self}))
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def hear(self, items: list[dict[str, Any]]) -> None:
        with self.heard:
            for item in items:
                kept = {"report": self.reports, "telemetry": self.telemetry}.get(item["kind"])
                if kept is not None:
                    kept[item["body"]["device"], item["body"]["seq"]] = item["body"]
            self.heard.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.service.requests.append(self.path)
        if self.path == "/v1/desired":
            return self._desired()
        if self.path.startswith("/tuf/metadata/"):
            return self._answer(self.service.repository.files.get(self.path.removeprefix("/tuf/metadata/")))
        return self._target(self.service.repository.targets_files.get(self.path.removeprefix("/tuf/targets/")))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer(None, status=401)
        if self.path == "/v1/samples":
            self.service.samples.append(body)
            return self._answer(b"")
        items = json.loads(body)
        if self.path == "/v1/forget":
            self.service.forgotten.append(items["before_seq"])
            return self._answer(b"")
        self.service.hear(items)
        return self._answer(json.dumps({"accepted": len(items)}).encode())

    def _desired(self) -> None:
        etag = f'"{self.service.desired.rev}"'
        if self.headers["If-None-Match"] == etag:
            return self._answer(b"", status=304)
        return self._answer(encode(self.service.desired), headers={"ETag": etag})

    def _target(self, data: bytes | None) -> None:
        if data is None:
            return self._answer(None)
        asked = self.headers.get("Range", "") if self.service.gives_ranges else ""
        first, _, last = (asked.removeprefix("bytes=") or "0-").partition("-")
        start, end = int(first), min(int(last or len(data)), len(data) - 1) + 1
        self.send_response(206 if asked else 200)
        if asked:
            self.service.ranges.append((start, end))
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        for begin in range(start, end, self.service.chunk_bytes):
            piece = data[begin : min(begin + self.service.chunk_bytes, end)]
            self.wfile.write(piece)
            self.service.target_bytes += len(piece)
            if self.service.chunk_s:
                threading.Event().wait(self.service.chunk_s)
        return None

    def _answer(self, data: bytes | None, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status if data is not None or status != 200 else 404)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if status != 304:
            self.wfile.write(data or b"")
