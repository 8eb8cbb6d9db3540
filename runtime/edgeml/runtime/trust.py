"""What may run here, as signed metadata says: a TUF client for metadata only; bytes are downloaded by `fetch`.

Expired or unreachable metadata blocks installing, never inference. The clock has a floor, the latest moment at which metadata
was found fresh: a clock that falls back behind it (a dead battery) does not make old metadata fresh again. The floor cannot run
ahead by more than the metadata's own life, since only a successful refresh moves it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
import urllib3

from edgeml.runtime.atomic import write_file
from edgeml.runtime.fetch import Remote, unreachable
from edgeml.runtime.slots import storage_error
from edgeml.wire.errors import ConfigError, UpdateError
from edgeml.wire.manifest import Name, Sha256, Version

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]  # re-exported, documented there
    from tuf.ngclient.updater import Updater

METADATA_TIMEOUT_S: Final = 10.0
METADATA_CHUNK_BYTES: Final = 64 * 1024
METADATA_SECONDS: Final = 60.0  # for one file, however it drips
MOST_BUNDLE_BYTES: Final = 0xFFFF_FFFE  # a packed bundle is no zip64
TOP_LEVEL: Final = ("timestamp", "snapshot", "targets")


class Variant(msgspec.Struct, frozen=True):
    format: str
    precision: str
    engine: str = ""


class Custom(msgspec.Struct, frozen=True):
    """What the publisher signs beside length and hash. `signature` is the digest of the bundle's inputs and outputs."""

    model: Name
    version: Version
    manifest_sha256: Sha256
    signature: Sha256 | None = None
    artifacts: tuple[Variant, ...] = ()


class Signed(msgspec.Struct, frozen=True):
    """A bundle that signed, fresh metadata lists."""

    remote: Remote
    custom: Custom


class Trust:
    """One device's view of the repository.

    Args:
        folder: for metadata and the clock's floor; made if absent.
        service_url: where `/tuf/metadata/` and `/tuf/targets/` are.
        root: the root metadata the device was given; the trust anchor.
    """

    def __init__(
        self, folder: Path, service_url: str, root: bytes, *, pool: urllib3.PoolManager, now: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._base = service_url.rstrip("/")
        self._root = root
        self._pool = pool
        self._now = now
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, path: str) -> Signed:
        """Refresh the metadata and look a bundle up.

        Raises:
            UpdateError: `unreachable` or `metadata_expired` (wait), `untrusted` or `unlisted` (refused).
        """
        from tuf.api.exceptions import DownloadError, ExpiredMetadataError, RepositoryError

        try:
            updater = self._updater()
            updater.refresh()
            self._require_fresh()
            found = updater.get_targetinfo(path)
        except ExpiredMetadataError as error:
            raise _expired(str(error)) from error
        except RepositoryError as error:
            raise UpdateError(f"metadata does not verify: {error}", code="untrusted", retryable=False) from error
        except (DownloadError, urllib3.exceptions.HTTPError) as error:
            raise unreachable(f"metadata: {error.__cause__ or error}") from error
        except OSError as error:
            raise storage_error(error) from error
        if found is None:
            raise UpdateError(f"{path!r} is not in the signed metadata", code="unlisted", retryable=False)
        return self._signed(found)

    def floor(self) -> float:
        """Unix seconds that the true time is not before."""
        try:
            return float((self._folder / "floor").read_text())
        except (OSError, ValueError):
            return 0.0

    def _updater(self) -> Updater:
        from tuf.api.exceptions import RepositoryError
        from tuf.ngclient.updater import Updater

        try:
            return Updater(str(self._folder), f"{self._base}/tuf/metadata/", fetcher=_fetcher(self._pool), bootstrap=self._root)
        except (ValueError, RepositoryError) as error:
            raise ConfigError(f"TUF root cannot be used: {error}", hint="give the root.json of your fleet") from error

    def _require_fresh(self) -> None:
        """Hold the metadata against the floor too: ngclient only looks at the clock."""
        now = self._now()
        at = max(now, self.floor())
        for role in ("root", *TOP_LEVEL):
            document = json.loads((self._folder / f"{role}.json").read_bytes())
            if datetime.fromisoformat(document["signed"]["expires"]) <= datetime.fromtimestamp(at, UTC):
                raise _expired(f"{role} expired at {document['signed']['expires']}")
        if now > self.floor():
            write_file(self._folder / "floor", repr(now).encode())

    def _signed(self, found: TargetFile) -> Signed:
        try:
            custom = msgspec.convert(found.custom or {}, Custom)
            sha256 = found.hashes["sha256"]
        except (msgspec.ValidationError, KeyError) as error:
            raise UpdateError(
                f"{found.path!r} is signed without what a device needs: {error}", code="untrusted", retryable=False
            ) from error
        if not 0 < found.length <= MOST_BUNDLE_BYTES:
            raise UpdateError(f"{found.path!r} has an impossible length {found.length}", code="untrusted", retryable=False)
        folder, _, name = found.path.rpartition("/")
        return Signed(Remote(f"{self._base}/tuf/targets/{quote(f'{folder}/{sha256}.{name}')}", found.length, sha256), custom)


def _expired(what: str) -> UpdateError:
    return UpdateError(what, code="metadata_expired", retryable=True, hint="the service must sign fresh metadata")


def _fetcher(pool: urllib3.PoolManager) -> Any:
    """A TUF fetcher with our timeouts; TUF itself bounds the bytes."""
    from tuf.api.exceptions import DownloadHTTPError, SlowRetrievalError
    from tuf.ngclient.fetcher import FetcherInterface

    class Fetcher(FetcherInterface):
        def _fetch(self, url: str) -> Iterator[bytes]:
            response = pool.request(
                "GET", url, preload_content=False, redirect=False, retries=False,
                timeout=urllib3.Timeout(METADATA_TIMEOUT_S), headers={"Accept-Encoding": "identity"},
            )  # fmt: skip
            if response.status != 200:
                response.close()
                raise DownloadHTTPError(f"{url} answered {response.status}", response.status)
            return self._chunks(response)

        def _chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
            deadline = time.monotonic() + METADATA_SECONDS
            try:
                while chunk := response.read1(METADATA_CHUNK_BYTES):
                    yield chunk
                    if time.monotonic() > deadline:
                        raise SlowRetrievalError
            finally:
                response.close()  # at its end it is back in the pool already; before, it must not be used again

    return Fetcher()
