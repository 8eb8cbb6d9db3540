"""`edgeml web BUNDLE -o DIR`: a page that proves a bundle in a browser; `--check` opens it here, `--serve` for you."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgeml.runtime.arguments import existing
from edgeml.wire.errors import SelfTestError

if TYPE_CHECKING:
    from edgeml.exporter.target.web_check import PageRecord

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(  # noqa: PLR0917 - Typer reads options from the parameters
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle with an ONNX artifact.", callback=existing)],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", show_default="NAME-web beside the bundle", help="Folder for the page."),
    ] = None,
    artifact: Annotated[
        list[str] | None, typer.Option(metavar="onnx:PRECISION", show_default="all ONNX ones", help="May be repeated.")
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", show_default="npm fetches it once", help="Of the npm package onnxruntime-web."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Open it in a headless Chromium and print what it found.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve it on loopback, and print what browsers find.")] = False,
    port: Annotated[int, typer.Option(metavar="NUMBER", help="For --serve; 0 takes a free one.")] = 8765,
    json: Annotated[bool, typer.Option("--json", help="With --check: one JSON object on stdout.")] = False,
) -> None:
    """Make a page that runs a bundle's golden vectors on onnxruntime-web, without a network.

    Exit codes: 0 made, and passed if checked, 2 usage, 3 the browser computes something else, 5 nothing for a browser in the
    bundle, 6 no onnxruntime-web, or no browser.
    """
    from edgeml.exporter.target import web, web_check
    from edgeml.exporter.target.web_engine import find_engine

    place = bundle.parent / f"{bundle.stem}-web" if out is None else out
    page = web.make_page(bundle, place, find_engine(runtime), tuple(artifact or ()))
    if not json:
        print(f"{page.name} {page.version}: {', '.join(one.label for one in page.artifacts)}, {page.samples} golden samples")
        print(f"page    {place}")
    if check:
        _report(*web_check.check(place), json=json)
    elif serve:
        _serve(place, port)
    elif not json:
        print(f"next    edgeml web {bundle} --check, or serve the folder and open it")


def _report(record: PageRecord, browser: str, *, json: bool) -> None:
    """Print it, in words or as JSON.

    Raises:
        SelfTestError: an artifact failed.
    """
    if json:
        where = f"verified ({browser}, {record.engine})"
        found = msgspec.to_builtins(record) | {"browser": browser}
        found["artifacts"] = [{**one, "where": where} for one in found["artifacts"]]
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        _show(record, browser)
    if record.status == "fail":
        failed = next((one for one in record.artifacts if one.status == "fail"), None)
        raise SelfTestError(f"{failed.artifact} in {browser}: {failed.reason}" if failed else f"{browser}: {record.reason}")


def _show(record: PageRecord, browser: str) -> None:
    for one in record.artifacts:
        words = [f"{one.artifact:<12} {one.status}"]
        for output in one.outputs:
            got = "not finite" if output.max_abs is None else f"{output.max_abs:.3g}"
            words.append(f"{output.name!r} at most {got} off (limit {output.tolerance:.3g})")
        if one.p50_ms is not None:
            words.append(f"{one.p50_ms:.3g} ms a call")
        print(", ".join(words) + (f": {one.reason}" if one.reason else ""))
    print(f"{record.status}    verified ({browser}, {record.engine})")


def _serve(place: Path, port: int) -> None:
    from edgeml.exporter.target.web_check import serve

    with serve(place, port) as server:
        print(f"open    {server.url}\n        Ctrl-C ends it", flush=True)
        while True:
            record = server.records.get()
            _show(record, record.agent)
