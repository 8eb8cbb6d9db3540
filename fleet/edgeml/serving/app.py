"""The HTTP application: one model, the Open Inference Protocol v2, JSON and raw tensors, Prometheus metrics.

Tensors never pass through pydantic, and inference never runs on the event loop. What a client sends wrong is a 400 with the
session's own sentence; what fails inside is a 500 that says no more than that it did.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from edgeml.runtime import oip
from edgeml.runtime.backends import Array
from edgeml.runtime.model import Model
from edgeml.serving.metrics import Metrics
from edgeml.wire.errors import EdgemlError, InputError, UsageError
from edgeml.wire.manifest import TensorSpec

BODY_LIMIT_BYTES: Final = 64 * 1024 * 1024
INFERENCE_THREADS: Final = 4  # decoding runs beside inference; the session lets one call at a time into the engine
_ANY: Final = -1  # an axis of any size, in the protocol's words

Handler = Callable[[Request], Awaitable[Response]]


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(message)


def make_app(model: Model, *, limit_bytes: int = BODY_LIMIT_BYTES) -> FastAPI:
    """The application that serves `model`; the caller closes the model when the server has stopped."""
    server = Server(model, limit_bytes)
    app = FastAPI(title="edgeml serve", docs_url=None, redoc_url=None, openapi_url=None)
    model_paths = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    for path, handler in (("/v2", server.about), ("/v2/health/live", server.live), ("/v2/health/ready", server.live)):
        app.add_route(path, _guarded(handler), methods=["GET"])
    for path in model_paths:
        app.add_route(path, _guarded(server.metadata), methods=["GET"])
        app.add_route(f"{path}/ready", _guarded(server.model_ready), methods=["GET"])
        app.add_route(f"{path}/infer", _guarded(server.infer), methods=["POST"])
    app.add_route("/metrics", _guarded(server.show_metrics), methods=["GET"])
    app.add_exception_handler(404, _not_found)
    app.add_exception_handler(405, _not_found)
    return app


class Server:
    """Handlers of one model."""

    def __init__(self, model: Model, limit_bytes: int) -> None:
        self._model = model
        self._limit_bytes = limit_bytes
        self._metrics = Metrics(model.name, model.version)
        self._threads = ThreadPoolExecutor(INFERENCE_THREADS, thread_name_prefix="edgeml-infer")

    async def about(self, _: Request) -> Response:
        return _json({"name": "edgeml", "version": "0.1.0", "extensions": ["binary_tensor_data"]})

    async def live(self, _: Request) -> Response:
        return _json({"live": True, "ready": True})

    async def model_ready(self, request: Request) -> Response:
        self._check_name(request)
        return _json({"name": self._model.name, "ready": True})

    async def metadata(self, request: Request) -> Response:
        self._check_name(request)
        signature = self._model.manifest.signature
        return _json(
            {
                "name": self._model.name,
                "versions": [self._model.version],
                "platform": f"edgeml_{self._model.artifact.format}",
                "inputs": [_described(spec) for spec in signature.inputs],
                "outputs": [_described(spec) for spec in signature.outputs],
            }
        )

    async def show_metrics(self, _: Request) -> Response:
        return PlainTextResponse(self._metrics.text(), media_type=self._metrics.media_type)

    async def infer(self, request: Request) -> Response:
        self._check_name(request)
        started = time.perf_counter()
        try:
            data = await self._body(request)
            loop = asyncio.get_running_loop()
            body = await loop.run_in_executor(self._threads, self._answer, data, _json_bytes(request), started)
        except (UsageError, Refused) as error:
            status = error.status if isinstance(error, Refused) else 400
            self._metrics.refused(status)
            raise Refused(status, str(error)) from error
        except EdgemlError:
            self._metrics.refused(500)
            raise Refused(500, "the model could not answer this request") from None
        headers = {} if body.json_bytes is None else {oip.HEADER_LENGTH: str(body.json_bytes)}
        media_type = "application/json" if body.json_bytes is None else "application/octet-stream"
        return Response(body.data, headers=headers, media_type=media_type)

    def _answer(self, data: bytes, json_bytes: int | None, started: float) -> oip.Body:
        """Decode, run, encode; on a thread of the pool."""
        asked = oip.read_request(data, json_bytes)
        result = self._model.run(asked.inputs, request_id=asked.id or "")
        outputs = _wanted(result.outputs, asked.wanted)
        binary = frozenset(outputs) if asked.binary_all else asked.binary
        response = oip.Response(outputs, self._model.name, self._model.version, asked.id)
        body = oip.write_response(response, binary)
        self._metrics.answered(time.perf_counter() - started, result.latency_s)
        return body

    async def _body(self, request: Request) -> bytes:
        """The request's body; nothing beyond the limit is kept."""
        promised = request.headers.get("content-length", "0")
        if promised.isdecimal() and int(promised) > self._limit_bytes:
            raise Refused(413, f"body too long: expected at most {self._limit_bytes} bytes, got {promised}")
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self._limit_bytes:
                raise Refused(413, f"body too long: expected at most {self._limit_bytes} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    def _check_name(self, request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != self._model.name:
            raise Refused(404, f"no model {name!r} here: expected {self._model.name!r}")
        if version is not None and version != self._model.version:
            raise Refused(404, f"no version {version!r} of {name!r} here: expected {self._model.version!r}")


def _guarded(handler: Handler) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as refused:
            return _json({"error": refused.message}, refused.status)

    return answer


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return _json({"error": f"no {request.method} {request.url.path} here; the protocol starts at /v2"}, status)


def _json_bytes(request: Request) -> int | None:
    text = request.headers.get(oip.HEADER_LENGTH)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 12:
        raise InputError(oip.HEADER_LENGTH, expected="a number of bytes", got=repr(text))
    return int(text)


def _wanted(outputs: dict[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
    if not names:
        return outputs
    for name in names:
        if name not in outputs:
            raise InputError("outputs asked for", expected=", ".join(outputs), got=repr(name))
    return {name: outputs[name] for name in names}


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [_ANY if isinstance(axis, str) else axis for axis in spec.shape]
    return {"name": spec.name, "datatype": oip.DATATYPES[spec.dtype], "shape": shape}


def _json(record: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(record), status_code=status, media_type="application/json")
