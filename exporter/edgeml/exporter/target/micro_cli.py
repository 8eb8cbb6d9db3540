"""`edgeml micro BUNDLE -o DIR`: C sources for a microcontroller, proved here in TensorFlow Lite Micro."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edgeml.runtime.arguments import Json, existing

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle with a TFLite artifact.", callback=existing)],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FOLDER", show_default="NAME-micro beside the bundle", help="Folder for the C sources."
        ),
    ] = None,
    artifact: Annotated[
        str | None,
        typer.Option(metavar="tflite:PRECISION", show_default="tflite:int8, else tflite:fp32", help="Which artifact."),
    ] = None,
    float_edges: Annotated[bool, typer.Option("--float-edges", help="Keep float32 inputs and outputs.")] = False,
    json: Json = False,
) -> None:
    """Write a model for a microcontroller, with the least arena it runs in and golden vectors to check the board by.

    Exit codes: 0 written and proved, 2 usage, 3 answers differ there, 5 TensorFlow Lite Micro cannot run it, 6 environment.
    """
    from edgeml.exporter.target.micro import make_micro, sentences

    place = bundle.parent / f"{bundle.stem}-micro" if out is None else out
    made = make_micro(bundle, place, artifact=artifact, float_edges=float_edges)
    if json:
        sys.stdout.write(msgspec.json.encode(made).decode() + "\n")
    else:
        print("\n".join(sentences(made, place)))
