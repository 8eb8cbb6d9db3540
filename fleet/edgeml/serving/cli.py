"""`edgeml serve BUNDLE`: the cloud endpoint that devices fall back to."""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path
from typing import Annotated, Final, get_args

import msgspec
import typer
import uvicorn

from edgeml.runtime.arguments import BundlePath
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.choose import rank, this_board
from edgeml.runtime.model import Model, load_open
from edgeml.serving.app import BODY_LIMIT_BYTES, make_app
from edgeml.wire.contract import label
from edgeml.wire.errors import EnvironmentProblem, UsageError
from edgeml.wire.manifest import Format, Manifest, Precision

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_BACKLOG: Final = 512
_PRECISION_ORDER: Final[tuple[Precision, ...]] = get_args(Precision)


@app.command()
def serve(
    bundle: BundlePath,
    *,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; anything but loopback is open to its network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="NUMBER", help="0 takes a free one.", min=0, max=65535)] = 8080,
    artifact: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT:PRECISION", show_default="the most precise here", help="Which artifact, such as onnx:fp32."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(metavar="NUMBER", help="Threads of the engine.", min=1, max=256)] = 1,
    body_limit: Annotated[int, typer.Option(metavar="BYTES", help="Largest request body.", min=1024)] = BODY_LIMIT_BYTES,
    json: Annotated[bool, typer.Option("--json", help="Say where it listens as one JSON object on stdout.")] = False,
) -> None:
    """Serve a bundle over HTTP (Open Inference Protocol v2) until it is stopped."""
    with _load(bundle, artifact, threads) as model, _listen(host, port) as listener:
        _announce(model, listener, json=json)
        configuration = uvicorn.Config(
            make_app(model, limit_bytes=body_limit), log_level="warning", access_log=False, lifespan="off", server_header=False
        )
        server = uvicorn.Server(configuration)
        server.run(sockets=[listener])
        if server.should_exit:  # it hands a Ctrl-C on when it has shut down; what is being torn down then may swallow it
            raise KeyboardInterrupt


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before the server starts, so that a port that is taken is told plainly.

    Raises:
        EnvironmentProblem: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise EnvironmentProblem(f"cannot listen on {host!r}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise EnvironmentProblem(
                f"port {port} on {host} is taken by another program", hint="choose another with --port, or 0 for a free one"
            ) from error
        raise EnvironmentProblem(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _announce(model: Model, listener: socket.socket, *, json: bool) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if json:
        record = {"url": url, "model": model.name, "version": model.version, "artifact": label(model.artifact)}
        sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
    else:
        print(f"{model.name} {model.version} ({label(model.artifact)}: {model.reason})")
        print(f"  {url}/v2/models/{model.name}/infer   Open Inference Protocol v2, stop with Ctrl-C")
    sys.stdout.flush()


def _load(path: Path, artifact: str | None, threads: int) -> Model:
    with open_bundle(path) as bundle:
        format_, precision = _most_precise(bundle.manifest) if artifact is None else _split(artifact)
        return load_open(bundle, format=format_, precision=precision, threads=threads)


def _most_precise(manifest: Manifest) -> tuple[Format | None, Precision | None]:
    """A device asks the cloud where its own small model is not sure: fp32 comes first here."""
    usable = [
        choice.artifact for choice in rank(manifest, this_board()) if choice.fits and choice.artifact.parity.status != "fail"
    ]
    if not usable:
        return None, None
    best = min(usable, key=lambda artifact: _PRECISION_ORDER.index(artifact.precision))
    return best.format, best.precision


def _split(artifact: str) -> tuple[Format, Precision]:
    format_, _, precision = artifact.partition(":")
    try:
        return msgspec.convert(format_, Format), msgspec.convert(precision, Precision)
    except msgspec.ValidationError as error:
        raise UsageError("artifact", expected="FORMAT:PRECISION, such as onnx:int8", got=repr(artifact)) from error
