"""`edgeml bench BUNDLE`: how fast each artifact is here, or on a board behind ssh, and whether int8 pays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edgeml.runtime.arguments import BundlePath, Json
from edgeml.runtime.bench.records import Bench
from edgeml.runtime.bench.remote import bench_there, parse_place
from edgeml.runtime.bench.rounds import Plan, bench
from edgeml.runtime.bench.table import lines
from edgeml.wire.errors import EngineError, UnsupportedError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(  # noqa: PLR0917 - Typer reads options from the parameters
    bundle: BundlePath,
    runs: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", show_default="1,000, or what fits in ten seconds", help="Calls of each artifact."),
    ] = None,
    artifact: Annotated[
        list[str] | None, typer.Option(metavar="FORMAT:PRECISION", show_default="all that run there", help="May be repeated.")
    ] = None,
    threads: Annotated[int, typer.Option(metavar="NUMBER", help="Threads of the engine.")] = 1,
    on: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Measure there: ssh://[user@]host[:port][/folder].")] = None,
    ssh_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For --on: an ssh configuration other than your own.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure how fast each artifact of a bundle is, and how sure that is.

    Exit codes: 0 measured, 2 usage, 3 the bundle is damaged, 5 nothing of it runs here, 6 an artifact failed, or no connection.
    """
    plan = Plan(runs, threads, tuple(artifact or ()))
    where = None
    if on is None:
        found = bench(bundle, plan, _quiet if json else _progress)
    else:
        place = parse_place(on)
        where = place.shown
        found = bench_there(bundle, plan, place, config=ssh_config)
    if json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        print("\n".join(lines(found, where=where)))
    _judge(found)


def _judge(found: Bench) -> None:
    """Exit codes of what was printed.

    Raises:
        EngineError: an artifact that should run failed.
        UnsupportedError: none could run.
    """
    failed = [timing for timing in found.artifacts if timing.state == "fail"]
    if failed:
        raise EngineError(f"{len(failed)} of {len(found.artifacts)} artifacts failed: {failed[0].label}: {failed[0].detail}")
    if not any(timing.state == "measured" for timing in found.artifacts):
        raise UnsupportedError(
            f"nothing of {found.name} {found.version} runs there", hint="`edgeml doctor` says what is missing"
        )


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def _quiet(_: str) -> None:
    return
