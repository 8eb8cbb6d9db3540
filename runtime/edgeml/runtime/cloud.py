"""Ask a cloud endpoint for an answer: Open Inference Protocol v2 over HTTP, so KServe, Triton and `edgeml serve` all do.

What comes back is checked like any other input: size, time, names, dtypes, shapes and finite values. A cloud that is dead, slow
or lying makes `infer` raise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

import numpy as np
import urllib3

from edgeml.runtime import oip
from edgeml.runtime.backends import Array
from edgeml.wire.errors import ConfigError, InputError, LinkError, ServiceError
from edgeml.wire.manifest import Signature, TensorSpec

RESPONSE_LIMIT_BYTES: Final = 16 * 1024 * 1024
_ERROR_BYTES: Final = 2048  # of an error body worth reading
_CHUNK_BYTES: Final = 64 * 1024


class TooSlowError(LinkError):
    """The cloud did not answer within the deadline."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the cloud said, checked against the signature; bytes are of the bodies."""

    outputs: dict[str, Array]
    model: str
    version: str
    sent_bytes: int
    received_bytes: int


class CloudClient:
    """One model behind one endpoint. Thread-safe; keeps its connections.

    Args:
        url: the server's root, `https://host[:port][/prefix]`.
        model: the name it serves the model under.
        signature: what the answers are held to.
        token: sent as `Authorization: Bearer`.
        binary: tensors raw instead of as JSON text; a server without the extension needs `False`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        signature: Signature,
        *,
        token: str | None = None,
        binary: bool = True,
        limit_bytes: int = RESPONSE_LIMIT_BYTES,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ConfigError("address of the cloud endpoint", expected="http://… or https://…", got=repr(url))
        self._address = f"{url.rstrip('/')}/v2/models/{quote(model, safe='')}/infer"
        self._signature = signature
        self._binary = binary
        self._limit_bytes = limit_bytes
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._pool = urllib3.PoolManager(num_pools=2, maxsize=4, retries=False)

    def infer(self, inputs: Mapping[str, Array], *, request_id: str, deadline_s: float) -> Answer:
        """One answer within the deadline (a socket may take up to that long once more when the server trickles).

        Raises:
            TooSlowError: no answer within the deadline.
            LinkError: unreachable or cut off.
            ServiceError: refused, or answered something that is not this model's output; `status` tells which.
        """
        ends = time.monotonic() + deadline_s
        body = oip.write_request(inputs, request_id=request_id, binary=self._binary)
        headers = dict(self._headers) | {"Content-Type": "application/json", "X-Request-Id": request_id}
        if body.json_bytes is not None:
            headers |= {"Content-Type": "application/octet-stream", oip.HEADER_LENGTH: str(body.json_bytes)}
        status, json_bytes, data = self._post(body.data, headers, ends)
        if status != 200:
            raise ServiceError(f"the cloud answered {status}: {_error_text(data)}", status=status)
        try:
            response = oip.read_response(data, json_bytes)
            outputs = check_outputs(response.outputs, self._signature)
        except InputError as error:
            raise ServiceError(f"the cloud's answer is not usable: {error}", status=status) from error
        if response.id is not None and response.id != request_id:
            raise ServiceError(f"the cloud answered request {response.id!r} instead of {request_id!r}", status=status)
        return Answer(outputs, response.model, response.version, len(body.data), len(data))

    def close(self) -> None:
        self._pool.clear()

    def _post(self, data: bytes, headers: Mapping[str, str], ends: float) -> tuple[int, int | None, bytes]:
        try:
            response = self._pool.request(
                "POST",
                self._address,
                body=data,
                headers=headers,
                timeout=urllib3.Timeout(total=max(0.001, ends - time.monotonic())),
                preload_content=False,
                redirect=False,
            )
            try:
                received = self._read(response, ends)
                length = response.headers.get(oip.HEADER_LENGTH)
            finally:
                response.close()  # the connection of a body read to its end has gone back to the pool by now
        except urllib3.exceptions.TimeoutError as error:
            raise TooSlowError(f"the cloud at {self._address} did not answer in time") from error
        except urllib3.exceptions.HTTPError as error:
            raise LinkError(f"the cloud at {self._address} cannot be reached: {error}") from error
        except OSError as error:
            raise LinkError(f"the cloud at {self._address} cannot be reached: {error}") from error
        return response.status, _number(length), received

    def _read(self, response: urllib3.BaseHTTPResponse, ends: float) -> bytes:
        """The body; of a refusal only its beginning."""
        if response.status != 200:
            return response.read1(_ERROR_BYTES)
        if (_number(response.headers.get("Content-Length")) or 0) > self._limit_bytes:
            raise self._too_long()
        parts, size = [], 0
        while chunk := response.read1(_CHUNK_BYTES):
            size += len(chunk)
            if size > self._limit_bytes:
                raise self._too_long()
            parts.append(chunk)
            if time.monotonic() > ends:
                raise TooSlowError(f"the cloud at {self._address} did not answer in time")
        return b"".join(parts)

    def _too_long(self) -> ServiceError:
        return ServiceError(f"the cloud's answer is longer than {self._limit_bytes} bytes", status=200)


def check_outputs(outputs: Mapping[str, Array], signature: Signature) -> dict[str, Array]:
    """The outputs in the signature's order.

    Raises:
        InputError: one is missing, of another dtype or shape, or not finite.
    """
    checked: dict[str, Array] = {}
    for spec in signature.outputs:
        array = outputs.get(spec.name)
        where = f"output {spec.name!r}"
        if array is None:
            raise InputError(where, expected=f"{spec.dtype} {spec.shape}", got=f"only {', '.join(outputs) or 'none'}")
        if array.dtype != np.dtype(spec.dtype) or not _fits(array.shape, spec):
            raise InputError(where, expected=f"{spec.dtype} {spec.shape}", got=f"{array.dtype} {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(where, expected="finite values", got="NaN or infinity")
        checked[spec.name] = array
    return checked


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    return len(shape) == len(spec.shape) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(spec.shape, shape, strict=True)
    )


def _number(text: str | None) -> int | None:
    """A header's number; one of more than 18 digits is nobody's length."""
    return int(text) if text is not None and text.isdecimal() and len(text) <= 18 else None


def _error_text(data: bytes) -> str:
    return data[:200].decode("utf-8", "replace").strip() or "nothing"
