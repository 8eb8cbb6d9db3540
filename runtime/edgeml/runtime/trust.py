"""What may run here, as signed metadata says: a TUF client for metadata only; bytes are downloaded by `fetch`.

Expired or unreachable metadata blocks installing, never inference. The clock has a floor, the latest moment at which metadata
was found fresh (at least this software's release): a clock that falls back behind it (a dead battery) does not make old
metadata fresh again. The floor cannot run ahead by more than the metadata's own life, since only a successful refresh moves it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

import msgspec
import urllib3

from edgeml.runtime.atomic import write_file
from edgeml.runtime.fetch import ALGORITHMS, Remote, unreachable
from edgeml.runtime.slots import storage_error
from edgeml.wire.errors import ConfigError, UpdateError
from edgeml.wire.manifest import Name, Sha256, Version
from edgeml.wire.structs import learn

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]  # re-exported, documented there
    from tuf.ngclient.updater import Updater

METADATA_TIMEOUT_S: Final = 10.0
METADATA_CHUNK_BYTES: Final = 64 * 1024
METADATA_SECONDS: Final = 60.0  # for one file, however it drips
RELEASED_AT: Final = 1_795_392_000.0  # 2026-11-23: no true clock is behind the software it runs
MOST_BUNDLE_BYTES: Final = 0xFFFF_FFFE  # a packed bundle is no zip64
TOP_LEVEL: Final = ("timestamp", "snapshot", "targets")


class _Closable(Protocol):
    def close(self) -> None: ...


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


class Listing:
    """Metadata that was fresh and verified a moment ago."""

    def __init__(self, updater: Updater, fetcher: _Closable, *, is_prefixed: bool) -> None:
        self._updater = updater
        self._fetcher = fetcher
        self._is_prefixed = is_prefixed

    def find(self, path: str) -> TargetFile | None:
        """What is signed for this path; follows delegations.

        Raises:
            UpdateError: as `Metadata.refresh`.
        """
        with _explained(), contextlib.closing(self._fetcher):
            return self._updater.get_targetinfo(path)

    def remote(self, found: TargetFile, base_url: str) -> Remote:
        """Where its bytes are.

        Raises:
            UpdateError: code `untrusted`, signed without a hash that we know or with a length that cannot be.
        """
        algorithm = next((name for name in ALGORITHMS if name in found.hashes), None)
        if algorithm is None:
            what = f"{found.path!r} is signed without a hash of {', '.join(ALGORITHMS)}"
            raise UpdateError(what, code="untrusted", retryable=False)
        if not 0 <= found.length <= MOST_BUNDLE_BYTES:
            raise UpdateError(f"{found.path!r} has an impossible length {found.length}", code="untrusted", retryable=False)
        folder, slash, name = found.path.rpartition("/")
        prefix = f"{next(iter(found.hashes.values()))}." if self._is_prefixed else ""
        url = f"{base_url}{quote(f'{folder}{slash}{prefix}{name}')}"
        return Remote(url, found.length, found.hashes[algorithm], algorithm)


class Metadata:
    """A TUF repository's metadata as one device knows it.

    Args:
        folder: for metadata and the clock's floor; made if absent.
        url: where the metadata is, with a slash at its end.
        root: the root metadata the device was given; the trust anchor.
        released_at: Unix seconds that no true clock is behind.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        root: bytes,
        *,
        pool: urllib3.PoolManager,
        now: Callable[[], float] = time.time,
        released_at: float = RELEASED_AT,
    ) -> None:
        self._folder = folder
        self._url = url
        self._root = root
        self._pool = pool
        self._now = now
        self._released_at = released_at

    def refresh(self) -> Listing:
        """Ask the repository what is signed at this moment.

        Raises:
            UpdateError: `unreachable` or `metadata_expired` (wait), or `untrusted`.
        """
        fetcher = _fetcher(self._pool)
        with _explained(), contextlib.closing(fetcher):
            self._folder.mkdir(parents=True, exist_ok=True)
            updater = self._updater(fetcher)
            updater.refresh()
            return Listing(updater, fetcher, is_prefixed=self._require_fresh())

    def floor(self) -> float:
        """Unix seconds that the true time is not before."""
        try:
            return max(self._released_at, float((self._folder / "floor").read_text()))
        except (OSError, ValueError):
            return self._released_at

    def _updater(self, fetcher: Any) -> Updater:
        from tuf.api.exceptions import RepositoryError
        from tuf.ngclient.updater import Updater

        try:
            return Updater(str(self._folder), self._url, fetcher=fetcher, bootstrap=self._root)
        except (ValueError, RepositoryError) as error:
            raise ConfigError(f"TUF root cannot be used: {error}", hint="give the root.json of your fleet") from error

    def _require_fresh(self) -> bool:
        """Hold the metadata against the floor too: ngclient only looks at the clock. Tells whether files carry their hash."""
        now = self._now()
        at = max(now, self.floor())
        is_prefixed = False
        for role in ("root", *TOP_LEVEL):
            signed = json.loads((self._folder / f"{role}.json").read_bytes())["signed"]
            if datetime.fromisoformat(signed["expires"]) <= datetime.fromtimestamp(at, UTC):
                raise _expired(f"{role} expired at {signed['expires']}")
            is_prefixed = is_prefixed or bool(signed.get("consistent_snapshot"))
        if now > self.floor():
            write_file(self._folder / "floor", repr(now).encode())
        return is_prefixed


