"""What the operator's commands share: where the service is, and how an answer is printed."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Final

import typer

from edgeml.fleet.client import Client, find_access
from edgeml.fleet.config import URL_VARIABLE
from edgeml.wire.errors import UsageError

DEFAULT_DATA: Final = Path("edgeml-fleet")

Data = Annotated[Path, typer.Option("--data", metavar="FOLDER", envvar="EDGEML_FLEET_DATA", help="The service's folder.")]
Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", envvar=URL_VARIABLE, help="Where the service is; found by --data if it is here."),
]
Device = Annotated[str, typer.Argument(metavar="ID", help="The device's id.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="KEY=VALUE", help="What the device is told apart by, such as site=north; may be repeated."),
]


def open_client(data: Path, url: str | None) -> Client:
    return Client(find_access(data, url))


def print_answer(answer: object, json: bool, words: str) -> None:
    typer.echo(jsonlib.dumps(answer, indent=2) if json else words)


def parse_tags(tags: list[str]) -> dict[str, str]:
    parsed = {}
    for tag in tags:
        key, separator, value = tag.partition("=")
        if not key or not separator:
            raise UsageError("a tag", expected="KEY=VALUE", got=repr(tag))
        parsed[key] = value
    return parsed
