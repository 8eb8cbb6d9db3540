"""Talk to a fleet service as its operator: HTTP and JSON, errors back in the tree they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from edgeml.fleet.config import DEFAULT_PORT, OPERATOR_KEY_VARIABLE, URL_VARIABLE, Places
from edgeml.wire.errors import BundleError, ConfigError, EdgemlError, LinkError, ServiceError, UsageError

TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Access:
    """Where the service is, and the operator's key."""

    url: str
    key: str


def find_access(data: Path, url: str | None = None) -> Access:
    """What was given, else the environment, else what a service with this data folder on this machine wrote down.

    Raises:
        ConfigError: no key is to be found.
    """
    places = Places(data)
    address = url or os.environ.get(URL_VARIABLE) or _written_address(places) or f"http://127.0.0.1:{DEFAULT_PORT}"
    key = os.environ.get(OPERATOR_KEY_VARIABLE) or _written_key(places)
    if key is None:
        raise ConfigError(
            f"no fleet service has its folder at {str(data)!r}",
            hint=f"start one with `edgeml fleet serve`, name its folder with --data, or set {URL_VARIABLE} and "
            f"{OPERATOR_KEY_VARIABLE} for one elsewhere",
        )
    return Access(address.rstrip("/"), key)


class Client:
    """One service; a context manager.

    Every call raises `LinkError` when the service is not there, `UsageError` when it was asked for something that is not,
    `BundleError` for a bundle it refuses, `ServiceError` for all else.
    """

    def __init__(self, access: Access, transport: httpx.BaseTransport | None = None) -> None:
        self._access = access
        headers = {"Authorization": f"Bearer {access.key}"}
        self._http = httpx.Client(base_url=access.url, headers=headers, timeout=TIMEOUT, transport=transport, trust_env=False)

    def get(self, path: str, **query: str | int) -> Any:
        return self._call("GET", path, params=query)

    def post(self, path: str, body: object = None) -> Any:
        return self._call("POST", path, json=body)

    def put(self, path: str, body: object) -> Any:
        return self._call("PUT", path, json=body)

    def delete(self, path: str, **query: str) -> Any:
        return self._call("DELETE", path, params=query)

    def download(self, path: str) -> bytes:
        return self._send("GET", path).content

    def publish(self, bundle: Path) -> tuple[Mapping[str, Any], bool]:
        """Upload a packed bundle, streamed; gives its row and whether it is new."""
        try:
            size = bundle.stat().st_size
            if not bundle.is_file():
                raise UsageError(f"{str(bundle)!r} is not a file", hint="give the packed .edgeml")
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            response = self._send("POST", "/v1/models", content=_chunks(bundle), headers=headers)
        except OSError as error:
            raise UsageError(f"cannot read {str(bundle)!r}: {error.strerror}") from error
        return response.json(), response.status_code == httpx.codes.CREATED

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _call(self, method: str, path: str, **rest: Any) -> Any:
        return self._send(method, path, **rest).json()

    def _send(self, method: str, path: str, **rest: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **rest)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise LinkError(
                f"no fleet service at {self._access.url}: {reason}", hint="start it with `edgeml fleet serve`, or give --url"
            ) from error
        if response.is_success:
            return response
        raise _error(response)


def _error(response: httpx.Response) -> EdgemlError:
    try:
        words = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        words = f"the service at {response.url} answered {response.status_code}, and not as a fleet service does"
    match response.status_code:
        case 400 | 401 | 404 | 409 | 413:
            return UsageError(words)
        case 422:
            return BundleError(words)
        case status:
            return ServiceError(words, status=status)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _written_address(places: Places) -> str | None:
    try:
        return str(json.loads(places.address.read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _written_key(places: Places) -> str | None:
    try:
        return places.operator_key.read_text().strip()
    except OSError:
        return None