class Trust:
    """What one device may install: the bundles that the fleet's signed metadata lists.

    Args:
        service_url: where `/tuf/metadata/` and `/tuf/targets/` are; for the others see `Metadata`.
    """

    def __init__(
        self, folder: Path, service_url: str, root: bytes, *, pool: urllib3.PoolManager, now: Callable[[], float] = time.time
    ) -> None:
        base = service_url.rstrip("/")
        self._metadata = Metadata(folder, f"{base}/tuf/metadata/", root, pool=pool, now=now)
        self._targets_url = f"{base}/tuf/targets/"
        self._listing: Listing | None = None

    def find(self, path: str) -> Signed:
        """Refresh the metadata and look a bundle up.

        Raises:
            UpdateError: `unreachable` or `metadata_expired` (wait), `untrusted` or `unlisted` (refused).
        """
        self._listing = listing = self._metadata.refresh()
        found = listing.find(path)
        if found is None:
            raise UpdateError(f"{path!r} is not in the signed metadata", code="unlisted", retryable=False)
        try:
            custom = msgspec.convert(found.custom or {}, Custom)
        except msgspec.ValidationError as error:
            raise UpdateError(
                f"{found.path!r} is signed without what a device needs: {error}", code="untrusted", retryable=False
            ) from error
        remote = listing.remote(found, self._targets_url)
        if remote.algorithm != "sha256" or not remote.length_bytes:
            raise UpdateError(f"{path!r} is signed without a sha256 and a length", code="untrusted", retryable=False)
        return Signed(remote, custom)

    def listed(self, path: str) -> Remote | None:
        """Another file that the metadata of the last `find` lists, or `None`.

        Raises:
            UpdateError: as `find`.
        """
        found = None if self._listing is None else self._listing.find(path)
        return None if self._listing is None or found is None else self._listing.remote(found, self._targets_url)

    def floor(self) -> float:
        """Unix seconds that the true time is not before."""
        return self._metadata.floor()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """TUF's errors in words of an update."""
    from tuf.api.exceptions import DownloadError, ExpiredMetadataError, RepositoryError

    try:
        yield
    except ExpiredMetadataError as error:
        raise _expired(str(error)) from error
    except RepositoryError as error:
        raise UpdateError(f"metadata does not verify: {error}", code="untrusted", retryable=False) from error
    except (DownloadError, urllib3.exceptions.HTTPError) as error:
        raise unreachable(f"metadata: {error.__cause__ or error}") from error
    except OSError as error:
        raise storage_error(error) from error


def _expired(what: str) -> UpdateError:
    return UpdateError(what, code="metadata_expired", retryable=True, hint="the service must sign fresh metadata")


def _fetcher(pool: urllib3.PoolManager) -> Any:
    """A TUF fetcher with our timeouts; TUF itself bounds the bytes."""
    from tuf.api.exceptions import DownloadHTTPError, SlowRetrievalError
    from tuf.ngclient.fetcher import FetcherInterface

    class Fetcher(FetcherInterface):
        def __init__(self) -> None:
            self._response: urllib3.BaseHTTPResponse | None = None

        def close(self) -> None:
            """End an answer that TUF stopped reading: at its end it is back in the pool, before, it must not be used again."""
            if self._response is not None:
                self._response.close()

        def _fetch(self, url: str) -> Iterator[bytes]:
            self.close()
            self._response = response = pool.request(
                "GET", url, preload_content=False, redirect=False, retries=False,
                timeout=urllib3.Timeout(METADATA_TIMEOUT_S), headers={"Accept-Encoding": "identity"},
            )  # fmt: skip
            if response.status != 200:
                response.close()
                raise DownloadHTTPError(f"{url} answered {response.status}", response.status)
            return self._chunks(response)

        def _chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
            deadline = time.monotonic() + METADATA_SECONDS
            while chunk := response.read1(METADATA_CHUNK_BYTES):
                yield chunk
                if time.monotonic() > deadline:
                    raise SlowRetrievalError

    return Fetcher()


learn(__name__)
